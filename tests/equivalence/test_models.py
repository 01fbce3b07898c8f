"""Compiled with P parts, every model of the lists gives what it gives in plain PyTorch.

That is: outputs, the gradient of every parameter and of every float input, and buffers, in train and in eval mode.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from sarc.errors import UnsupportedModelError
from sarc.runtime.replay import draws
from tests.equivalence.case import Case, standard_cut
from tests.equivalence.compare import assert_same, check_mode, compile_case, observe, pair, values_for, worst
from tests.equivalence.model_lists import CASES, REFUSED, Refused, case_named
from tests.equivalence.tolerances import LOW_PRECISION_FACTOR

ALL = [case for group in CASES.values() for case in group]
# One of each kind of partitioned work: draws and softmax, contractions of edges, derived edges and counts, winners.
REPRESENTATIVE = ("GATConv dropout", "EdgeConv with batch norm on edges", "self loops replaced", "SAGEConv max")
PARTS = (1, 2, 3, 5, 8)


def listed(cases: list[Case]) -> list:
    return [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.slow else []) for c in cases]


def has_modes(module: nn.Module) -> bool:
    """Whether train and eval mode may differ."""
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    return any(isinstance(m, kinds) or getattr(m, "dropout", 0) for m in module.modules())


@pytest.mark.parametrize("case", listed(ALL))
def test_equals_plain(case: Case) -> None:
    """Four parts: two ordinary ones, an empty one and one of a single row."""
    plain, compiled, values = pair(case, standard_cut(4))
    check_mode(case, plain, compiled, values, train=True, gradients=True)
    check_mode(case, plain, compiled, values, train=False, gradients=False)
    if has_modes(plain):
        check_mode(case, plain, compiled, values, train=False, gradients=True)


@pytest.mark.parametrize("num_parts", PARTS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=c.name, marks=[] if c.name in REPRESENTATIVE else [pytest.mark.slow])
        for c in ALL
        if not c.slow
    ],
)
def test_any_number_of_parts(case: Case, num_parts: int) -> None:
    exchange = {2: "ring", 3: "sar", 5: "whole"}.get(num_parts, "auto")
    plain, compiled, values = pair(case, standard_cut(num_parts), exchange=exchange)
    check_mode(case, plain, compiled, values, train=True, gradients=True)


@pytest.mark.parametrize(
    "name", ["GATConv", "SAGEConv mean", "GCN with batch norm", "cross entropy of a mask", "LSTM over layers"]
)
def test_float32(name: str) -> None:
    case = case_named(name)
    plain, compiled, values = pair(case, standard_cut(4), torch.float32)
    check_mode(case, plain, compiled, values, train=True, gradients=True)


def test_bfloat16() -> None:
    """As near to the float64 result as plain bfloat16 is: a bound on reordered sums would exceed the values."""
    case, cut = case_named("SAGEConv mean"), standard_cut(4)
    exact, _, values = pair(case, cut)
    rounded, compiled, low = pair(case, cut, torch.bfloat16)
    expected = observe(case, exact, values)
    wide = lambda found: {k: v.double() for k, v in found.items()}  # noqa: E731
    ours, _ = worst(wide(observe(case, compiled, low)), expected)
    theirs, _ = worst(wide(observe(case, rounded, low)), expected)
    assert ours <= LOW_PRECISION_FACTOR * theirs


@pytest.mark.parametrize("name", ["GATConv dropout", "noise of every kind"])
def test_draws_do_not_depend_on_the_number_of_parts(name: str) -> None:
    case = case_named(name)
    found = []
    for num_parts in (1, 4):
        _, compiled, values = pair(case, standard_cut(num_parts))
        compiled.train()
        observed = observe(case, compiled, values)
        found.append((observed, draws(compiled)))
    (one, one_draws), (many, many_draws) = found
    assert len(one_draws) == len(many_draws) > 0
    assert all(torch.equal(a, b) for a, b in zip(one_draws, many_draws, strict=True))
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in itertools.combinations(one_draws, 2))
    error, what = worst(many, one)
    assert error <= 1e-12, what


def test_draws_follow_the_step() -> None:
    """Each call that draws is a step of its own; setting the step repeats one; evaluation draws nothing."""
    case = case_named("GATConv dropout")
    _, compiled, values = pair(case, standard_cut(2))
    compiled.train()
    first, second = observe(case, compiled, values), observe(case, compiled, values)
    assert compiled.step == 2
    assert worst(second, first)[0] > 1e-3
    compiled.step = 0
    assert_same(observe(case, compiled, values), first)
    compiled.eval()
    observe(case, compiled, values, gradients=False)
    assert compiled.step == 1


def test_seed_decides_the_draws() -> None:
    case = case_named("GATConv dropout")
    plain, compiled, values = pair(case, standard_cut(2))
    compiled.train()
    first = observe(case, compiled, values)
    other = compile_case(case, copy.deepcopy(plain), standard_cut(2), values)
    other.seed = 4
    other.train()
    assert worst(observe(case, other, values), first)[0] > 1e-3


def test_kept_fraction_of_dropout() -> None:
    """A wrong comparison would swap p and 1 - p: the share of zeros over many entries tells (4 standard errors)."""
    cut = standard_cut(2)
    case = Case("dropout", lambda: nn.Dropout(0.2), "x")
    _, compiled, values = pair(case, cut)
    compiled.train()
    kept = torch.stack([compiled(values["x"]) != 0 for _ in range(60)]).double()
    assert abs(float(kept.mean()) - 0.8) < 4 * (0.2 * 0.8 / kept.numel()) ** 0.5


@pytest.mark.parametrize("refused", [pytest.param(r, id=r.case.name) for r in REFUSED])
def test_refused(refused: Refused) -> None:
    case, cut = refused.case, standard_cut(3)
    module, values = case.make().double(), values_for(case, cut)
    compiled = compile_case(case, module, cut, values)
    with pytest.raises(UnsupportedModelError, match=refused.reason):
        case.call(compiled, values)
