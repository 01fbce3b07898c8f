"""Traversal: the edges of a block in the order in which a kernel visits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CHUNK_EDGES = 4096
SPLIT_EDGES = 4 * CHUNK_EDGES
PADDING = 64


@dataclass(frozen=True)
class Traversal:
    """The edges of a block in the order of one column.

    Attributes:
        bounds: int64 [chunks + 1], first row (edge, without a column) of each chunk.
        starts: int64 [rows + 1], first edge of each row; a row with very many edges stands several times.
        targets: int32 [rows], the column's value of each row.
        slots: int32 [rows], -1, or the place of a piece of a long row among all pieces.
        pieces: int64 [slots], the row that each piece belongs to.
        edges: int32 [K + padding], positions of the edges in traversal order among the part's edges.
        columns: int32 [K + padding] of each column, in traversal order.
        made: what was derived from it: row keys in its order, positions of another traversal's edges.
    """

    bounds: Tensor
    starts: Tensor
    targets: Tensor
    slots: Tensor
    pieces: Tensor
    edges: Tensor
    columns: Mapping[int, Tensor]
    made: dict[object, Any] = field(default_factory=dict)

    def ordered(self, keys: Tensor) -> Tensor:
        """Row keys int64 of the part's edges, in traversal order."""
        key = ("keys", keys.data_ptr(), keys.numel())  # rows of several spaces may share a traversal
        if key not in self.made:
            self.made[key] = keys[self._edges]
        return self.made[key]

    def positions_in(self, first: Traversal, length: int) -> Tensor:
        """int32 [K + PADDING], where each edge stands in another traversal of the same block."""
        key = ("positions", id(first))
        if key not in self.made:
            place = torch.zeros(length, dtype=torch.int32, device=first.edges.device)
            place[first._edges] = torch.arange(first._edges.numel(), dtype=torch.int32, device=place.device)
            self.made[key] = _padded(place[self._edges])
        return self.made[key]

    @property
    def _edges(self) -> Tensor:
        """`edges` without padding, as an index."""
        return self.edges[: self.edges.numel() - PADDING].long()


def traversal(
    order: int | None,
    edges: Tensor | None,
    length: int,
    columns: Mapping[int, Tensor],
    rows: int | None = None,
    split: bool = True,
    device: torch.device | str = "cpu",
) -> Traversal:
    """Group a block's edges by one column.

    Args:
        order: the column, or None for the block's own order.
        edges: int64 [K], positions of the block's edges among the part's (None: all of them).
        length: K.
        columns: int64 [K], positions that each column names.
        rows: number of rows that the column may name, to visit all of them, those without edges too; None to visit
            those that it names.
        split: whether a row with very many edges may be visited in pieces.
        device: of the columns, and of what is made.
    """
    edges = torch.arange(length, device=device) if edges is None else edges
    none = torch.empty(0, dtype=torch.int32, device=device)
    if order is None:
        bounds = torch.arange(0, length + CHUNK_EDGES, CHUNK_EDGES, device=device).clamp_(max=length).unique()
        padded = {c: _padded(v) for c, v in columns.items()}
        return Traversal(bounds, bounds, none, none, none.long(), _padded(edges), padded)
    key = columns[order]
    place = torch.argsort(key, stable=True)
    if rows is None:
        targets, counts = torch.unique_consecutive(key[place], return_counts=True)
    else:
        targets, counts = torch.arange(rows, device=device), torch.bincount(key, minlength=rows)
    targets, counts, slots, pieces = _split(targets, counts, SPLIT_EDGES if split else int(counts.sum()))
    starts = torch.zeros(targets.numel() + 1, dtype=torch.int64, device=device)
    torch.cumsum(counts, 0, out=starts[1:])
    # A chunk ends at the first row boundary after each CHUNK_EDGES edges (rows without edges count as one): fixed by
    # the graph, not by the threads.
    work = starts + torch.arange(starts.numel(), device=device)
    marks = torch.arange(1, max(1, -(-int(work[-1]) // CHUNK_EDGES)), device=device) * CHUNK_EDGES
    inner = torch.searchsorted(work, marks).clamp_(max=targets.numel())
    ends = torch.tensor([0, targets.numel()], device=device)
    bounds = torch.cat([ends[:1], inner, ends[1:]]).unique()
    padded = {c: _padded(v[place]) for c, v in columns.items()}
    return Traversal(bounds, starts, targets.int(), slots, pieces, _padded(edges[place]), padded)


def _split(targets: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of more than `most` edges as several pieces of CHUNK_EDGES edges."""
    slots = torch.full_like(targets, -1, dtype=torch.int32)
    if not bool((counts > most).any()):
        return targets, counts, slots, targets[:0]
    pieces = torch.where(counts > most, -(-counts // CHUNK_EDGES), 1)
    many = torch.repeat_interleave(pieces > 1, pieces)
    which = torch.repeat_interleave(torch.arange(targets.numel(), device=targets.device), pieces)
    number = torch.arange(which.numel(), device=targets.device) - (torch.cumsum(pieces, 0) - pieces)[which]
    sizes = torch.where(many, (counts[which] - number * CHUNK_EDGES).clamp(max=CHUNK_EDGES), counts[which])
    slots = torch.where(many, torch.cumsum(many, 0) - 1, -1).int()
    return targets[which], sizes, slots, targets[which][many]


def _padded(column: Tensor) -> Tensor:
    """int32 copy with room behind it: kernels look a few edges ahead."""
    out = torch.zeros(column.numel() + PADDING, dtype=torch.int32, device=column.device)
    out[: column.numel()] = column
    return out
