"""Kernels: the compiled form of an EdgeProgram and its launch on one block of edges."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarc.codegen.build import build
from sarc.codegen.cpp import Pack, Source, emit
from sarc.codegen.divide import Stage, divide
from sarc.codegen.traversal import PADDING, Traversal, traversal
from sarc.codegen.views import NoKernel
from sarc.ir.dialect import UNIFORM, fold_rows, start_value
from sarc.ir.edge_program import EdgeProgram, Result
from sarc.ir.space import Rows, ValueType

Empty = Callable[..., Tensor]


@dataclass(frozen=True)
class _Launch:
    """A compiled stage."""

    stage: Stage
    source: Source
    launcher: Callable[..., None]


class CppKernel:
    """An EdgeProgram compiled for the CPU: one library a traversal order."""

    def __init__(self, program: EdgeProgram):
        self.program = program
        self._scratch = divide(program)[1]
        what = f"kernel {program.name} ({program.loc})"
        self._launches = [_Launch(stage, source, _launcher(source, what)) for stage, source in sources_of(program)]

    @property
    def orders(self) -> list[int | None]:
        """The columns whose traversals a launch needs."""
        return [launch.stage.order for launch in self._launches]

    @property
    def sources(self) -> list[Source]:
        """The generated translation units, in launch order."""
        return [launch.source for launch in self._launches]

    def fits(self, order: Traversal) -> bool:
        """Whether a traversal, made for any kernel, serves this one: a row's own folds need the row in one piece."""
        return not (self.program.own_columns and order.pieces.numel())

    def traverse(
        self,
        order: int | None,
        edges: Tensor | None,
        length: int,
        columns: Mapping[int, Tensor],
        rows: int | None,
        device: torch.device | str = "cpu",
    ) -> Traversal:
        """A block's edges in one of `orders` (see `traversal`)."""
        return traversal(order, edges, length, columns, rows, split=not self.program.own_columns, device=device)

    def launch(
        self,
        traversals: Sequence[Traversal],
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        keys: Tensor,
        fresh: bool,
        empty: Empty = torch.empty,
    ) -> None:
        """Fold one block into `results`.

        Args:
            traversals: one for each of `orders`.
            operands: whole tables: a gathered operand's owned or fetched rows, an edge operand's rows of the part.
            results: accumulators of the rows that each result's column names; a store's edge tensor.
            keys: int64, row keys of the part's edges.
            fresh: whether the accumulators hold nothing yet; the traversals then visit every row.
            empty: makes what the launch alone needs (see `workspace`).
        """
        length = max((t.edges.numel() for t in traversals), default=0)
        scratch = [empty(row_lengths(t, length), dtype=t.dtype) for t in self._scratch]
        for launch, order in zip(self._launches, traversals, strict=True):
            given = [operands[k] if k >= 0 else scratch[-1 - k] for k in launch.stage.operands]
            made = [results[k] if k >= 0 else scratch[-1 - k] for k in launch.stage.results]
            positions = order.edges
            if any(k < 0 for k in launch.stage.operands):
                positions = order.positions_in(traversals[0], keys.numel())
            _run(launch, order, positions, given, made, keys, fresh, empty)

    def workspace(self, edges: int, operands: Sequence[Tensor], results: Sequence[Tensor]) -> int:
        """Most bytes that a launch needs beside operands, results and traversals.

        Args:
            edges: number of edges of the block.
            operands, results: tables, or stand-ins of their shapes and strides.
        """
        scratch = [torch.empty(row_lengths(t, edges + PADDING), dtype=t.dtype, device="meta") for t in self._scratch]
        most = 0
        for launch in self._launches:
            stage, source = launch.stage, launch.source
            given = [operands[k] if k >= 0 else scratch[-1 - k] for k in stage.operands]
            made = [results[k] if k >= 0 else scratch[-1 - k] for k in stage.results]
            axes = [o.axis for o in stage.program.operands] + [r.axis for r in stage.program.results]
            tables = [_rows_first(x, axis) for x, axis in zip(given + made, axes, strict=True)]
            needed = sum(x.nbytes for x in tables if not x.is_contiguous())
            for pack in source.packs:
                first = tables[pack.operands[0][0]]
                needed += first.shape[0] * pack.width * first.element_size()
            most = max(most, needed)
        return sum(x.nbytes for x in scratch) + most


def _rows_first(table: Tensor, axis: int | None) -> Tensor:
    return table.movedim(axis, 0) if axis is not None else table


def _run(
    launch: _Launch, order: Traversal, positions: Tensor, operands, results, keys: Tensor, fresh: bool, empty: Empty
) -> None:
    program, source = launch.stage.program, launch.source
    chunks = order.bounds.numel() - 1
    if chunks <= 0:
        return
    tables = [_dense(_rows_first(x, o.axis), empty) for x, o in zip(operands, program.operands, strict=True)]
    after: list[Callable[[], object]] = []
    outs: list[Tensor] = []
    for k in source.results:
        outs += _out(program.results[k], results[k], chunks, order, after, fresh, empty)
    keys = order.ordered(keys) if source.draws else keys
    used = sorted(program.columns_used("gather") | program.columns_used("reduce"))
    tensors = [order.bounds, order.starts, order.targets, order.slots, order.edges, positions, keys]
    tensors += [order.columns[c] for c in used] + tables + [_pack(p, tables, empty) for p in source.packs] + outs
    pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
    rng = rng_operand(program)
    numbers = [0, 0] if rng is None else operands[rng].tolist()
    launch.launcher(pointers, (ctypes.c_int64 * 5)(chunks, *numbers, torch.get_num_threads(), int(fresh)))
    for finish in after:
        finish()


def rng_operand(program: EdgeProgram) -> int | None:
    """The operand that holds seed and step of a program's draws."""
    placeholders = [n for n in program.body.nodes if n.op == "placeholder"]
    return next((k for k, n in enumerate(placeholders) if any(u.target is UNIFORM for u in n.users)), None)


def _dense(table: Tensor, empty: Empty) -> Tensor:
    return table if table.is_contiguous() else empty(table.shape, dtype=table.dtype).copy_(table)


def _pack(pack: Pack, tables: Sequence[Tensor], empty: Empty) -> Tensor:
    """Narrow tables side by side."""
    first = tables[pack.operands[0][0]]
    packed = empty((first.shape[0], pack.width), dtype=first.dtype)
    for k, at in pack.operands:
        rows = tables[k].reshape(first.shape[0], -1)
        packed[:, at : at + rows.shape[1]] = rows
    return packed


def _out(
    result: Result,
    into: Tensor,
    chunks: int,
    order: Traversal,
    after: list[Callable[[], object]],
    fresh: bool,
    empty: Empty,
) -> tuple[Tensor, Tensor]:
    """What a kernel writes for a result: rows first and contiguous, and the pieces of long rows."""
    if result.kind == "contract":
        dtype = torch.float32 if into.dtype.is_floating_point and into.dtype.itemsize == 2 else into.dtype
        shares = torch.zeros((chunks, *into.shape), dtype=dtype)
        after.append(lambda: into.add_(shares.sum(0)))
        return shares, shares
    moved = into.movedim(result.axis or 0, 0)
    dense = _dense(moved, empty)
    pieces = dense[:0]
    if result.kind == "reduce" and order.pieces.numel():
        start = start_value(result.fold, dense.dtype)
        pieces = torch.full((order.pieces.numel(), *dense.shape[1:]), start, dtype=dense.dtype)
        if fresh:  # no kernel visits a split row as a whole
            dense[order.pieces] = start
        after.append(lambda: _merge(dense, order.pieces, pieces, result.fold))
    if dense is not moved:
        after.append(lambda: moved.copy_(dense))
    return dense, pieces


def _merge(into: Tensor, rows: Tensor, pieces: Tensor, fold: str) -> None:
    """Fold the pieces of long rows, one after another: the order does not depend on threads."""
    for row, piece in zip(rows.tolist(), pieces, strict=True):
        fold_rows(into, 0, torch.tensor([row]), piece[None], fold)


def _launcher(source: Source, what: str) -> Callable[..., None]:
    launcher = getattr(build(source.text, what), source.name)
    launcher.restype = None
    launcher.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return launcher


def row_lengths(type_: ValueType, rows: int) -> list[int]:
    """The shape of a tensor of a type, for given numbers of rows."""
    return [rows if isinstance(d, Rows) else d for d in type_.dims]


def compile_kernels(programs: Sequence[EdgeProgram]) -> dict[str, CppKernel]:
    """Kernels of those programs that have a scalar form, by name; the others are left to the reference backend."""
    made = {}
    for program in programs:
        if has_plain_rows(program):
            with contextlib.suppress(NoKernel):
                made[program.name] = CppKernel(program)
    return made


def has_kernel(program: EdgeProgram) -> bool:
    """Whether a program has a scalar form; nothing is compiled."""
    try:
        return has_plain_rows(program) and bool(sources_of(program))
    except NoKernel:
        return False


def sources_of(program: EdgeProgram) -> list[tuple[Stage, Source]]:
    """The kernels of a program as text, in launch order.

    Raises:
        NoKernel: an operator of the body has no scalar form.
    """
    return [
        (stage, emit(stage.program, stage.order, numbers, scratch))
        for stage, numbers, scratch in stages_of(program)
    ]


def stages_of(program: EdgeProgram) -> list[tuple[Stage, tuple[int, ...], frozenset[int]]]:
    """The stages of a program: each one's results, and its operands and results that are scratch tensors."""
    found = []
    for stage in divide(program)[0]:
        scratch = {k for k, place in enumerate(stage.operands) if place < 0}
        scratch |= {-1 - k for k, place in enumerate(stage.results) if place < 0}
        found.append((stage, tuple(range(len(stage.program.results))), frozenset(scratch)))
    return found


def scratch_of(program: EdgeProgram) -> list[ValueType]:
    """Types of the tensors that the stages of a program leave each other."""
    return divide(program)[1]


def has_plain_rows(program: EdgeProgram) -> bool:
    """Whether every operand and result holds its rows unflattened, as kernels need them."""
    types = [o.type for o in program.operands] + [r.type for r in program.results]
    return all(d.plain for t in types for d in t.dims if isinstance(d, Rows))
