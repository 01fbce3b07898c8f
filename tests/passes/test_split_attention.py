"""split-attention: linear maps of several gathered rows come apart, products of rows do not."""

from __future__ import annotations

import pytest

from sarc.ir.print import format_program
from sarc.passes.forward.split_attention import SplitAttention
from tests.passes.rewrites import assert_same_numbers, program, targets

INPUTS = """%x: f64[N, 4] = input arg x
%y: f64[N, 4] = input arg y
%h: f64[N, 2, 4] = input arg h
%e: f64[E, 3] = input arg e
%w: f64[4, 2] = input param w
%w8: f64[8, 2] = input param w8
%w11: f64[11, 2] = input param w11
%att: f64[1, 2, 8] = input param att
%src: i64[E] = input arg src
%dst: i64[E] = input arg dst
%xi: f64[E, 4] = sarc.gather(%x, %dst, 0)
%xj: f64[E, 4] = sarc.gather(%x, %src, 0)
%yj: f64[E, 4] = sarc.gather(%y, %src, 0)
%hi: f64[E, 2, 4] = sarc.gather(%h, %dst, 0)
%hj: f64[E, 2, 4] = sarc.gather(%h, %src, 0)
"""

# What is written, then how often the rows of edges are contracted and which operators add up the parts.
SPLITS = {
    "a pair": ("%c: f64[E, 8] = aten.cat([%xi, %xj], 1)\n%m: f64[E, 2] = aten.mm(%c, %w8)", 2, ["add"]),
    "a pair and an edge": (
        "%c: f64[E, 11] = aten.cat([%xi, %e, %xj], -1)\n%m: f64[E, 2] = aten.mm(%c, %w11)",
        3,
        ["add", "add"],
    ),
    "a row and the difference to another": (
        "%d: f64[E, 4] = aten.sub.Tensor(%xj, %xi)\n%c: f64[E, 8] = aten.cat([%xi, %d], 1)\n"
        "%m: f64[E, 2] = aten.mm(%c, %w8)",
        2,
        ["sub", "add"],
    ),
    "a negated difference": (
        "%d: f64[E, 4] = aten.sub.Tensor(%xj, %xi)\n%n: f64[E, 4] = aten.neg(%d)\n%m: f64[E, 2] = aten.mm(%n, %w)",
        2,
        ["sub"],
    ),
    "two rows of one column": (
        "%s: f64[E, 4] = aten.add.Tensor(%xj, %xi)\n%t: f64[E, 4] = aten.sub.Tensor(%s, %yj)\n"
        "%m: f64[E, 2] = aten.mm(%t, %w)",
        3,
        ["sub", "add"],
    ),
    "heads": (
        "%c: f64[E, 2, 8] = aten.cat([%hi, %hj], 2)\n%p: f64[E, 2, 8] = aten.mul.Tensor(%c, %att)\n"
        "%m: f64[E, 2] = aten.sum.dim_IntList(%p, [-1])",
        2,
        ["add"],
    ),
    "through a view": (
        "%a: f64[E, 1, 4] = aten.unsqueeze(%xi, 1)\n%b: f64[E, 1, 4] = aten.unsqueeze(%xj, 1)\n"
        "%c: f64[E, 1, 8] = aten.cat([%a, %b], 2)\n%v: f64[E, 8] = aten.squeeze.dims(%c, [1])\n"
        "%m: f64[E, 2] = aten.mm(%v, %w8)",
        2,
        ["add"],
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_parts_are_contracted_apart(name: str) -> None:
    lines, contractions, sums = SPLITS[name]
    before = program(
        f"{INPUTS}{lines}\n%out: f64[N, 2] = sarc.reduce(%m, %dst, 0, |N|, 'sum')\nreturn result 0 = %out\n"
    )
    text = format_program(before)
    after = SplitAttention().run(before)
    found = targets(after)
    assert sum(op in ("mm", "sum") for op in found) == contractions
    assert sorted(op for op in found if op in ("add", "sub")) == sorted(sums)
    assert "cat" not in found
    assert format_program(before) == text
    assert SplitAttention().run(after) is after
    assert_same_numbers(after, before)


def test_a_concatenation_that_something_else_reads_stays_for_it() -> None:
    lines, _, _ = SPLITS["a pair"]
    before = program(f"{INPUTS}{lines}\nreturn result 0 = %m\nreturn result 1 = %c\n")
    after = SplitAttention().run(before)
    assert targets(after).count("mm") == 2 and "cat" in targets(after)
    assert_same_numbers(after, before)


STAYS = {
    "one column": "%c: f64[E, 8] = aten.cat([%xj, %yj], 1)\n%m: f64[E, 2] = aten.mm(%c, %w8)",
    "edges alone": "%c: f64[E, 6] = aten.cat([%e, %e], 1)\n%m: f64[E] = aten.sum.dim_IntList(%c, [1])",
    "a dot product": "%p: f64[E, 4] = aten.mul.Tensor(%xi, %xj)\n%m: f64[E] = aten.sum.dim_IntList(%p, [1])",
    "not linear": (
        "%c: f64[E, 8] = aten.cat([%xi, %xj], 1)\n%r: f64[E, 8] = aten.relu(%c)\n%m: f64[E, 2] = aten.mm(%r, %w8)"
    ),
    "a sum over heads": (
        "%c: f64[E, 2, 8] = aten.cat([%hi, %hj], 2)\n%p: f64[E, 2, 8] = aten.mul.Tensor(%c, %att)\n"
        "%m: f64[E, 8] = aten.sum.dim_IntList(%p, [1])"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_the_same_object_comes_back_without(name: str) -> None:
    before = program(f"{INPUTS}{STAYS[name]}\nreturn result 0 = %m\n")
    assert SplitAttention().run(before) is before
