"""Kernels: the compiled form of an EdgeProgram and its launch on one block of edges."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.fx as fx
from torch import Tensor

from sarc.codegen.build import build
from sarc.codegen.cpp import Source, emit
from sarc.codegen.views import NoKernel
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram, Operand, Result
from sarc.ir.space import Rows, ValueType

CHUNK_EDGES = 4096
NARROW = 16


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


@dataclass(frozen=True)
class _Stage:
    """One program of a kernel: its traversals, and where its values and results are.

    Attributes:
        operands: for each operand, an index into the kernel's operands, or minus one minus that of a scratch tensor.
        results: for each result, an index into the kernel's results, or minus one minus that of a scratch tensor.
    """

    program: EdgeProgram
    sources: list[Source]
    launchers: list[Callable[..., None]]
    operands: tuple[int, ...]
    results: tuple[int, ...]


class CppKernel:
    """An EdgeProgram compiled for the CPU: one library a traversal order."""

    def __init__(self, program: EdgeProgram):
        self.program = program
        self._rng = _rng_operand(program)
        self._stages: list[_Stage] = []
        self._scratch: list[ValueType] = []
        for part, operands, results in self._divide():
            sources = emit(part)
            launchers = [_launcher(s, f"kernel {part.name} ({part.loc})") for s in sources]
            self._stages.append(_Stage(part, sources, launchers, operands, results))

    def _divide(self) -> list[tuple[EdgeProgram, tuple[int, ...], tuple[int, ...]]]:
        """The programs that make the kernel's results, with the places of their operands and results.

        A second column's values are few where an attention score's gradient goes to both ends: the first traversal
        then writes them once an edge, and a second one only sums them, instead of evaluating the body again.
        """
        program = self.program
        everything = (program, tuple(range(len(program.operands))), tuple(range(len(program.results))))
        returned = next(n for n in reversed(program.body.nodes) if n.op == "output").args[0]
        width: dict[int, int] = {}
        for result in program.results:
            if result.kind == "reduce" and result.column is not None:
                width[result.column] = width.get(result.column, 0) + _row_width(result.type)
        if len(width) < 2:
            return [everything]
        first = max(width, key=lambda column: width[column])
        late = [k for k, r in enumerate(program.results) if r.kind == "reduce" and r.column != first]
        if sum(_row_width(program.results[k].type) for k in late) > NARROW:
            return [everything]
        results, places = list(program.results), list(range(len(program.results)))
        folds = []
        for k in late:
            type_ = returned[k].meta["type"]
            axis = type_.axis_of(program.space)
            results[k], places[k] = Result("store", "", None, axis, type_), -1 - len(self._scratch)
            folds.append((self._fold(program.results[k], type_, axis, k), (places[k],), (k,)))
            self._scratch.append(type_)
        return [(replace(program, results=tuple(results)), everything[1], tuple(places)), *folds]

    def _fold(self, result: Result, type_: ValueType, axis: int, k: int) -> EdgeProgram:
        """The program that folds stored edge rows."""
        body = fx.Graph()
        rows = body.placeholder("rows")
        rows.meta = {"type": type_, "loc": self.program.loc}
        body.output([rows])
        name = f"{self.program.name}_fold{k}"
        return EdgeProgram(
            name, self.program.space, (Operand(0, None, axis, type_),), (result,), body, self.program.loc
        )

    @property
    def orders(self) -> list[int | None]:
        """The columns whose traversals a launch needs."""
        return [s.order for stage in self._stages for s in stage.sources]

    @property
    def sources(self) -> list[Source]:
        """The generated translation units, in launch order."""
        return [s for stage in self._stages for s in stage.sources]

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
        numbers = operands[self._rng].tolist() if self._rng is not None else [0, 0]
        scratch = [torch.empty(_lengths(t, keys.numel()), dtype=t.dtype) for t in self._scratch]
        orders = iter(traversals)
        for stage in self._stages:
            given = [operands[k] if k >= 0 else scratch[-1 - k] for k in stage.operands]
            made = [results[k] if k >= 0 else scratch[-1 - k] for k in stage.results]
            self._run(stage, [next(orders) for _ in stage.sources], given, made, keys, numbers)

    def _run(self, stage: _Stage, orders: Sequence[Traversal], operands, results, keys: Tensor, numbers) -> None:
        program = stage.program
        tables = [
            _rows_first(x, o.axis) if o.axis is not None else x.contiguous()
            for x, o in zip(operands, program.operands, strict=True)
        ]
        used = sorted(program.columns_used("gather") | program.columns_used("reduce"))
        for source, launcher, order in zip(stage.sources, stage.launchers, orders, strict=True):
            chunks = order.bounds.numel() - 1
            if chunks <= 0:
                continue
            after: list[Callable[[], object]] = []
            outs = [_out(program.results[k], results[k], chunks, after) for k in source.results]
            tensors = [order.bounds, order.starts, order.targets, order.edges, keys]
            tensors += [order.columns[c] for c in used] + tables + outs
            pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
            launcher(pointers, (ctypes.c_int64 * 4)(chunks, *numbers, torch.get_num_threads()))
            for finish in after:
                finish()


def _out(result: Result, into: Tensor, chunks: int, after: list[Callable[[], object]]) -> Tensor:
    """The tensor a kernel writes for a result: rows first and contiguous; copied back when `into` is not."""
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


def _launcher(source: Source, what: str) -> Callable[..., None]:
    launcher = getattr(build(source.text, what), source.name)
    launcher.restype = None
    launcher.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return launcher


def _row_width(type_: ValueType) -> int:
    return math.prod(d for d in type_.dims if not isinstance(d, Rows))


def _lengths(type_: ValueType, rows: int) -> list[int]:
    return [rows if isinstance(d, Rows) else d for d in type_.dims]


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
