"""factor-folds: softmaxes of every dialect share a traversal, empty rows stay 0, and nothing else is moved."""

from __future__ import annotations

import pytest
import torch

from sarc.ir.dialect import REDUCE
from sarc.ir.edge_program import edge_call
from sarc.ir.print import format_program
from sarc.ir.program import Program, type_of
from sarc.passes.forward.bind import bind
from sarc.passes.forward.factor_folds import FactorFolds
from sarc.passes.joint.fuse_edge_programs import FuseEdgePrograms
from tests.ir.stages import compiled
from tests.passes.rewrites import assert_same_numbers, program

INPUTS = """%p: f64[N, 2] = input arg p
%z: f64[N, 2, 3] = input arg z
%src: i64[E] = input arg src
%dst: i64[E] = input arg dst
%rng: i64[2] = input rng rng
"""
EXPONENTIALS = """%l: f64[E, 2] = sarc.gather(%p, %src, 0)
%top: f64[N, 2] = sarc.reduce(%l, %dst, 0, |N|, 'amax')
%gt: f64[E, 2] = sarc.gather(%top, %dst, 0)
%d: f64[E, 2] = aten.sub.Tensor(%l, %gt)
%e: f64[E, 2] = aten.exp(%d)
%s: f64[N, 2] = sarc.reduce(%e, %dst, 0, |N|, 'sum')
"""
MESSAGES = """%u: f32[E, 2] = sarc.uniform(%rng, [|E|, 2], 0)
%keep: bool[E, 2] = aten.lt.Scalar(%u, 0.5)
%dropped: f64[E, 2] = aten.mul.Tensor(%a, %keep)
%scaled: f64[E, 2] = aten.mul.Tensor(%dropped, 2.0)
%wide: f64[E, 2, 1] = aten.unsqueeze(%scaled, -1)
%zj: f64[E, 2, 3] = sarc.gather(%z, %src, 0)
%m: f64[E, 2, 3] = aten.mul.Tensor(%zj, %wide)
%out: f64[N, 2, 3] = sarc.reduce(%m, %dst, 0, |N|, 'sum')
"""
SOFTMAXES = {
    "no epsilon": """%g: f64[E, 2] = sarc.gather(%s, %dst, 0)
%a: f64[E, 2] = aten.div.Tensor(%e, %g)
""",
    "epsilon": """%t: f64[N, 2] = aten.add.Tensor(%s, 1e-16)
%g: f64[E, 2] = sarc.gather(%t, %dst, 0)
%a: f64[E, 2] = aten.div.Tensor(%e, %g)
""",
    "reciprocal": """%t: f64[N, 2] = aten.reciprocal(%s)
%g: f64[E, 2] = sarc.gather(%t, %dst, 0)
%a: f64[E, 2] = aten.mul.Tensor(%g, %e)
""",
    "negated, divided twice": """%g: f64[E, 2] = sarc.gather(%s, %dst, 0)
%n: f64[E, 2] = aten.neg(%e)
%b: f64[E, 2] = aten.div.Tensor(%n, %g)
%a: f64[E, 2] = aten.div.Tensor(%b, %g)
""",
    "divisor of a divisor": """%g: f64[E, 2] = sarc.gather(%s, %dst, 0)
%b: f64[E, 2] = aten.div.Tensor(%g, %e)
%a: f64[E, 2] = aten.div.Tensor(2.0, %b)
""".replace("aten.div.Tensor(2.0, %b)", "aten.div.Tensor(%e, %b)"),
}


def softmax(kind: str, returns: str = "return result 0 = %out\n") -> Program:
    return program(INPUTS + EXPONENTIALS + SOFTMAXES[kind] + MESSAGES + returns)


def traversals(step: Program) -> list[int]:
    """The number of folds in each edge program."""
    fused = FuseEdgePrograms().run(step)
    return [len(n.args[0].results) for n in fused.graph.nodes if n.target is edge_call]


@pytest.mark.parametrize("kind", SOFTMAXES)
def test_the_sum_and_the_weighted_sum_share_a_traversal(kind: str) -> None:
    before = softmax(kind)
    text = format_program(before)
    after = FactorFolds().run(before)
    assert traversals(bind(before)[1]) == [1, 1, 1]
    assert traversals(bind(after)[1]) == [1, 2]
    assert format_program(before) == text
    assert FactorFolds().run(after) is after
    assert_same_numbers(after, before)


@pytest.mark.parametrize("kind, guards", [("no epsilon", 1), ("epsilon", 0)])
def test_a_guard_stands_only_where_empty_rows_would_show(kind: str, guards: int) -> None:
    after = FactorFolds().run(softmax(kind))
    assert sum(n.target is torch.ops.aten.where.self for n in after.graph.nodes) == guards
    structure, _ = bind(after)
    assert sum(n.target is REDUCE for n in structure.graph.nodes) == guards


def test_attention_weights_that_are_returned_keep_their_chain() -> None:
    before = softmax("no epsilon", "return result 0 = %out\nreturn result 1 = %scaled\n")
    after = FactorFolds().run(before)
    assert traversals(bind(after)[1])[:2] == [1, 2]
    assert_same_numbers(after, before)


def test_views_are_applied_to_the_factor() -> None:
    before = program(
        INPUTS.replace("%rng: i64[2] = input rng rng\n", "")
        + EXPONENTIALS
        + """%g: f64[E, 2] = sarc.gather(%s, %dst, 0)
%a: f64[E, 2] = aten.div.Tensor(%e, %g)
%wide: f64[E, 2, 1] = aten.reshape(%a, [|E|, 2, 1])
%wider: f64[E, 2, 3] = aten.expand(%wide, [|E|, 2, 3])
%flat: f64[E, 6] = aten.reshape(%wider, [|E|, 6])
%zj: f64[E, 2, 3] = sarc.gather(%z, %src, 0)
%zf: f64[E, 6] = aten.reshape(%zj, [|E|, 6])
%m: f64[E, 6] = aten.mul.Tensor(%zf, %flat)
%up: f64[1, E, 6] = aten.unsqueeze(%m, 0)
%out: f64[1, N, 6] = sarc.reduce(%up, %dst, 1, |N|, 'sum')
return result 0 = %out
"""
    )
    after = FactorFolds().run(before)
    assert traversals(bind(after)[1]) == [1, 2]
    assert_same_numbers(after, before)


def test_a_factor_alone_is_counted() -> None:
    before = program(
        """%l: f64[E, 2] = input arg l
%dst: i64[E] = input arg dst
%s: f64[N, 2] = sarc.reduce(%l, %dst, 0, |N|, 'sum')
%g: f64[E, 2] = sarc.gather(%s, %dst, 0)
%out: f64[N, 2] = sarc.reduce(%g, %dst, 0, |N|, 'sum')
return result 0 = %out
"""
    )
    after = FactorFolds().run(before)
    assert traversals(bind(after)[1]) == [1]
    assert_same_numbers(after, before)


def test_a_narrow_rest_is_folded_narrow() -> None:
    before = program(
        """%w: f64[E, 1] = input arg w
%z: f64[N, 3] = input arg z
%src: i64[E] = input arg src
%dst: i64[E] = input arg dst
%zj: f64[E, 3] = sarc.gather(%z, %src, 0)
%s: f64[N, 3] = sarc.reduce(%zj, %dst, 0, |N|, 'sum')
%g: f64[E, 3] = sarc.gather(%s, %dst, 0)
%m: f64[E, 3] = aten.mul.Tensor(%g, %w)
%out: f64[N, 3] = sarc.reduce(%m, %dst, 0, |N|, 'sum')
return result 0 = %out
"""
    )
    after = FactorFolds().run(before)
    assert [str(type_of(n)) for n in after.graph.nodes if n.target is REDUCE and n.args[4] == "sum"] == [
        "f64[N, 3]",
        "f64[N, 1]",
    ]
    assert_same_numbers(after, before)


STAYS = {
    "a degree": """%x: f64[N] = input arg x
%src: i64[E] = input arg src
%dst: i64[E] = input arg dst
%ones: f64[E] = aten.full([|E|], 1, dtype=f64)
%t: f64[N] = sarc.reduce(%ones, %dst, 0, |N|, 'sum')
%xj: f64[E] = sarc.gather(%x, %src, 0)
%g: f64[E] = sarc.gather(%t, %dst, 0)
%m: f64[E] = aten.div.Tensor(%xj, %g)
%out: f64[N] = sarc.reduce(%m, %dst, 0, |N|, 'sum')
return result 0 = %out
""",
    "another column": """%l: f64[E] = input arg l
%src: i64[E] = input arg src
%dst: i64[E] = input arg dst
%t: f64[N] = sarc.reduce(%l, %dst, 0, |N|, 'sum')
%g: f64[E] = sarc.gather(%t, %src, 0)
%m: f64[E] = aten.mul.Tensor(%l, %g)
%out: f64[N] = sarc.reduce(%m, %dst, 0, |N|, 'sum')
return result 0 = %out
""",
    "a summand": """%l: f64[E] = input arg l
%dst: i64[E] = input arg dst
%t: f64[N] = sarc.reduce(%l, %dst, 0, |N|, 'sum')
%g: f64[E] = sarc.gather(%t, %dst, 0)
%m: f64[E] = aten.sub.Tensor(%l, %g)
%out: f64[N] = sarc.reduce(%m, %dst, 0, |N|, 'sum')
return result 0 = %out
""",
    "a maximum": """%l: f64[E] = input arg l
%dst: i64[E] = input arg dst
%t: f64[N] = sarc.reduce(%l, %dst, 0, |N|, 'sum')
%g: f64[E] = sarc.gather(%t, %dst, 0)
%m: f64[E] = aten.mul.Tensor(%l, %g)
%out: f64[N] = sarc.reduce(%m, %dst, 0, |N|, 'amax')
return result 0 = %out
""",
}


@pytest.mark.parametrize("name", STAYS)
def test_the_same_object_comes_back_without(name: str) -> None:
    before = program(STAYS[name])
    assert FactorFolds().run(before) is before


@pytest.mark.parametrize("name", ["gat", "gat-dropout", "gatv2-edges", "transformer"])
def test_attention_layers_take_two_traversals_forward_and_one_backward(name: str) -> None:
    made = compiled(name)
    layers = sum(n.target is REDUCE and n.args[4] == "amax" for n in made.programs["joint"].graph.nodes)
    for stage, each in (("forward", 2), ("backward", 1)):
        folds = [n.args[0] for n in made.programs[stage].graph.nodes if n.target is edge_call]
        reducing = [p for p in folds if any(r.kind == "reduce" for r in p.results)]
        averages = sum(p.space not in ("S1",) and name == "gatv2-edges" for p in reducing)
        assert len(reducing) - averages == each * layers, stage
