"""Online softmax: one sweep over a row gives what two give, whatever the scores and wherever its blocks end."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from sarc.codegen import build
from sarc.codegen.body import Body
from sarc.codegen.online import find_online
from tests.codegen.edge_programs import Drawn, DrawnGraph, run_kernel, run_reference, tables
from tests.codegen.emulate import ORDERS, emulated

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")
DST, SCORES = 1, 5  # the column of the rows, and the operand that is an edge's scores
GIVEN = Drawn(2, 20, (("add", 0, 1),), (), softmax=True)
HUB = DrawnGraph(6, 150, 700, 4)
NOTHING, MOST = float("-inf"), float("inf")


def pairs(drawn: Drawn) -> list[int]:
    program = drawn.program(torch.float64)
    return list(find_online(Body(program, DST, tuple(range(len(program.results))))))


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ((), [0]),
        ((("score", 0, 1),), [0]),
        ((("dot", 0, 1), ("drop", 0, 0)), [0]),
        ((("dot", 0, 1), ("weigh", 0, 0), ("regroup", 0, 0)), [0]),
    ],
)
def test_a_softmax_is_found(steps: tuple, found: list[int]) -> None:
    """Its maximum, its sums, and a third sweep over the shares."""
    assert pairs(Drawn(2, 20, steps, (), softmax=True)) == found


def test_too_many_scores_keep_their_sweeps() -> None:
    """Maxima over the lanes are not agreed on a block."""
    assert pairs(Drawn(12, 5, (), (), softmax=True)) == []


def scores(kind: str, like: Tensor) -> Tensor:
    """Scores of the edges, in the order in which rows meet them."""
    made, growing = like.clone(), torch.linspace(-300, 300, like.numel(), dtype=like.dtype).view(like.shape)
    edges = len(like)
    if kind == "growing":
        return growing
    if kind == "falling":
        return -growing
    if kind == "huge":
        return made * 1e4
    if kind == "nothing":
        return torch.full_like(like, NOTHING)
    if kind == "nothing at first":
        made[: edges // 2] = NOTHING
    elif kind == "nothing for long":
        made[:-3] = NOTHING
        made[-3:] -= 1e3
    elif kind == "the most":
        made[edges // 2] = MOST
    elif kind == "no number":
        made[edges // 3] = float("nan")
    return made


KINDS = (
    "random", "growing", "falling", "huge", "nothing", "nothing at first", "nothing for long", "the most", "no number",
)  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", [HUB, DrawnGraph(9, 300, 0, 5)], ids=["hub", "no hub"])
def test_scores_of_any_kind(kind: str, graph: DrawnGraph) -> None:
    columns, program = graph.columns(), GIVEN.program(torch.float64)
    values = tables(program, graph.nodes, columns[0].numel())
    values[SCORES] = scores(kind, values[SCORES])
    expected = run_reference(program, columns, graph.nodes, values)
    found = [run_kernel(program, columns, graph.nodes, values, partial(emulated, order=order)) for order in ORDERS]
    for ours in found:
        for mine, theirs, same in zip(ours, expected, found[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10, equal_nan=True)
            assert torch.equal(mine.nan_to_num(7), same.nan_to_num(7))


@needs_compiler
def test_its_meetings_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarc.codegen.cuda_online.MEET", "")
    with pytest.raises(AssertionError):
        test_scores_of_any_kind("growing", HUB)
