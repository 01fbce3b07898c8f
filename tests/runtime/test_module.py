"""A compiled module is an ordinary nn.Module: state, modes, optimizers, autocast, copies."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

import sarc
from sarc.errors import GraphError, PartitionError, UnsupportedModelError

NODES, FEATURES, CLASSES = 24, 4, 3


class Net(nn.Module):
    """Convolution, BatchNorm and dropout: parameters, buffers, and two modes that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(FEATURES, CLASSES)
        self.norm = nn.BatchNorm1d(CLASSES)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(x, edge_index)))


@pytest.fixture
def edge_index() -> Tensor:
    return torch.randint(0, NODES, (2, 80), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(NODES, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield Net()


def cut(edge_index: Tensor, num_parts: int = 3) -> sarc.Partitions:
    return sarc.partition(edge_index, num_nodes=NODES, num_parts=num_parts, method="random")


def test_state_is_the_models_own(model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    compiled = sarc.compile(model, cut(edge_index))
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert [n for n, _ in compiled.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert all(a is b for a, b in zip(compiled.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(compiled.buffers(), model.buffers(), strict=True))
    assert compiled.conv is model.conv
    compiled(x, edge_index)
    assert list(compiled.state_dict()) == list(model.state_dict())
    torch.manual_seed(7)
    compiled.load_state_dict(Net().state_dict())
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), Net().parameters(), strict=True))
    compiled.eval()
    plain = copy.deepcopy(model)
    assert torch.allclose(compiled(x, edge_index), plain(x, edge_index), atol=1e-6)
    buffer = io.BytesIO()
    torch.save(compiled.state_dict(), buffer)
    buffer.seek(0)
    assert list(torch.load(buffer)) == list(model.state_dict())


def test_train_and_eval_reach_the_submodules(model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    compiled = sarc.compile(model, cut(edge_index))
    assert compiled.training
    assert compiled.eval() is compiled
    assert not (compiled.training or model.training or model.norm.training or model.dropout.training)
    before = model.norm.running_mean.clone()
    assert torch.equal(compiled(x, edge_index), compiled(x, edge_index))
    assert torch.equal(model.norm.running_mean, before)
    assert compiled.train() is compiled
    assert model.training and model.norm.training and model.dropout.training
    assert not torch.equal(compiled(x, edge_index), compiled(x, edge_index)), "dropout draws anew in each call"
    assert not torch.equal(model.norm.running_mean, before)
    assert int(model.norm.num_batches_tracked) == 2


def test_a_training_loop_with_scheduler_clipping_and_a_larger_dtype(
    model: nn.Module, edge_index: Tensor, x: Tensor
) -> None:
    model.dropout.p = 0.0
    y = torch.randint(0, CLASSES, (NODES,), generator=torch.Generator().manual_seed(2))
    plain = copy.deepcopy(model)
    compiled = sarc.compile(model, cut(edge_index))
    losses = [[], []]
    for k, module in enumerate((compiled, plain)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
        for epoch in range(4):
            if epoch == 2:
                module.to(torch.float64)
            optimizer.zero_grad()
            out = module(x.to(module.conv.lin.weight.dtype), edge_index)
            loss = F.cross_entropy(out, y)
            loss.backward()
            assert float(nn.utils.clip_grad_norm_(module.parameters(), 0.1)) > 0.1
            optimizer.step()
            scheduler.step()
            losses[k].append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    assert compiled.conv.lin.weight.dtype == torch.float64


def test_no_grad_inference_mode_and_autocast(model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    model.eval()
    compiled = sarc.compile(model, cut(edge_index))
    expected = model(x, edge_index)
    with torch.no_grad():
        out = compiled(x, edge_index)
    assert not out.requires_grad and torch.allclose(out, expected, atol=1e-6)
    with torch.inference_mode():
        out = compiled(x, edge_index)
        again = compiled(x.clone(), edge_index.clone())
    assert out.is_inference() and torch.allclose(out, expected, atol=1e-6) and torch.equal(out, again)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow, reference = compiled(x, edge_index), model(x, edge_index)
    assert narrow.dtype == reference.dtype
    # bfloat16 keeps 8 bits; the products are rounded alike, the sums in another order.
    assert torch.allclose(narrow.float(), reference.float(), atol=0.05)
    assert not torch.equal(narrow.float(), expected), "autocast is a variant of its own"
    assert torch.allclose(compiled(x, edge_index), expected, atol=1e-6)


def test_copies_and_pickles_keep_model_partitions_seed_and_step(
    model: nn.Module, edge_index: Tensor, x: Tensor
) -> None:
    compiled = sarc.compile(model, cut(edge_index), seed=3)
    compiled(x, edge_index)
    buffer = io.BytesIO()
    torch.save(compiled, buffer)
    buffer.seek(0)
    loaded, copied = torch.load(buffer, weights_only=False), copy.deepcopy(compiled)
    out = compiled(x, edge_index)
    for other in (loaded, copied):
        assert (other.seed, other.step) == (3, 1)
        assert other.conv.lin.weight is not model.conv.lin.weight
        assert torch.equal(other(x, edge_index), out), "the same draws"


def test_step_and_seed_key_the_draws(model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    compiled = sarc.compile(model, cut(edge_index), seed=3)
    first, second = compiled(x, edge_index), compiled(x, edge_index)
    assert compiled.step == 2
    compiled.step = 0
    assert torch.equal(compiled(x, edge_index), first)
    assert torch.equal(compiled(x, edge_index), second)
    compiled.seed, compiled.step = 4, 0
    assert not torch.equal(compiled(x, edge_index), first)


@pytest.mark.parametrize("given", [3, torch.arange(NODES) % 3])
def test_partitions_made_at_the_first_call(
    given: int | Tensor, model: nn.Module, edge_index: Tensor, x: Tensor
) -> None:
    model.eval()
    compiled = sarc.compile(model, given)
    assert compiled.traffic()["sent_bytes"] == 0
    assert torch.allclose(compiled(x, edge_index), model(x, edge_index), atol=1e-6)
    assert compiled.traffic()["sent_bytes"] > 0
    assert torch.equal(compiled.gather(x), x)
    with pytest.raises(GraphError, match="edges that were partitioned"):
        compiled(x, edge_index.flip(0))


@pytest.mark.parametrize(
    "assignment",
    [
        torch.full((NODES,), float("nan")),
        torch.arange(NODES) - 1,
        torch.arange(NODES - 1),
        torch.ones(NODES, 2, dtype=torch.int64),
        torch.ones(NODES, dtype=torch.bool),
    ],
    ids=["nan", "negative", "short", "two columns", "bool"],
)
def test_wrong_assignments(assignment: Tensor, model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    with pytest.raises(PartitionError, match="assignment"):
        sarc.compile(model, assignment)(x, edge_index)


def test_a_model_on_another_device(model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    compiled = sarc.compile(model.to("meta"), cut(edge_index))
    with pytest.raises(GraphError, match="argument x is on cpu.*on meta.*one device"):
        compiled(x, edge_index)
    with pytest.raises(UnsupportedModelError, match="expected cpu"):
        compiled(x.to("meta"), edge_index.to("meta"))


def test_a_parameter_changed_between_forward_and_backward(model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    class TwoLayers(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = GCNConv(FEATURES, 5), GCNConv(5, CLASSES)

        def forward(self, x, edge_index):
            return self.conv2(self.conv1(x, edge_index).tanh(), edge_index)

    two = TwoLayers()
    compiled = sarc.compile(two, cut(edge_index))
    loss = compiled(x, edge_index).sum()
    with torch.no_grad():
        two.conv2.lin.weight.add_(1)
    with pytest.raises(RuntimeError, match="conv2.lin.weight was modified in place"):
        loss.backward()


def test_modes_of_the_caller_are_left_alone(model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    model.requires_grad_(False)
    compiled = sarc.compile(model, cut(edge_index))
    assert not compiled(x, edge_index).requires_grad
    assert torch.is_grad_enabled()
    with torch.no_grad():
        compiled(x, edge_index)
        assert not torch.is_grad_enabled()
    assert compiled(x.requires_grad_(), edge_index).requires_grad
    assert torch.is_grad_enabled()


def test_double_backward_is_refused(model: nn.Module, edge_index: Tensor, x: Tensor) -> None:
    compiled = sarc.compile(model, cut(edge_index))
    out = compiled(x.requires_grad_(), edge_index)
    with pytest.raises(UnsupportedModelError, match="double backward"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


def test_a_mask_that_changes_between_forward_and_backward(edge_index: Tensor, x: Tensor) -> None:
    """Several forwards with other structure before one backward: each backward keeps its own binding."""

    class Selected(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(FEATURES, CLASSES)

        def forward(self, x, edge_index, mask):
            return self.conv(x, edge_index)[mask].square().mean()

    torch.manual_seed(0)
    model = Selected().double()
    plain = copy.deepcopy(model)
    compiled = sarc.compile(model, cut(edge_index))
    masks = [torch.arange(NODES) % 2 == 0, torch.arange(NODES) < 5]
    for module in (compiled, plain):
        sum(module(x.double(), edge_index, mask) for mask in masks).backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-12)
    # The same tensor changed in place is other structure; an equal copy is not.
    binding = compiled._called().binding
    compiled(x.double(), edge_index, masks[1].clone())
    assert compiled._called().binding is binding
    masks[1].logical_not_()
    assert torch.allclose(compiled(x.double(), edge_index, masks[1]), plain(x.double(), edge_index, masks[1]))


def test_a_column_that_is_spread_over_nodes(x: Tensor, edge_index: Tensor) -> None:
    """Spread structural numbers are the step's to spread, but what names rows is bound."""

    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(FEATURES, CLASSES)

        def forward(self, x, root, edge_index):
            h = self.lin(x)
            return h + h[root.expand(x.shape[0])]

    model, root = Rooted(), torch.tensor([3])
    assert torch.allclose(sarc.compile(model, cut(edge_index))(x, root, edge_index), model(x, root, edge_index))
