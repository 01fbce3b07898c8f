"""Folds of a row that folds to another column read, in one edge program with these."""

from __future__ import annotations

import torch

from sarc.codegen.divide import divide
from sarc.codegen.kernels import has_kernel
from sarc.ir.edge_program import edge_call
from sarc.ir.interpret import interpret
from sarc.ir.parse import parse_program
from sarc.ir.program import Program
from sarc.ir.verify import verify
from sarc.passes.partitioned.merge_row_phases import MergeRowPhases

SIZES = {"N": 6, "E": 30}
# What is left of a score less its sum over the edges of a target, at the sources; and what follows there row by row.
LEFT = """program backward
space N = nodes
space E = edges on edges
edges @edges0 over E
  %m: f64[E, 4, 8] = rows $0 axis 0
  %s: f64[E, 4, 1] = aten.sum.dim_IntList(%m, [2], True)
  reduce sum by #0 axis 0 %s: f64[N, 4, 1]
edges @edges1 over E
  %m: f64[E, 4, 8] = rows $0 axis 0
  %t: f64[E, 4, 1] = gather $1 by #0 axis 0
  %s: f64[E, 4, 1] = aten.sum.dim_IntList(%m, [2], True)
  %d: f64[E, 4, 1] = aten.sub.Tensor(%s, %t)
  reduce sum by #1 axis 0 %m: f64[N, 4, 8]
  reduce sum by #1 axis 0 %d: f64[N, 4, 1]
%m: f64[E, 4, 8] = input arg m
%src: i64[E] = input bound src
%dst: i64[E] = input bound dst
%edge_call: (f64[N, 4, 1]) = edge_call(@edges0, [%m], [%dst])
%S: f64[N, 4, 1] = getitem(%edge_call, 0)
%edge_call_1: (f64[N, 4, 8], f64[N, 4, 1]) = edge_call(@edges1, [%m, %S], [%dst, %src])
%o0: f64[N, 4, 8] = getitem(%edge_call_1, 0)
%o1: f64[N, 4, 1] = getitem(%edge_call_1, 1)
%r: f64[N, 4, 1] = aten.relu(%o1)
return result 0 = %o0
return result 1 = %r
"""


def calls(program: Program) -> list[torch.fx.Node]:
    return [n for n in program.graph.nodes if n.target is edge_call]


def test_a_fold_joins_the_folds_to_another_column_that_read_it() -> None:
    program = verify(parse_program(LEFT))
    merged = verify(MergeRowPhases(has_kernel).run(program))
    (call,) = calls(merged)
    edges, columns = call.args[0], [c.name for c in call.args[2]]
    assert [columns[stage.order] for stage in divide(edges).stages] == ["src", "dst", "src"]
    # What follows at the sources stays outside: merged again, the program's own folds would name other columns.
    assert [columns[c] for c in edges.own_columns] == ["dst"]
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(30, 4, 8, generator=random, dtype=torch.float64)]
    given += [torch.randint(6, (30,), generator=random) for _ in range(2)]
    for mine, theirs in zip(interpret(merged, given, SIZES), interpret(program, given, SIZES), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
