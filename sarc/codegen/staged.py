"""StagedKernel: what the compiled forms of an EdgeProgram share: its stages, their traversals and their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sarc.codegen.divide import Stage, divide
from sarc.codegen.pack import packed_bytes
from sarc.codegen.traversal import PADDING, Traversal, traversal
from sarc.ir.dialect import UNIFORM, start_value
from sarc.ir.edge_program import EdgeProgram, Result
from sarc.ir.space import Rows, ValueType

Empty = Callable[..., Tensor]


class _Launch(Protocol):
    """A compiled stage."""

    @property
    def stage(self) -> Stage: ...

    @property
    def source(self): ...


L = TypeVar("L", bound=_Launch)


@dataclass(frozen=True)
class StageCall(Generic[L]):
    """One stage of a launch.

    Attributes:
        launch: the compiled stage.
        order: its edges' traversal.
        positions: int32, where each edge's entry is in scratch tensors that earlier stages wrote.
        operands, results: tables, rows where they lie.
    """

    launch: L
    order: Traversal
    positions: Tensor
    operands: list[Tensor]
    results: list[Tensor]


class StagedKernel(Generic[L]):
    """An EdgeProgram compiled stage by stage.

    Args:
        program: what was compiled.
        launches: its compiled stages, in launch order.

    Attributes:
        in_place: whether a stage may write an edge's scratch entry where it has read another one.
        scratch_types: types of the scratch tensors between the stages.
        over: scratch tensors that take the place of others.
    """

    in_place = False

    def __init__(self, program: EdgeProgram, launches: Sequence[L]):
        self.program, self.launches = program, list(launches)
        division = divide(program)
        self.scratch_types, self.over = division.scratch, division.over if self.in_place else {}

    @property
    def orders(self) -> list[int | None]:
        """The columns whose traversals a launch needs."""
        return [launch.stage.order for launch in self.launches]

    @property
    def sources(self) -> list:
        """The generated translation units, in launch order."""
        return [launch.source for launch in self.launches]

    def fits(self, order: int | None, found: Traversal) -> bool:
        """Whether a traversal in one of `orders`, made for any kernel, serves this one: a row's own folds need the row
        in one piece."""
        return order not in self.program.own_columns or not found.pieces.numel()

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
        split = order not in self.program.own_columns
        return traversal(order, edges, length, columns, rows, split, device)

    def calls(
        self,
        traversals: Sequence[Traversal],
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        keys: Tensor,
        empty: Empty,
    ) -> Iterator[StageCall[L]]:
        """The stages of a launch on one block, one after another; arguments as of `CppKernel.launch`."""
        length = max((t.edges.numel() for t in traversals), default=0)
        scratch: list[Tensor] = []
        for i, type_ in enumerate(self.scratch_types):
            made = scratch[self.over[i]] if i in self.over else empty(row_lengths(type_, length), dtype=type_.dtype)
            scratch.append(made)
        for launch, order in zip(self.launches, traversals, strict=True):
            stage, positions = launch.stage, order.edges
            if stage.scratch.scattered:
                positions = order.positions_in(traversals[0], keys.numel())
            yield StageCall(launch, order, positions, *_tables_of(stage, operands, results, scratch))

    def workspace(self, edges: int, operands: Sequence[Tensor], results: Sequence[Tensor]) -> int:
        """Most bytes that a launch needs beside operands, results and traversals.

        Args:
            edges: number of edges of the block.
            operands, results: tables, or stand-ins of their shapes and strides.
        """
        lengths = edges + PADDING
        scratch = [torch.empty(row_lengths(t, lengths), dtype=t.dtype, device="meta") for t in self.scratch_types]
        most = 0
        for launch in self.launches:
            stage = launch.stage
            given, made = _tables_of(stage, operands, results, scratch)
            axes = [o.axis for o in stage.program.operands] + [r.axis for r in stage.program.results]
            tables = [rows_first(x, axis) for x, axis in zip(given + made, axes, strict=True)]
            copied = sum(x.nbytes for x in tables if not x.is_contiguous())
            most = max(most, copied + packed_bytes(launch.source.packs, tables))
        return sum(x.nbytes for i, x in enumerate(scratch) if i not in self.over) + most


def _tables_of(
    stage: Stage, operands: Sequence[Tensor], results: Sequence[Tensor], scratch: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """A stage's operands and results: the program's, or what stages leave each other."""
    given = [operands[k] if k >= 0 else scratch[-1 - k] for k in stage.operands]
    return given, [results[k] if k >= 0 else scratch[-1 - k] for k in stage.results]


def rows_first(table: Tensor, axis: int | None) -> Tensor:
    """A table with its rows on the first axis."""
    return table.movedim(axis, 0) if axis is not None else table


def row_lengths(type_: ValueType, rows: int) -> list[int]:
    """The shape of a tensor of a type, for given numbers of rows."""
    return [rows if isinstance(d, Rows) else d for d in type_.dims]


def rng_operand(program: EdgeProgram) -> int | None:
    """The operand that holds seed and step of a program's draws."""
    placeholders = [n for n in program.body.nodes if n.op == "placeholder"]
    return next((k for k, n in enumerate(placeholders) if any(u.target is UNIFORM for u in n.users)), None)


def written(
    result: Result,
    into: Tensor,
    shares: int,
    order: Traversal,
    after: list[Callable[[], object]],
    fresh: bool,
    dense_of: Callable[[Tensor], Tensor],
    merge: Callable[[Tensor, Tensor, Traversal, str], object],
) -> tuple[Tensor, Tensor]:
    """What a kernel writes for a result: rows first and dense, and the pieces of long rows.

    Args:
        into: the result.
        shares: of a contraction, one a chunk or group of lanes.
        after: what is to be done once the kernel has run; added to.
        fresh: whether `into` holds nothing yet.
        dense_of: a table as the kernel needs it, or a copy that is.
        merge: folds (into, pieces, order, fold) the pieces of long rows.
    """
    if result.kind == "contract":
        dtype = torch.float32 if into.dtype.is_floating_point and into.dtype.itemsize == 2 else into.dtype
        made = torch.zeros((shares, *into.shape), dtype=dtype, device=into.device)
        after.append(lambda: into.add_(made.sum(0)))
        return made, made
    moved = into.movedim(result.axis or 0, 0)
    dense = dense_of(moved)
    pieces = dense[:0]
    if result.kind == "reduce" and order.pieces.numel():
        start = start_value(result.fold, dense.dtype)
        pieces = torch.full((order.pieces.numel(), *dense.shape[1:]), start, dtype=dense.dtype, device=dense.device)
        if fresh:  # no kernel visits a split row as a whole; its pieces may still read what the result is written over
            after.append(lambda: dense.index_fill_(0, order.pieces, start))
        after.append(lambda: merge(dense, pieces, order, result.fold))
    if dense is not moved:
        after.append(lambda: moved.copy_(dense))
    return dense, pieces
