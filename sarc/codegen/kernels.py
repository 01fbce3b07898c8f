"""Kernels: the compiled form of an EdgeProgram and its launch on one block of edges."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarc.codegen.build import build
from sarc.codegen.cpp import Source, emit
from sarc.codegen.views import NoKernel
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.space import Rows

CHUNK_EDGES = 4096


@dataclass(frozen=True)
class Traversal:
    """The edges of a block in the order of one column.

    Attributes:
        bounds: int64 [chunks + 1], first row (edge, without a column) of each chunk.
        starts: int64 [rows + 1], first edge of each row.
        targets: int32 [rows], the column's value of each row.
        edges: int32 [K], positions of the edges in traversal order among the part's edges.
        columns: int32 [K] of each column, in traversal order.
    """

    bounds: Tensor
    starts: Tensor
    targets: Tensor
    edges: Tensor
    columns: Mapping[int, Tensor]


def traversal(order: int | None, edges: Tensor | None, length: int, columns: Mapping[int, Tensor]) -> Traversal:
    """Group a block's edges by one column.

    Args:
        order: the column, or None for the block's own order.
        edges: int64 [K], positions of the block's edges among the part's (None: all of them).
        length: K.
        columns: int64 [K], positions that each column names.
    """
    edges = torch.arange(length) if edges is None else edges
    narrow = {c: v.to(torch.int32) for c, v in columns.items()}
    if order is None:
        bounds = torch.arange(0, length + CHUNK_EDGES, CHUNK_EDGES).clamp_(max=length).unique()
        none = torch.empty(0, dtype=torch.int32)
        return Traversal(bounds, bounds, none, edges.to(torch.int32), narrow)
    key = columns[order]
    place = torch.argsort(key, stable=True)
    targets, counts = torch.unique_consecutive(key[place], return_counts=True)
    starts = torch.zeros(targets.numel() + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts[1:])
    # A chunk ends at the first row boundary after each CHUNK_EDGES edges: fixed by the graph, not by the threads.
    marks = torch.arange(1, -(-length // CHUNK_EDGES)) * CHUNK_EDGES
    inner = torch.searchsorted(starts, marks)
    bounds = torch.cat([torch.tensor([0]), inner, torch.tensor([targets.numel()])]).unique()
    sorted_columns = {c: v[place].contiguous() for c, v in narrow.items()}
    return Traversal(bounds, starts, targets.to(torch.int32), edges[place].to(torch.int32), sorted_columns)


class CppKernel:
    """An EdgeProgram compiled for the CPU: one library a traversal order."""

    def __init__(self, program: EdgeProgram):
        self.program = program
        self.sources: list[Source] = emit(program)
        self._rng = _rng_operand(program)
        self._launchers = []
        for source in self.sources:
            library = build(source.text, f"kernel {program.name} ({program.loc})")
            launcher = library.sarc_launch
            launcher.restype = None
            launcher.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            self._launchers.append(launcher)

    @property
    def orders(self) -> list[int | None]:
        """The columns whose traversals a launch needs."""
        return [s.order for s in self.sources]

    def traverse(
        self, order: int | None, edges: Tensor | None, length: int, columns: Mapping[int, Tensor]
    ) -> Traversal:
        """A block's edges in one of `orders` (see `traversal`)."""
        return traversal(order, edges, length, columns)

    def launch(
        self,
        traversals: Sequence[Traversal],
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        keys: Tensor,
    ) -> None:
        """Fold one block into `results`.

        Args:
            traversals: one for each of `orders`.
            operands: whole tables: a gathered operand's owned or fetched rows, an edge operand's rows of the part.
            results: accumulators of the rows that each result's column names; a store's edge tensor.
            keys: int64, row keys of the part's edges.
        """
        seed, step = operands[self._rng].tolist() if self._rng is not None else (0, 0)
        tables = [
            _rows_first(x, o.axis) if o.axis is not None else x.contiguous()
            for x, o in zip(operands, self.program.operands, strict=True)
        ]
        used = sorted(self.program.columns_used("gather") | self.program.columns_used("reduce"))
        for source, launcher, order in zip(self.sources, self._launchers, traversals, strict=True):
            chunks = order.bounds.numel() - 1
            if chunks <= 0:
                continue
            outs: list[Tensor] = []
            after: list[Callable[[], object]] = []
            for k in source.results:
                outs.append(self._out(k, results[k], chunks, after))
            tensors = [order.bounds, order.starts, order.targets, order.edges, keys]
            tensors += [order.columns[c] for c in used] + tables + outs
            pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
            numbers = (ctypes.c_int64 * 4)(chunks, seed, step, torch.get_num_threads())
            launcher(pointers, numbers)
            for finish in after:
                finish()

    def _out(self, k: int, into: Tensor, chunks: int, after: list[Callable[[], object]]) -> Tensor:
        """The tensor a kernel writes for result k: rows first and contiguous; copied back when `into` is not."""
        result = self.program.results[k]
        if result.kind == "contract":
            shares = torch.zeros((chunks, *into.shape), dtype=into.dtype)
            after.append(lambda: into.add_(shares.sum(0)))
            return shares
        moved = into.movedim(result.axis or 0, 0)
        if moved.is_contiguous():
            return moved
        dense = moved.contiguous()
        after.append(lambda: moved.copy_(dense))
        return dense


def compile_kernels(programs: Sequence[EdgeProgram]) -> dict[str, CppKernel]:
    """Kernels of those programs that have a scalar form, by name; the others are left to the reference backend."""
    made = {}
    for program in programs:
        if has_plain_rows(program):
            with contextlib.suppress(NoKernel):
                made[program.name] = CppKernel(program)
    return made


def _rng_operand(program: EdgeProgram) -> int | None:
    """Index of the operand that holds seed and step, when the body draws."""
    inner = [n for n in program.body.nodes if n.op == "placeholder"]
    return next((inner.index(n.args[0]) for n in program.body.nodes if n.target is UNIFORM), None)


def _rows_first(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, 0).contiguous()


def has_plain_rows(program: EdgeProgram) -> bool:
    """Whether every operand and result holds its rows unflattened, as kernels need them."""
    types = [o.type for o in program.operands] + [r.type for r in program.results]
    return all(d.plain for t in types for d in t.dims if isinstance(d, Rows))
