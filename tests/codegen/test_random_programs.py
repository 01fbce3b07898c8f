"""Kernels, for CUDA too, equal the plain-torch meaning of edge programs nobody wrote a layer for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarc.codegen import build
from sarc.codegen.body import NARROW
from sarc.codegen.cuda_kernels import CudaKernel
from sarc.codegen.divide import divide
from sarc.codegen.kernels import CppKernel
from sarc.codegen.views import NoKernel
from sarc.ir.edge_program import EdgeProgram, edge_call, new_accumulator, run_whole
from sarc.ir.parse import parse_program
from tests.codegen.emulate import emulated
from tests.codegen.random_programs import SOURCE, TARGET, columns, edge_programs, folds_elsewhere

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")


def inputs(program: EdgeProgram, nodes: int, edges: int, seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    made = []
    for operand in program.operands:
        rows = edges if operand.column is None else nodes
        shape = (rows, *operand.type.dims[1:])
        made.append(torch.randn(shape, generator=random, dtype=torch.float64).to(operand.type.dtype))
    return made


def run_kernel(
    make: Callable, program: EdgeProgram, tables: list, index: torch.Tensor, nodes: int
) -> list[torch.Tensor]:
    """All edges as one block."""
    kernel, edges = make(program), index.shape[1]
    named = {0: index[0], 1: index[1]}
    orders = [kernel.traverse(o, None, edges, named, None if o is None else nodes) for o in kernel.orders]
    results = [new_accumulator(r, {"E": edges, "N": nodes}, torch.device("cpu")) for r in program.results]
    kernel.launch(orders, tables, results, torch.arange(edges), True)
    return results


@settings(max_examples=3 * settings().max_examples)  # of half a second, most of it the compiler's
@pytest.mark.parametrize("make", [CppKernel, partial(CudaKernel, load=emulated)], ids=["C++", "CUDA"])
@given(edge_programs(), columns(), st.integers(0, 1000))
def test_kernels_equal_plain_torch(make: Callable, program: EdgeProgram, graph: tuple, seed: int) -> None:
    compare(make, program, graph, seed)


@pytest.mark.parametrize("make", [CppKernel, partial(CudaKernel, load=emulated)], ids=["C++", "CUDA"])
@given(folds_elsewhere(), columns(), st.integers(0, 1000))
def test_folds_of_a_row_are_read_by_folds_elsewhere(
    make: Callable, program: EdgeProgram, graph: tuple, seed: int
) -> None:
    stages = divide(program).stages
    assert [stage.order for stage in stages] == [SOURCE, TARGET, SOURCE]
    wide = [[o.column for o in stage.program.operands if math.prod(o.type.dims[1:]) > NARROW] for stage in stages]
    assert wide[0] and not wide[1] and not wide[2]
    compare(make, program, graph, seed)


def compare(make: Callable, program: EdgeProgram, graph: tuple, seed: int) -> None:
    nodes, index = graph
    tables = inputs(program, nodes, index.shape[1], seed)
    expected = run_whole(program, tables, list(index), {"E": index.shape[1], "N": nodes})
    for ours, theirs in zip(run_kernel(make, program, tables, index, nodes), expected, strict=True):
        finite = theirs.abs()[theirs.isfinite()]
        scale = max(1.0, float(finite.max()) if finite.numel() else 1.0)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * scale, equal_nan=True)


NUMBERED_ONCE = """program backward
space N = nodes
space E = edges on edges
edges @edges0 over E
  %a: f64[E, 4, 8] = gather $0 by #0 axis 0
  %g: f64[E, 4, 8] = gather $1 by #1 axis 0
  %w: f64[E, 4, 1] = rows $2 axis 0
  %p: f64[E, 4, 8] = aten.mul.Tensor(%a, %g)
  %s: f64[E, 4, 1] = aten.sum.dim_IntList(%p, [2], True)
  %S: f64[N, 4, 1] = fold_to_rows(%s, 1, 0, 'sum')
  %t: f64[E, 4, 1] = take_rows(%S, 1, 0)
  %d: f64[E, 4, 1] = aten.sub.Tensor(%s, %t)
  %e: f64[E, 4, 8] = aten.mul.Tensor(%w, %g)
  reduce sum by #0 axis 0 %e: f64[N, 4, 8]
  reduce sum by #0 axis 0 %d: f64[N, 4, 1]
  reduce sum by #2 axis 0 %s: f64[N, 4, 1]
%x: f64[N, 4, 8] = input arg x
%y: f64[N, 4, 8] = input arg y
%v: f64[E, 4, 1] = input arg v
%src: i64[E] = input bound src
%dst: i64[E] = input bound dst
%third: i64[E] = input bound third
%edge_call: (f64[N, 4, 8], f64[N, 4, 1], f64[N, 4, 1]) = edge_call(@edges0, [%x, %y, %v], [%src, %dst, %third])
%out: f64[N, 4, 8] = getitem(%edge_call, 0)
return result 0 = %out
"""


def numbered(text: str) -> EdgeProgram:
    (call,) = (n for n in parse_program(text).graph.nodes if n.target is edge_call)
    return call.args[0]


def test_what_two_stages_read_is_written_down_once() -> None:
    stages = divide(numbered(NUMBERED_ONCE)).stages
    written = [place for stage in stages for place in stage.results if place < 0]
    assert len(written) == len(set(written)) == 2


def test_rows_are_folded_in_their_own_order_alone() -> None:
    """A wide fold of a row that only a fold elsewhere reads has no stage: such a program has no kernel."""
    wide = NUMBERED_ONCE.replace("  reduce sum by #0 axis 0 %e", """  %Q: f64[N, 4, 8] = fold_to_rows(%e, 1, 0, 'sum')
  %u: f64[E, 4, 8] = take_rows(%Q, 1, 0)
  %f: f64[E, 4, 8] = aten.mul.Tensor(%d, %u)
  reduce sum by #0 axis 0 %e""", 1).replace("by #0 axis 0 %d: f64[N, 4, 1]", "by #0 axis 0 %f: f64[N, 4, 8]")
    wide = wide.replace("(f64[N, 4, 8], f64[N, 4, 1], f64[N, 4, 1]) =", "(f64[N, 4, 8], f64[N, 4, 8], f64[N, 4, 1]) =")
    with pytest.raises(NoKernel):
        divide(numbered(wide))
