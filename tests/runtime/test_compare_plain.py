"""`sarc.compile(..., verify=True)`: the plain module runs beside the compiled one, and differences are found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN

import sarc
from sarc.errors import DifferenceError
from sarc.pipeline import Pipeline
from sarc.runtime.compare_plain import tolerance
from tests.errors.refusals import EDGES, PARTS, F, N, X, check_golden


class Norm(nn.Module):
    """Dropout, a buffer that is updated, two results, an edge weight with a gradient, an integer result."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm, self.drop = nn.Linear(F, F), nn.BatchNorm1d(F), nn.Dropout(0.5)

    def forward(self, x: Tensor, edge_index: Tensor, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.drop(self.norm(self.lin(x)))
        out = torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]] * w[:, None])
        return out, {"mean": h.mean(0), "degree": torch.zeros(N, dtype=torch.int64).index_add(
            0, edge_index[1], torch.ones_like(edge_index[1]))}  # fmt: skip


def verified(model: nn.Module, **settings) -> sarc.CompiledModule:
    return sarc.compile(model, PARTS, verify=True, **settings)


def test_everything_is_compared_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    compiled = verified(Norm().double())
    x, w = X.clone().requires_grad_(), torch.rand(EDGES.shape[1], dtype=torch.float64, requires_grad=True)
    out, rest = compiled(x, EDGES, w)
    (out.sum() + rest["mean"].pow(2).sum()).backward()
    names = [d.name for d in compiled.differences()]
    assert names == [
        "output 0", "output 1", "output 2", "buffer norm.running_mean", "buffer norm.running_var",
        "buffer norm.num_batches_tracked", "gradient of lin.weight", "gradient of lin.bias", "gradient of norm.weight",
        "gradient of norm.bias", "gradient of x", "gradient of w",
    ]  # fmt: skip
    assert all(d.is_fine and d.largest < 1e-12 for d in compiled.differences())
    shown = capsys.readouterr().err
    assert "verify: results of the compiled and the plain module (train mode)" in shown
    assert "  gradient of w: " in shown and "  gradient of lin.weight: " in shown


def test_the_first_call_of_each_mode_is_compared_and_no_other() -> None:
    compiled = verified(GAT(F, 4, 2, 3, dropout=0.5).double())
    for _ in range(3):
        compiled(X, EDGES).sum().backward()
    count = len(compiled.differences())
    compiled.eval()
    with torch.no_grad():
        for _ in range(2):
            compiled(X, EDGES)
    assert [d.name for d in compiled.differences()[count:]] == ["output 0"]


def test_the_model_is_left_as_without_verify() -> None:
    torch.manual_seed(0)
    one = Norm().double()
    two = copy.deepcopy(one)
    w = torch.ones(EDGES.shape[1], dtype=torch.float64)
    for model, verify in ((one, True), (two, False)):
        compiled = sarc.compile(model, PARTS, verify=verify, seed=5)
        compiled(X, EDGES, w)[0].pow(2).sum().backward()
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


class Doubled(torch.autograd.Function):
    """The identity with a wrong derivative."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


def tampered(change) -> object:
    def make(module: nn.Module) -> nn.Module:
        made = copy.deepcopy(module)
        change(made)
        return made

    return staticmethod(make)


def test_different_results_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def scale(model: nn.Module) -> None:
        with torch.no_grad():
            model.lin.weight.copy_(torch.ones_like(model.lin.weight))
            model.lin.bias.fill_(1.0)

    class Zeros(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(F, F, dtype=torch.float64)
            nn.init.zeros_(self.lin.weight)
            nn.init.zeros_(self.lin.bias)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.lin(x)

    compiled = verified(Zeros())
    monkeypatch.setattr(Pipeline, "copy_module", tampered(scale))
    with pytest.raises(DifferenceError) as caught:
        compiled(torch.ones_like(X), EDGES)
    check_golden("verify", "another output", caught.value)


def test_different_gradients_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ones(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(F, dtype=torch.float64))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return x * self.scale

    def wrong(model: nn.Module) -> None:
        model.forward = lambda x, edge_index: Doubled.apply(x * model.scale)

    compiled = verified(Ones())
    monkeypatch.setattr(Pipeline, "copy_module", tampered(wrong))
    out = compiled(torch.ones_like(X), EDGES)
    with pytest.raises(DifferenceError) as caught:
        out.sum().backward()
    check_golden("verify", "another gradient", caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_judged_by_its_dtype(dtype: torch.dtype) -> None:
    compiled = verified(GCN(F, 8, 2, 3).to(dtype))
    compiled(X.to(dtype), EDGES).sum().backward()
    assert compiled.differences() and all(d.is_fine for d in compiled.differences())


def test_tolerances_grow_with_the_sums_and_shrink_with_the_precision() -> None:
    assert tolerance(torch.float64, 100) == 1e-10
    assert tolerance(torch.float32, 100) < tolerance(torch.float32, 10_000) < 1e-3
    assert tolerance(torch.float32, 100) < tolerance(torch.bfloat16, 100)


def test_a_second_backward_is_not_compared_again() -> None:
    compiled = verified(GCN(F, 4, 1, 3).double())
    out = compiled(X, EDGES)
    out.sum().backward(retain_graph=True)
    count = len(compiled.differences())
    out.sum().backward()
    assert len(compiled.differences()) == count
