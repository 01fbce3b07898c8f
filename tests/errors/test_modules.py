"""Modules that cannot be copied, are not ready, have hooks or caches; results, backward passes and wrappers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import sarc
from sarc.errors import OptionError
from tests.errors.refusals import EDGES, PARTS, F, X, check_equal, check_golden, nothing_lost, refusal


class Layer(nn.Module):
    """A linear layer and one aggregation, with attributes and a result of the test's choice."""

    def __init__(self, result: Callable[[Tensor], Any] | None = None, **attributes: Any):
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)
        self.result = result
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        h = torch.tanh(self.lin(x))
        out = torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
        return out if self.result is None else self.result(out)


def a_generator() -> Any:
    yield 1


class NoForward(nn.Module):
    pass


class Lazy(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.layer(x.float())


@dataclass
class Named:
    out: Tensor


def complex_weight() -> nn.Module:
    model = Layer()
    model.weight = nn.Parameter(torch.ones(F, dtype=torch.complex64))
    return model


def double(*args: Any) -> None:
    """A backward hook."""


def with_backward_hook(register: str) -> nn.Module:
    model = Layer()
    getattr(model.lin, register)(double)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a lock": lambda: Layer(lock=threading.Lock()),
    "a Python generator": lambda: Layer(numbers=a_generator()),
    "an earlier result": lambda: Layer(last=torch.ones(3, requires_grad=True) * 2),
    "a lazy parameter": lambda: Lazy(nn.LazyLinear(F)),
    "a lazy buffer": lambda: Lazy(nn.LazyBatchNorm1d(affine=False)),
    "a complex parameter": complex_weight,
    "full backward hook": lambda: with_backward_hook("register_full_backward_hook"),
    "backward pre-hook": lambda: with_backward_hook("register_full_backward_pre_hook"),
    "complex numbers inside": lambda: Layer(lambda out: torch.view_as_complex(out.view(-1, 2, 2)).abs()),
    "fft": lambda: Layer(lambda out: torch.fft.rfft(out, dim=1).abs()),
    "returns a dataclass": lambda: Layer(lambda out: Named(out)),
    "returns a generator": lambda: Layer(lambda out: (row for row in [out])),
    "returns numpy": lambda: Layer(lambda out: out.detach().numpy()),
    "lstm over nodes": lambda: Layer(nn.LSTM(F, F, dtype=torch.float64)),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_refused(case: str) -> None:
    model = MODELS[case]()
    compiled = sarc.compile(model, PARTS)
    with nothing_lost(model) if "lazy" not in case else pytest.MonkeyPatch.context():
        check_golden("modules", case, refusal(lambda: compiled(X, EDGES)))


def test_a_module_without_forward_is_no_model() -> None:
    check_golden("modules", "no forward", refusal(lambda: sarc.compile(NoForward(), PARTS)))


RESULTS: dict[str, Callable[[Tensor], Any]] = {
    "nested": lambda out: [out, {"a": (out * 2, 3, "b", None)}],
    "constant": lambda out: (out, torch.ones(3)),
    "scalar": lambda out: out.sum(),
}  # fmt: skip


@pytest.mark.parametrize("case", RESULTS)
def test_results_keep_their_structure(case: str) -> None:
    model = Layer(RESULTS[case])
    compiled = sarc.compile(model, PARTS)
    check_equal(compiled, model, X, EDGES)
    found, expected = compiled(X, EDGES), model(X, EDGES)
    assert str(torch.utils._pytree.tree_structure(found)) == str(torch.utils._pytree.tree_structure(expected))


class NoArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self) -> Tensor:
        return self.weight * 2


def test_a_forward_without_arguments_works() -> None:
    model = NoArguments()
    compiled = sarc.compile(model, PARTS)
    compiled().sum().backward()
    assert torch.equal(model.weight.grad, torch.full((3,), 2.0))


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.lin.register_forward_hook(lambda mod, args, out: out * 3),
    "forward pre": lambda m: m.lin.register_forward_pre_hook(lambda mod, args: (args[0] * 3,)),
    "of the model": lambda m: m.register_forward_hook(lambda mod, args, out: out * 3),
    "of a parameter": lambda m: m.lin.weight.register_hook(lambda grad: grad * 2),
}  # fmt: skip


@pytest.mark.parametrize("case", HOOKS)
def test_forward_hooks_work_also_when_they_come_later(case: str) -> None:
    model = Layer()
    compiled = sarc.compile(model, PARTS)
    check_equal(compiled, model, X, EDGES)
    handle = HOOKS[case](model)
    check_equal(compiled, model, X, EDGES)
    handle.remove()
    check_equal(compiled, model, X, EDGES)


@pytest.mark.parametrize("layer", ["GCNConv", "SGConv"])
def test_layer_caches_stay_clean_and_stale_ones_are_refused(layer: str) -> None:
    conv = getattr(pytest.importorskip("torch_geometric.nn"), layer)(F, F, cached=True).double()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index)

    net = Net()
    compiled = sarc.compile(net, PARTS)
    with nothing_lost(net):
        out = compiled(X, EDGES)
    assert all(value is None for key, value in vars(conv).items() if key.startswith("_cached"))
    torch.testing.assert_close(out, net(X, EDGES))
    with nothing_lost(net):
        check_golden("modules", f"cache of {layer}", refusal(lambda: sarc.compile(net, PARTS)(X, EDGES)))


def test_double_backward_is_refused_and_the_first_still_works() -> None:
    model = Layer()
    compiled, x = sarc.compile(model, PARTS), X.clone().requires_grad_()

    def penalty() -> None:
        torch.autograd.grad(compiled(x, EDGES).square().sum(), x, create_graph=True)

    with nothing_lost(model):
        check_golden("modules", "double backward", refusal(penalty))
    check_equal(compiled, model, x, EDGES)


def test_backward_twice_needs_retain_graph_as_in_plain_pytorch() -> None:
    model = Layer()
    loss = sarc.compile(model, PARTS)(X, EDGES).sum()
    loss.backward(retain_graph=True)
    once = model.lin.weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(model.lin.weight.grad, once * 2)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


@pytest.fixture
def one_rank(tmp_path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_is_refused_around_the_compiled_module_and_as_the_model(one_rank: None) -> None:
    model = Layer()
    compiled = sarc.compile(model, PARTS)
    wrapped = nn.parallel.DistributedDataParallel(compiled)
    check_golden("modules", "DDP around it", refusal(lambda: wrapped(X, EDGES)))
    check_equal(compiled, model, X, EDGES)
    error = refusal(lambda: sarc.compile(nn.parallel.DistributedDataParallel(Layer()), PARTS))
    assert type(error) is OptionError
    check_golden("modules", "DDP inside it", error)


# ---- the smallest graphs ---------------------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        h = self.lin(x)
        if edge_index.numel() == 0:
            h = h + 1
        if x.size(0) == 1:
            h = h * 3
        degree = x.new_zeros(x.size(0)).index_add(0, edge_index[1], x.new_ones(edge_index.size(1)))
        out = h.new_zeros(h.size(0), F).index_add(0, edge_index[1], h[edge_index[0]]) / degree.clamp(min=1)[:, None]
        return out + h, out.mean(0)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("edges", [[[0], [0]], [[], []]])
@pytest.mark.parametrize("nodes", [1, 2])
def test_one_node_or_no_edges(nodes: int, edges: list[list[int]], parts: int) -> None:
    edge_index = torch.tensor(edges, dtype=torch.long)
    cut = sarc.partition(edge_index, num_nodes=nodes, num_parts=parts, method="contiguous")
    model = Normed()
    spaces = {"x": "N"} if nodes == edge_index.shape[1] else None
    check_equal(sarc.compile(model, cut, spaces=spaces), model, X[:nodes], edge_index)


def test_no_nodes_at_a_call() -> None:
    model = Layer()
    compiled = sarc.compile(model, PARTS)
    check_golden("modules", "no nodes", refusal(lambda: compiled(X[:0], EDGES[:, :0])))
