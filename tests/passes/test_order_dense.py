"""order-dense: rows are gathered in the narrower width, in both directions, and only where nothing else reads them."""

from __future__ import annotations

import pytest

from sarc.ir.dialect import GATHER
from sarc.ir.print import format_program
from sarc.ir.program import Program, type_of
from sarc.passes.forward.order_dense import OrderDense
from tests.passes.rewrites import assert_same_numbers, program, targets

INPUTS = """%x: f64[N, 8] = input arg x
%y: f64[N, 2] = input arg y
%w: f64[8, 2] = input param w
%u: f64[2, 8] = input param u
%v: f64[8, 8] = input param v
%b: f64[8] = input param b
%e: f64[E, 1] = input arg e
%f: f64[E, 8] = input arg f
%k: f64[N, 1] = input arg k
%src: i64[E] = input arg src
%dst: i64[E] = input arg dst
"""
HOP = """%xj: f64[E, 8] = sarc.gather(%x, %src, 0)
%s: f64[N, 8] = sarc.reduce(%xj, %dst, 0, |N|, 'sum')
"""

# What is written, then the operators that are left.
ORDERS = {
    "a sum": (HOP + "%out: f64[N, 2] = aten.mm(%s, %w)", ["mm", "gather", "reduce"]),
    "a mean, negated": (
        HOP + "%n: f64[N, 8] = aten.neg(%s)\n%kk: f64[N, 8] = aten.expand(%k, [|N|, 8])\n"
        "%m: f64[N, 8] = aten.mul.Tensor(%kk, %n)\n%h: f64[N, 8] = aten.div.Tensor(%m, 2.0)\n"
        "%out: f64[N, 2] = aten.mm(%h, %w)",
        ["mm", "gather", "reduce", "neg", "mul", "div"],
    ),
    "two hops": (
        HOP + "%sj: f64[E, 8] = sarc.gather(%s, %src, 0)\n%m: f64[E, 8] = aten.mul.Tensor(%e, %sj)\n"
        "%t: f64[N, 8] = sarc.reduce(%m, %dst, 0, |N|, 'sum')\n%out: f64[N, 2] = aten.mm(%t, %w)",
        ["mm", "gather", "reduce", "gather", "mul", "reduce"],
    ),
    "a wide product of narrow rows": (
        "%p: f64[N, 8] = aten.mm(%y, %u)\n%pj: f64[E, 8] = sarc.gather(%p, %src, 0)\n"
        "%m: f64[E, 8] = aten.mul.Tensor(%pj, %e)\n%out: f64[N, 8] = sarc.reduce(%m, %dst, 0, |N|, 'sum')",
        ["gather", "mul", "reduce", "mm"],
    ),
    "a wide product over two hops": (
        "%p: f64[N, 8] = aten.mm(%y, %u)\n%pj: f64[E, 8] = sarc.gather(%p, %src, 0)\n"
        "%q: f64[N, 8] = sarc.reduce(%pj, %dst, 0, |N|, 'sum')\n%qj: f64[E, 8] = sarc.gather(%q, %dst, 0)\n"
        "%out: f64[N, 8] = sarc.reduce(%qj, %src, 0, |N|, 'sum')",
        ["gather", "reduce", "gather", "reduce", "mm"],
    ),
}


def program_of(lines: str, returns: str = "") -> Program:
    return program(f"{INPUTS}{lines}\nreturn result 0 = %out\n{returns}")


@pytest.mark.parametrize("name", ORDERS)
def test_the_narrower_rows_are_gathered(name: str) -> None:
    lines, left = ORDERS[name]
    before = program_of(lines)
    text = format_program(before)
    after = OrderDense().run(before)
    assert targets(after) == left
    assert {str(type_of(n)) for n in after.graph.nodes if n.target is GATHER} == {"f64[E, 2]"}
    assert format_program(before) == text
    assert OrderDense().run(after) is after
    assert_same_numbers(after, before)


STAYS = {
    "equal widths": HOP + "%out: f64[N, 8] = aten.mm(%s, %v)",
    "narrow rows already": (
        "%p: f64[N, 2] = aten.mm(%x, %w)\n%pj: f64[E, 2] = sarc.gather(%p, %src, 0)\n"
        "%out: f64[N, 2] = sarc.reduce(%pj, %dst, 0, |N|, 'sum')"
    ),
    "weights of each feature": (
        "%xj: f64[E, 8] = sarc.gather(%x, %src, 0)\n%m: f64[E, 8] = aten.mul.Tensor(%xj, %f)\n"
        "%s: f64[N, 8] = sarc.reduce(%m, %dst, 0, |N|, 'sum')\n%out: f64[N, 2] = aten.mm(%s, %w)"
    ),
    "a bias before the gather": (
        "%p: f64[N, 8] = aten.mm(%y, %u)\n%pb: f64[N, 8] = aten.add.Tensor(%p, %b)\n"
        "%pj: f64[E, 8] = sarc.gather(%pb, %src, 0)\n%out: f64[N, 8] = sarc.reduce(%pj, %dst, 0, |N|, 'sum')"
    ),
    "a maximum": (
        "%xj: f64[E, 8] = sarc.gather(%x, %src, 0)\n%s: f64[N, 8] = sarc.reduce(%xj, %dst, 0, |N|, 'amax')\n"
        "%k8: f64[N, 8] = aten.tanh(%s)\n%out: f64[N, 2] = aten.mm(%k8, %w)"
    ),
    "an activation": HOP + "%r: f64[N, 8] = aten.relu(%s)\n%out: f64[N, 2] = aten.mm(%r, %w)",
    "rows of a maximum of nothing": (
        "%t: f64[N, 8] = sarc.reduce(%f, %dst, 0, |N|, 'amax')\n%tj: f64[E, 8] = sarc.gather(%t, %dst, 0)\n"
        "%s: f64[N, 8] = sarc.reduce(%tj, %src, 0, |N|, 'sum')\n%out: f64[N, 2] = aten.mm(%s, %w)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_the_same_object_comes_back_without(name: str) -> None:
    before = program_of(STAYS[name])
    assert OrderDense().run(before) is before


@pytest.mark.parametrize(("name", "read"), [("a sum", "s"), ("a wide product of narrow rows", "p")])
def test_what_something_else_reads_stays(name: str, read: str) -> None:
    before = program_of(ORDERS[name][0], f"return result 1 = %{read}\n")
    assert OrderDense().run(before) is before


def test_a_table_that_something_else_reads_may_be_multiplied() -> None:
    before = program_of(ORDERS["a sum"][0] + "\n%z: f64[N, 8] = aten.tanh(%x)", "return result 1 = %z\n")
    after = OrderDense().run(before)
    assert after is not before
    assert_same_numbers(after, before)
