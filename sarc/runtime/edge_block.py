"""One block of an edge call: its edges, where its columns point, and its run in plain torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sarc.ir.dialect import fold_rows
from sarc.ir.edge_program import EdgeProgram, Operand, combine_, select_block, store_block
from sarc.ir.space import Rows
from sarc.partition.columns import ColumnMap

# A sub-block's values stay within this, unless MIN_EDGES of them are wider: fewer edges would not pay their calls.
SUB_BLOCK_BYTES = 16 << 20
MIN_EDGES = 256


@dataclass(frozen=True)
class EdgeBlock:
    """The edges of a block.

    Attributes:
        length: K, their number.
        rows: int64 [K], positions among the part's edges; None when the block holds all of them.
        remote: the column that names rows of one peer's chunk, or None.
        maps: of each column.
        named_rows: number of rows of this part that each column may name.
        index: int64 [K], what `remote` names, in place of its map.
    """

    length: int
    rows: Tensor | None
    remote: int | None
    maps: Mapping[int, ColumnMap]
    named_rows: Mapping[int, int]
    index: Tensor | None = None

    def edges(self, start: int, stop: int) -> Tensor | slice:
        """Positions, among the part's edges, of some of the block's."""
        return slice(start, stop) if self.rows is None else self.rows[start:stop]

    def targets(self, column: int, start: int = 0, stop: int | None = None) -> Tensor:
        """int64, what a column names at some of the block's edges."""
        if column == self.remote and self.index is not None:
            return self.index[start:stop]
        index = self.maps[column].own_index
        return index[start:stop] if self.rows is None else index[self.rows[start:stop]]


def sub_block_edges(program: EdgeProgram) -> int:
    """Edges that plain torch visits at a time."""
    return max(MIN_EDGES, SUB_BLOCK_BYTES // _bytes_per_edge(program))


def sub_block_bytes(program: EdgeProgram, edges: int) -> int:
    """Bytes that values and indices of a sub-block take, of a block of some edges."""
    at_once = edges if program.own_columns else min(edges, sub_block_edges(program))
    return at_once * _bytes_per_edge(program)


def _bytes_per_edge(program: EdgeProgram) -> int:
    columns = program.columns_used("gather") | program.columns_used("reduce")
    return program.bytes_per_row + 8 * (len(columns) + 1)


def run_in_torch(
    program: EdgeProgram,
    block: EdgeBlock,
    tables: Sequence[Tensor],
    into: Sequence[Tensor],
    keys: Tensor,
    local: Mapping[str, int],
    total: Mapping[str, int],
) -> None:
    """Fold a block into `into`, sub-block by sub-block in the block's order.

    Memory is bounded by the sub-block: operands are gathered, and the body computed, for its edges alone. A body that
    reads its own folds back sees all edges at once.

    Args:
        tables: what each operand's rows are read from: owned or fetched rows, or the part's edge rows.
        into: accumulators of the rows that each result's column names; a store's edge tensor of the part.
        keys: int64, row keys of the part's edges.
        local, total: sizes of every space, on this part and in the whole graph.
    """
    own = {c: block.targets(c) for c in program.own_columns}
    step = max(block.length, 1) if own else sub_block_edges(program)
    for start in range(0, max(block.length, len(own)), step):
        stop = min(start + step, block.length)
        # A generator, so that no list keeps the operands alive while the body runs.
        operands = (_operand(o, table, block, start, stop) for o, table in zip(program.operands, tables, strict=True))
        sizes = {**local, program.space: stop - start}
        block_keys = {program.space: keys[block.edges(start, stop)]} if program.draws else None
        made = program.run_block(operands, sizes, total, block_keys, own, keys.device)
        _fold(program, block, start, stop, made, into)
        del made


def _operand(operand: Operand, table: Tensor, block: EdgeBlock, start: int, stop: int) -> Tensor:
    if operand.axis is None:
        return table
    if operand.column is not None:
        return table.index_select(operand.axis, block.targets(operand.column, start, stop))
    if block.rows is None and stop - start == block.length:
        return table  # rows that are no edges' too: a body that reads such sees all edges at once
    dim = operand.type.dims[operand.axis]
    assert isinstance(dim, Rows)
    return select_block(table, operand.axis, dim, block.edges(start, stop))


def _fold(
    program: EdgeProgram, block: EdgeBlock, start: int, stop: int, made: Sequence[Tensor], into: Sequence[Tensor]
) -> None:
    for result, target, value in zip(program.results, into, made, strict=True):
        if result.kind == "contract":
            combine_(target, value, result.fold)
            continue
        if result.kind == "rows":
            target.copy_(value)
            continue
        assert result.axis is not None
        if result.column is not None:
            fold_rows(target, result.axis, block.targets(result.column, start, stop), value, result.fold)
            continue
        dim = result.type.dims[result.axis]
        assert isinstance(dim, Rows)
        store_block(target, result.axis, dim, block.edges(start, stop), value)
