"""hoist-rowwise: what one row of nodes decides is computed on the nodes; the rest stays on the edges."""

from __future__ import annotations

import pytest
import torch

from sarc.ir.dialect import GATHER
from sarc.ir.print import format_program
from sarc.ir.program import Program, type_of
from sarc.passes.forward.hoist_rowwise import HoistRowwise
from sarc.passes.forward.split_attention import SplitAttention
from tests.ir.stages import compiled
from tests.passes.rewrites import assert_same_numbers, program

INPUTS = """%x: f64[N, 4] = input arg x
%y: f64[N, 1] = input arg y
%h: f64[N, 2, 4] = input arg h
%e: f64[E, 4] = input arg e
%w: f64[4, 8] = input param w
%b: f64[4] = input param b
%att: f64[1, 2, 4] = input param att
%src: i64[E] = input arg src
%dst: i64[E] = input arg dst
%rng: i64[2] = input rng rng
%xi: f64[E, 4] = sarc.gather(%x, %dst, 0)
%xj: f64[E, 4] = sarc.gather(%x, %src, 0)
%yj: f64[E, 1] = sarc.gather(%y, %src, 0)
%hj: f64[E, 2, 4] = sarc.gather(%h, %src, 0)
"""

# What is written, then the types of the rows that are gathered.
MOVES = {
    "a product with weights": ("%m: f64[E, 8] = aten.mm(%xj, %w)", ["f64[E, 8]"]),
    "a score of each head": (
        "%p: f64[E, 2, 4] = aten.mul.Tensor(%hj, %att)\n%m: f64[E, 2] = aten.sum.dim_IntList(%p, [-1])",
        ["f64[E, 2]"],
    ),
    "a score beside its rows": (
        "%p: f64[E, 2, 4] = aten.mul.Tensor(%hj, %att)\n%s: f64[E, 2] = aten.sum.dim_IntList(%p, [-1])\n"
        "%u: f64[E, 2, 1] = aten.unsqueeze(%s, 2)\n%v: f64[E, 2, 1] = aten.exp(%u)\n"
        "%m: f64[E, 2, 4] = aten.mul.Tensor(%v, %hj)",
        ["f64[E, 2, 1]", "f64[E, 2, 4]"],
    ),
    "a bias and a tanh": (
        "%a: f64[E, 4] = aten.add.Tensor(%xj, %b)\n%m: f64[E, 4] = aten.tanh(%a)",
        ["f64[E, 4]"],
    ),
    "two tables of one column": ("%m: f64[E, 4] = aten.mul.Tensor(%xj, %yj)", ["f64[E, 4]"]),
    "a choice": (
        "%c: bool[E, 4] = aten.gt.Scalar(%xj, 0)\n%z: f64[E, 4] = aten.full([|E|, 4], 0, dtype=f64)\n"
        "%m: f64[E, 4] = aten.where.self(%c, %xj, %z)\n",
        ["f64[E, 4]"],
    ),
}


def program_of(lines: str) -> Program:
    dims = type_of(next(reversed(program(f"{INPUTS}{lines}\nreturn result 0 = %m\n").returned))).dims
    shape = ", ".join(["N", *map(str, dims[1:])])
    fold = f"%out: f64[{shape}] = sarc.reduce(%m, %dst, 0, |N|, 'sum')\nreturn result 0 = %out\n"
    return program(f"{INPUTS}{lines}\n{fold}")


def gathered(found: Program) -> list[str]:
    return sorted(str(type_of(n)) for n in found.graph.nodes if n.target is GATHER and n.users)


@pytest.mark.parametrize("name", MOVES)
def test_one_column_is_computed_on_the_nodes(name: str) -> None:
    lines, rows = MOVES[name]
    before = program_of(lines)
    text = format_program(before)
    after = HoistRowwise().run(before)
    assert gathered(after) == rows
    assert format_program(before) == text
    assert HoistRowwise().run(after) is after
    assert_same_numbers(after, before)


STAYS = {
    "two columns": "%m: f64[E, 4] = aten.add.Tensor(%xi, %xj)",
    "an edge's own row": "%m: f64[E, 4] = aten.mul.Tensor(%xj, %e)",
    "a random draw": (
        "%u: f32[E, 4] = sarc.uniform(%rng, [|E|, 4], 0)\n%k: bool[E, 4] = aten.lt.Scalar(%u, 0.5)\n"
        "%m: f64[E, 4] = aten.mul.Tensor(%xj, %k)"
    ),
    "a wider row": "%m: f64[E, 4] = aten.mul.Tensor(%yj, %b)",
    "a cheap operator beside its rows": (
        "%r: f64[E, 4] = aten.relu(%xj)\n%s: f64[E, 4] = aten.mul.Tensor(%r, %xi)\n"
        "%m: f64[E, 4] = aten.add.Tensor(%s, %xj)"
    ),
    "a logarithm": "%m: f64[E, 4] = aten.log(%xj)",
    "a quotient of rows": "%m: f64[E, 4] = aten.div.Tensor(%xj, %yj)",
    "a maximum of nothing": (
        "%t: f64[N, 4] = sarc.reduce(%xj, %dst, 0, |N|, 'amax')\n%g: f64[E, 4] = sarc.gather(%t, %dst, 0)\n"
        "%m: f64[E, 4] = aten.mul.Tensor(%g, %b)"
    ),
    "a mean of nothing": (
        "%o: f64[E, 1] = aten.full([|E|, 1], 1, dtype=f64)\n%n: f64[N, 1] = sarc.reduce(%o, %dst, 0, |N|, 'sum')\n"
        "%s: f64[N, 4] = sarc.reduce(%xj, %dst, 0, |N|, 'sum')\n%t: f64[N, 4] = aten.div.Tensor(%s, %n)\n"
        "%g: f64[E, 4] = sarc.gather(%t, %dst, 0)\n%m: f64[E, 4] = aten.mul.Tensor(%g, %b)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_the_same_object_comes_back_without(name: str) -> None:
    before = program_of(STAYS[name])
    assert HoistRowwise().run(before) is before


def test_a_mean_of_at_least_one_row_is_moved() -> None:
    lines = STAYS["a mean of nothing"].replace(
        "%t: f64[N, 4] = aten.div.Tensor(%s, %n)",
        "%k: f64[N, 1] = aten.clamp(%n, 1)\n%t: f64[N, 4] = aten.div.Tensor(%s, %k)",
    )
    before = program_of(lines)
    after = HoistRowwise().run(before)
    assert after is not before
    assert_same_numbers(after, before)


def test_attention_by_hand_gathers_two_scalars_and_one_row() -> None:
    step = compiled("attention").programs["step"]
    assert gathered(step) == ["f64[E, 1]", "f64[E, 1]", "f64[E, 4]", "f64[E]"]


def test_the_first_linear_of_an_edge_network_runs_on_the_nodes() -> None:
    raised = compiled("edge-conv").programs["raised"]
    after = HoistRowwise().run(SplitAttention().run(raised))
    products = [n for n in after.graph.nodes if n.target is torch.ops.aten.mm.default]
    assert [str(type_of(n)) for n in products] == ["f64[N, 3]", "f64[N, 3]"]
