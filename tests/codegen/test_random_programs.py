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
from sarc.ir.edge_program import EdgeProgram, new_accumulator, run_whole
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
