"""simplify: each rule at work, values and gradients kept, and what looks like a case but is none."""

from __future__ import annotations

import pytest
import torch

from sarc.ir.print import format_program
from sarc.passes.joint.simplify import Simplify
from tests.ir.stages import MODELS, compiled
from tests.passes.rewrites import assert_same_numbers, program, targets

INPUTS = """%x: f64[N, 4] = input arg x
%y: f64[N, 4] = input arg y
%w: f64[1, 4] = input param w
%k: f64[N, 1] = input arg k
%e: f64[E, 4] = input arg e
%src: i64[E] = input arg src
%dst: i64[E] = input arg dst
"""

# What is written, then the operators that are left.
RULES = {
    "a neutral factor": ("%out: f64[N, 4] = aten.mul.Tensor(%x, 1.0)", []),
    "a neutral divisor": ("%out: f64[N, 4] = aten.div.Tensor(%x, 1)", []),
    "a neutral summand": ("%out: f64[N, 4] = aten.sub.Tensor(%x, 0)", []),
    "full ones": (
        "%o: f64[N, 4] = aten.full([|N|, 4], 1, dtype=f64)\n%out: f64[N, 4] = aten.mul.Tensor(%o, %x)",
        [],
    ),
    "full zeros": (
        "%o: f64[N, 4] = aten.full([|N|, 4], 0, dtype=f64)\n%out: f64[N, 4] = aten.add.Tensor(%x, %o)",
        [],
    ),
    "a negation twice": ("%n: f64[N, 4] = aten.neg(%x)\n%out: f64[N, 4] = aten.neg(%n)", []),
    "a negated summand": ("%n: f64[N, 4] = aten.neg(%x)\n%out: f64[N, 4] = aten.add.Tensor(%n, %y)", ["sub"]),
    "a negated subtrahend": ("%n: f64[N, 4] = aten.neg(%x)\n%out: f64[N, 4] = aten.sub.Tensor(%y, %n)", ["add"]),
    "a negated factor meets a sum": (
        "%n: f64[N, 4] = aten.neg(%x)\n%m: f64[N, 4] = aten.mul.Tensor(%n, %w)\n"
        "%out: f64[N, 4] = aten.add.Tensor(%y, %m)",
        ["mul", "sub"],
    ),
    "a negated fold": (
        "%n: f64[E, 4] = aten.neg(%e)\n%r: f64[N, 4] = sarc.reduce(%n, %dst, 0, |N|, 'sum')\n"
        "%out: f64[N, 4] = aten.add.Tensor(%r, %x)",
        ["reduce", "sub"],
    ),
    "scaled twice": ("%s: f64[N, 4] = aten.mul.Tensor(%x, 2.0)\n%out: f64[N, 4] = aten.mul.Tensor(%s, 0.5)", []),
    "a scaled factor of a narrower one": (
        "%s: f64[N, 4] = aten.mul.Tensor(%x, 3.0)\n%out: f64[N, 4] = aten.mul.Tensor(%s, %k)",
        ["mul", "mul"],
    ),
    "a divided factor of a narrower one": (
        "%s: f64[N, 4] = aten.div.Tensor(%x, 3.0)\n%out: f64[N, 4] = aten.mul.Tensor(%k, %s)",
        ["div", "mul"],
    ),
    "a divided dividend of a narrower divisor": (
        "%s: f64[N, 4] = aten.div.Tensor(%x, 3.0)\n%out: f64[N, 4] = aten.div.Tensor(%s, %w)",
        ["mul", "div"],
    ),
    "a scaled factor of a sum": (
        "%s: f64[N, 4] = aten.div.Tensor(%x, 3.0)\n%u: f64[N, 1, 4] = aten.unsqueeze(%s, 1)\n"
        "%z: f64[N, 1, 4] = aten.unsqueeze(%y, 1)\n%m: f64[N, 1, 4] = aten.mul.Tensor(%z, %u)\n"
        "%out: f64[N, 1] = aten.sum.dim_IntList(%m, [2])",
        ["unsqueeze", "unsqueeze", "mul", "sum", "div"],
    ),
    "the gradient behind a relu meets what it was made of": (
        "%a: f64[N, 4] = aten.exp(%x)\n%v: f64[4] = aten.reshape(%w, [4])\n%b: f64[N, 4] = aten.add.Tensor(%a, %v)\n"
        "%r: f64[N, 4] = aten.relu(%b)\n%c: bool[N, 4] = aten.le.Scalar(%r, 0)\n"
        "%z: f64[] = aten.full([], 0, dtype=f64)\n"
        "%g: f64[N, 4] = aten.where.self(%c, %z, %y)\n%u: f64[N, 2, 2] = aten.reshape(%g, [|N|, 2, 2])\n"
        "%t: f64[N, 2, 2] = aten.reshape(%a, [|N|, 2, 2])\n%k2: f64[N, 1, 1] = aten.unsqueeze(%k, 1)\n"
        "%d: f64[N, 2, 2] = aten.div.Tensor(%t, %k2)\n%out: f64[N, 2, 2] = aten.mul.Tensor(%d, %u)",
        ["exp", "reshape", "add", "relu", "le", "full", "where", "reshape", "unsqueeze", "reshape", "reshape", "sub",
         "div", "mul"],
    ),
    "the gradient behind a relu meets its operand": (
        "%a: f64[N, 4] = aten.exp(%x)\n%r: f64[N, 4] = aten.relu(%a)\n%c: bool[N, 4] = aten.le.Scalar(%r, 0)\n"
        "%z: f64[] = aten.full([], 0, dtype=f64)\n%g: f64[N, 4] = aten.where.self(%c, %z, %y)\n"
        "%out: f64[N, 4] = aten.mul.Tensor(%g, %a)",
        ["exp", "relu", "le", "full", "where", "mul"],
    ),
    "a sum of a spread factor": (
        "%m: f64[N, 4] = aten.mul.Tensor(%x, %k)\n%out: f64[N] = aten.sum.dim_IntList(%m, [1])",
        ["sum", "squeeze", "mul"],
    ),
    "a contraction of a spread factor": (
        "%m: f64[N, 4] = aten.mul.Tensor(%x, %w)\n%out: f64[1, 4] = aten.sum.dim_IntList(%m, [0], True)",
        ["sum", "mul"],
    ),
    "a sum of a spread value": (
        "%s: f64[N, 4] = aten.expand(%k, [|N|, 4])\n%out: f64[N] = aten.sum.dim_IntList(%s, [1])",
        ["mul", "squeeze"],
    ),
    "a sum over one": ("%out: f64[N] = aten.sum.dim_IntList(%k, [1])", ["squeeze"]),
    "a kept axis dropped": (
        "%s: f64[1, 4] = aten.sum.dim_IntList(%x, [0], True)\n%out: f64[4] = aten.reshape(%s, [4])",
        ["sum"],
    ),
    "a contraction of edges and features": (
        "%s: f64[] = aten.sum(%e)\n%out: f64[N, 4] = aten.add.Tensor(%x, %s)",
        ["sum", "sum", "squeeze", "add"],
    ),
    "equal branches": (
        "%c: bool[N, 4] = aten.gt.Scalar(%x, 0)\n%out: f64[N, 4] = aten.where.self(%c, %y, %y)",
        [],
    ),
    "nested branches": (
        "%c: bool[N, 4] = aten.gt.Scalar(%x, 0)\n%s: f64[N, 4] = aten.where.self(%c, %x, %y)\n"
        "%out: f64[N, 4] = aten.where.self(%c, %s, %k)",
        ["gt", "where"],
    ),
    "transposed twice": ("%t: f64[4, N] = aten.t(%x)\n%out: f64[N, 4] = aten.t(%t)", []),
    "permuted and back": (
        "%p: f64[4, N] = aten.permute(%x, [1, 0])\n%out: f64[N, 4] = aten.permute(%p, [1, 0])",
        [],
    ),
    "squeezed after unsqueeze": (
        "%u: f64[N, 4, 1] = aten.unsqueeze(%x, -1)\n%out: f64[N, 4] = aten.squeeze.dims(%u, [2])",
        [],
    ),
    "reshaped twice": (
        "%r: f64[N, 2, 2] = aten.reshape(%x, [|N|, 2, 2])\n%out: f64[N, 4, 1] = aten.reshape(%r, [|N|, 4, 1])",
        ["reshape"],
    ),
    "expanded for a product": (
        "%s: f64[N, 4] = aten.expand(%k, [|N|, 4])\n%out: f64[N, 4] = aten.mul.Tensor(%s, %w)",
        ["mul"],
    ),
    "stacked alone, selected": (
        "%s: f64[N, 1, 4] = aten.stack([%x], 1)\n%out: f64[N, 4] = aten.select.int(%s, 1, 0)",
        [],
    ),
    "a part of a cat": (
        "%c: f64[N, 8] = aten.cat([%x, %y], 1)\n%out: f64[N, 4] = aten.slice.Tensor(%c, 1, 4, 8)",
        [],
    ),
    "sliced twice": (
        "%c: f64[N, 3] = aten.slice.Tensor(%x, 1, 1, 4)\n%out: f64[N, 1] = aten.slice.Tensor(%c, 1, 1, 2)",
        ["slice"],
    ),
    "repeated once": ("%out: f64[N, 4] = aten.repeat(%x, [1, 1])", []),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule(name: str) -> None:
    lines, left = RULES[name]
    # A second reader of the result, so that no rule sees it returned only.
    dims = lines.rpartition("%out: ")[2].split(" =")[0]
    before = program(f"{INPUTS}{lines}\n%end: {dims} = aten.exp(%out)\nreturn result 0 = %end\n")
    text = format_program(before)
    after = Simplify().run(before)
    assert format_program(before) == text
    assert targets(after) == [*left, "exp"]
    assert Simplify().run(after) is after
    assert_same_numbers(after, before)


STAYS = {
    "a scaled factor of one as wide": (
        "%s: f64[N, 4] = aten.mul.Tensor(%x, 3.0)\n%out: f64[N, 4] = aten.mul.Tensor(%s, %y)"
    ),
    "the gradient behind a relu of a sum of rows": (
        "%a: f64[N, 4] = aten.exp(%x)\n%b: f64[N, 4] = aten.add.Tensor(%a, %y)\n%r: f64[N, 4] = aten.relu(%b)\n"
        "%c: bool[N, 4] = aten.le.Scalar(%r, 0)\n%z: f64[] = aten.full([], 0, dtype=f64)\n"
        "%g: f64[N, 4] = aten.where.self(%c, %z, %y)\n%out: f64[N, 4] = aten.mul.Tensor(%g, %a)"
    ),
    "a gradient that another relu cuts off": (
        "%a: f64[N, 4] = aten.exp(%x)\n%r: f64[N, 4] = aten.relu(%y)\n%c: bool[N, 4] = aten.le.Scalar(%r, 0)\n"
        "%z: f64[] = aten.full([], 0, dtype=f64)\n%g: f64[N, 4] = aten.where.self(%c, %z, %x)\n"
        "%out: f64[N, 4] = aten.mul.Tensor(%g, %a)"
    ),
    "a factor that widens": "%out: f64[N, 4] = aten.mul.Tensor(%k, %w)",
    "ones that widen": (
        "%o: f64[N, 4] = aten.full([|N|, 4], 1, dtype=f64)\n%s: f64[N, 1] = aten.exp(%k)\n"
        "%out: f64[N, 4] = aten.mul.Tensor(%o, %s)"
    ),
    "an expansion that widens": (
        "%s: f64[N, 4] = aten.expand(%k, [|N|, 4])\n%out: f64[N, 4] = aten.mul.Tensor(%s, %k)"
    ),
    "a maximum of negations": (
        "%n: f64[E, 4] = aten.neg(%e)\n%out: f64[N, 4] = sarc.reduce(%n, %dst, 0, |N|, 'amax')"
    ),
    "a factor along the sum": (
        "%m: f64[N, 4] = aten.mul.Tensor(%x, %w)\n%out: f64[N] = aten.sum.dim_IntList(%m, [1])"
    ),
    "a slice across parts": (
        "%c: f64[N, 8] = aten.cat([%x, %y], 1)\n%out: f64[N, 4] = aten.slice.Tensor(%c, 1, 2, 6)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_the_same_object_comes_back_without(name: str) -> None:
    before = program(f"{INPUTS}{STAYS[name]}\nreturn result 0 = %out\n")
    assert Simplify().run(before) is before


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_to_do(name: str) -> None:
    joint = compiled(name).programs["joint"]
    assert Simplify().run(joint) is joint
    transposes = [n for n in joint.graph.nodes if n.target is torch.ops.aten.t.default]
    assert not [n for n in transposes if n.args[0] in transposes]


def test_a_factor_that_keeps_a_sum_in_range_stays_in_half_precision() -> None:
    lines = "%s: f16[N, 4] = aten.div.Tensor(%x, 64)\n%m: f16[N, 4] = aten.mul.Tensor(%s, %x)\n"
    before = program(f"%x: f16[N, 4] = input arg x\n{lines}%out: f16[N] = aten.sum.dim_IntList(%m, [1])\n"
                     "return result 0 = %out\n")
    assert Simplify().run(before) is before
