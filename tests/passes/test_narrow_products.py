"""Products of an edge program with their narrow factors apart: equal to rounding, and fewer wide ones."""

from __future__ import annotations

import math

import pytest
import torch

from sarc.ir.edge_program import edge_call
from sarc.ir.interpret import interpret
from sarc.ir.parse import parse_program
from sarc.ir.program import Program
from sarc.ir.space import Rows
from sarc.ir.verify import verify
from sarc.passes.partitioned.narrow_products import NarrowProducts

aten = torch.ops.aten
SIZES = {"N": 6, "E": 30}


def program(body: str, result: str, dtype: str = "f64") -> Program:
    """An edge program over z and g [E, 4, 8], s and t [E, 4, 1] and b [E, 1, 8]."""
    text = f"""program backward
space N = nodes
space E = edges on edges
edges @edges0 over E
  %z: f64[E, 4, 8] = gather $0 by #0 axis 0
  %g: f64[E, 4, 8] = gather $1 by #0 axis 0
  %s: f64[E, 4, 1] = gather $2 by #0 axis 0
  %t: f64[E, 4, 1] = gather $3 by #0 axis 0
  %b: f64[E, 1, 8] = gather $4 by #0 axis 0
{body}
  {result}
%zn: f64[N, 4, 8] = input saved z
%gn: f64[N, 4, 8] = input tangent 0
%sn: f64[N, 4, 1] = input saved s
%tn: f64[N, 4, 1] = input saved t
%bn: f64[N, 1, 8] = input saved b
%src: i64[E] = input bound src
%edge_call: ({result.rpartition(": ")[2]}) = edge_call(@edges0, [%zn, %gn, %sn, %tn, %bn], [%src])
%out: {result.rpartition(": ")[2]} = getitem(%edge_call, 0)
return result 0 = %out
"""
    return verify(parse_program(text.replace("f64", dtype)))


def wide(found: Program) -> int:
    """Products of as many features as there are."""
    (call,) = (n for n in found.graph.nodes if n.target is edge_call)
    products = [n for n in call.args[0].body.nodes if n.target is aten.mul.Tensor]
    return sum(math.prod(d for d in n.meta["type"].dims if not isinstance(d, Rows)) == 32 for n in products)


def value(found: Program) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    given = []
    for node in found.placeholders:
        shape = [SIZES[d.space] if isinstance(d, Rows) else d for d in node.meta["type"].dims]
        index = node.meta["type"].dtype == torch.int64
        made = torch.randint(6, shape, generator=random) if index else torch.randn(shape, generator=random).double()
        given.append(made)
    return interpret(found, given, SIZES)[0]


CASES = {
    # body, result, wide products before and after
    "a scaled row, summed and folded": (
        """  %m: f64[E, 4, 8] = aten.mul.Tensor(%g, %s)
  %p: f64[E, 4, 8] = aten.mul.Tensor(%m, %z)
  %d: f64[E, 4] = aten.sum.dim_IntList(%p, [2])
  %u: f64[E, 4, 1] = aten.unsqueeze(%d, 2)
  %q: f64[E, 4, 8] = aten.mul.Tensor(%m, %t)
  %r: f64[E, 4, 8] = aten.add.Tensor(%q, %u)""",
        "reduce sum by #0 axis 0 %r: f64[N, 4, 8]", 3, 2,
    ),
    "two sums of one product": (
        """  %m: f64[E, 4, 8] = aten.mul.Tensor(%g, %s)
  %p: f64[E, 4, 8] = aten.mul.Tensor(%m, %z)
  %d: f64[E, 4, 1] = aten.sum.dim_IntList(%p, [2], True)
  %n: f64[E, 4, 8] = aten.mul.Tensor(%z, %t)
  %q: f64[E, 4, 8] = aten.mul.Tensor(%g, %n)
  %e: f64[E, 4, 1] = aten.sum.dim_IntList(%q, [2], True)
  %r: f64[E, 4, 1] = aten.add.Tensor(%d, %e)""",
        "reduce sum by #0 axis 0 %r: f64[N, 4, 1]", 4, 1,
    ),
    "a sum over heads": (
        """  %m: f64[E, 4, 8] = aten.mul.Tensor(%b, %s)
  %p: f64[E, 4, 8] = aten.mul.Tensor(%m, %z)
  %r: f64[E, 8] = aten.sum.dim_IntList(%p, [1])""",
        "reduce sum by #0 axis 0 %r: f64[N, 8]", 2, 1,
    ),
    "a product of wide rows": (
        """  %m: f64[E, 4, 8] = aten.mul.Tensor(%g, %s)
  %r: f64[E, 4, 8] = aten.mul.Tensor(%m, %z)""",
        "reduce sum by #0 axis 0 %r: f64[N, 4, 8]", 2, 2,
    ),
    "a product that something else reads": (
        """  %m: f64[E, 4, 8] = aten.mul.Tensor(%g, %s)
  %p: f64[E, 4, 8] = aten.mul.Tensor(%m, %t)
  %r: f64[E, 4, 8] = aten.add.Tensor(%m, %p)""",
        "reduce sum by #0 axis 0 %r: f64[N, 4, 8]", 2, 2,
    ),
    "equal values, which rounding would tell apart": (
        """  %m: f64[E, 4, 8] = aten.mul.Tensor(%g, %s)
  %p: f64[E, 4, 8] = aten.mul.Tensor(%m, %t)
  %e: bool[E, 4, 8] = aten.eq.Tensor(%p, %z)
  %r: f64[E, 4, 8] = aten.where.self(%e, %p, %z)""",
        "reduce sum by #0 axis 0 %r: f64[N, 4, 8]", 2, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_narrow_factors_come_apart(name: str) -> None:
    body, result, before, after = CASES[name]
    found = program(body, result)
    made = verify(NarrowProducts().run(found))
    assert (wide(found), wide(made)) == (before, after)
    assert (made is found) == (before == after)
    torch.testing.assert_close(value(made), value(found), rtol=1e-13, atol=1e-13)


def test_numbers_of_two_bytes_keep_their_order() -> None:
    body, result, _, _ = CASES["two sums of one product"]
    found = program(body, result, "f16")
    assert NarrowProducts().run(found) is found
