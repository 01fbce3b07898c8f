"""Row counts baked into Python, data-dependent control flow, autograd.Function, in-place writes, odd results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sarc
from tests.errors.refusals import (
    EDGES,
    PARTS,
    F,
    N,
    Switch,
    X,
    check_equal,
    check_golden,
    check_refused,
    nothing_lost,
    refusal,
)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def checkpointed(x: Tensor, ei: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(torch.relu, x, use_reentrant=True)


def branch_on_features(x: Tensor, ei: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def loop_on_features(x: Tensor, ei: Tensor) -> Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


def every_row(x: Tensor, ei: Tensor) -> Tensor:
    return torch.stack([x[i] * i for i in range(x.size(0))])


def iterated(x: Tensor, ei: Tensor) -> Tensor:
    return torch.stack([row for row in x])


def written_in_place(x: Tensor, ei: Tensor, w: Tensor) -> Tensor:
    w.mul_(2)
    return x * w


def written_by_key(x: Tensor, ei: Tensor, w: Tensor) -> Tensor:
    w[:, 0] = 0
    return x * w


def augmented(x: Tensor, ei: Tensor, w: Tensor) -> Tensor:
    w += 1
    return x * w


CASES: dict[str, Callable[..., Any]] = {
    "int of a size": lambda x, ei: x / int(x.shape[0]),
    "math.sqrt of a size": lambda x, ei: x / math.sqrt(x.size(0)),
    "math.log of a size": lambda x, ei: x / math.log(x.size(0)),
    "float of a size": lambda x, ei: x * float(x.size(0)),
    "len": lambda x, ei: x / len(x),
    "torch.tensor of a size": lambda x, ei: x / torch.tensor(x.size(0)).sqrt(),
    "range over rows": every_row,
    "iteration over rows": iterated,
    "tolist": lambda x, ei: x * sum(x[:, 0].tolist()),
    "eye of a literal": lambda x, ei: torch.eye(N, dtype=x.dtype) @ x,
    "literal plus rows": lambda x, ei: torch.zeros(N, F, dtype=x.dtype) + x,
    "literal num_nodes": lambda x, ei: torch.zeros(N, F, dtype=x.dtype).index_add(0, ei[1], x[ei[0]]) + x,
    "edge_index.max() + 1": lambda x, ei: x.new_zeros(int(ei.max()) + 1, F).index_add(0, ei[1], x[ei[0]]) + x,
    "formatted size": lambda x, ei: [x, f"{x.size(0):4d} rows"][0],
    "numpy": lambda x, ei: x * torch.from_numpy(np.asarray(x.detach())),
    "branch on features": branch_on_features,
    "loop on features": loop_on_features,
    "item": lambda x, ei: x / x.norm().item(),
    "float of a tensor": lambda x, ei: x / float(x.max()),
    "bool of a parameter": lambda x, ei: x if bool(x[:, 0].any()) else -x,
    "autograd.Function": lambda x, ei: Doubled.apply(x),
    "reentrant checkpoint": checkpointed,
    "size returned": lambda x, ei: (x, x.size(0)),
    "size in a dict": lambda x, ei: {"out": x, "rows": x.size(0) * 2},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str) -> None:
    check_refused("python_values", case, CASES[case])


@pytest.mark.parametrize("step", [written_in_place, written_by_key, augmented])
def test_a_write_to_an_argument_is_refused_and_does_not_happen(step: Callable[..., Tensor]) -> None:
    w = torch.ones(N, F, dtype=torch.float64)
    check_refused("python_values", step.__name__, step, w)
    assert torch.equal(w, torch.ones_like(w))


def test_a_write_to_a_parameter_is_refused() -> None:
    class Renormed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(F, F, dtype=torch.float64)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            with torch.no_grad():
                self.lin.weight.clamp_(-0.1, 0.1)
            return self.lin(x)

    model = Renormed()
    compiled = sarc.compile(model, PARTS)
    with nothing_lost(model):
        check_golden("python_values", "write to a parameter", refusal(lambda: compiled(X, EDGES)))


def many_rows(x: Tensor, ei: Tensor) -> Tensor:
    return x * 2 if x.size(0) > 30 else x


def this_many_rows(x: Tensor, ei: Tensor) -> Tensor:
    return x * 2 if x.size(0) == N else x


def other_rows(x: Tensor, ei: Tensor) -> Tensor:
    return x * 2 if x.size(0) != N and ei.size(1) < 1000 else x / max(x.size(0), 50)


def asserted(x: Tensor, ei: Tensor) -> Tensor:
    assert x.shape[0] == N, "another graph"
    return x


def branch_on_structure(x: Tensor, ei: Tensor) -> Tensor:
    return x * 2 if int(ei.max()) > 3 else x


def local_write(x: Tensor, ei: Tensor) -> Tensor:
    out = x.clone()
    out[:, 0] = 0
    out += 1
    return out.mul_(2)


def unsupported_is_fine_on_replicated_values(x: Tensor, ei: Tensor) -> Tensor:
    return x * x.mean(0).sort().values.cumsum(0)


def sym_forms(x: Tensor, ei: Tensor) -> Tensor:
    return x / torch.sym_sqrt(x.size(0)) * (x.size(0) % 5) / torch.sym_max(x.size(0), 50) + x.size(0) ** -0.5


@pytest.mark.parametrize(
    "step",
    [
        many_rows, this_many_rows, other_rows, asserted, branch_on_structure, local_write,
        unsupported_is_fine_on_replicated_values, sym_forms,
    ],
)  # fmt: skip
def test_branches_on_counts_go_the_way_of_the_graph(step: Callable[..., Tensor]) -> None:
    model = Switch(step)
    check_equal(sarc.compile(model, PARTS), model, X, EDGES)


def test_a_formula_of_sizes_that_is_not_known_names_the_line() -> None:
    check_refused("python_values", "sym_int", lambda x, ei: x / torch.sym_int(x.size(0) * 1.5))


class Checked(nn.Module):
    """Raises errors of its own."""

    def __init__(self, how: str):
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)
        self.how = how

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.how == "raise":
            raise ValueError("this model wants twice the features")
        if self.how == "assert":
            assert x.size(1) == 2 * F, "twice the features"
        if self.how == "attribute":
            return self.lin(x.features)
        if self.how == "shape":
            return self.lin(torch.cat([x, x], 1))
        return self.lin(x)


@pytest.mark.parametrize(("how", "kind"), [("raise", ValueError), ("assert", AssertionError)])
def test_errors_the_model_raises_are_its_own(how: str, kind: type[Exception]) -> None:
    model = Checked(how)
    compiled = sarc.compile(model, PARTS)
    with nothing_lost(model), pytest.raises(kind, match="twice the features") as caught:
        compiled(X, EDGES)
    assert any("test_python_values.py:" in note for note in caught.value.__notes__)
    model.how = "well"
    check_equal(compiled, model, X, EDGES)


@pytest.mark.parametrize("how", ["attribute", "shape"])
def test_errors_in_the_model_are_the_cause(how: str) -> None:
    model = Checked(how)
    compiled = sarc.compile(model, PARTS)
    with nothing_lost(model):
        error = refusal(lambda: compiled(X, EDGES))
    check_golden("python_values", f"error: {how}", error)
    assert error.__cause__ is not None
    model.how = "well"
    check_equal(compiled, model, X, EDGES)
