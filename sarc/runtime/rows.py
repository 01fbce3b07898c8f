"""Whose rows a process's tensors hold: cutting them for its parts, and putting parts' rows together again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarc.ir.edge_program import open_rows, select_block
from sarc.ir.space import ValueType
from sarc.runtime.part_state import PartState


@dataclass(frozen=True)
class RowOrder:
    """The order of a process's rows.

    A process that holds the whole graph has rows in the graph's own order; one that holds some parts has them part
    after part.

    Attributes:
        whole: which of the two.
        states: the hosted parts, in rank order.
    """

    whole: bool
    states: Sequence[PartState]

    def cut(self, value: Tensor, type_: ValueType) -> list[Tensor]:
        """Each hosted part's rows of a process's tensor, in its memory where they lie together; a replicated one is
        shared."""
        found = type_.rows
        if found is None:
            return [value] * len(self.states)
        axis, dim = found
        if len(self.states) == 1:
            return [value]
        places = self._positions(dim.space) if self.whole else self._runs(dim.space)
        at = [rows if isinstance(rows, slice) else rows.to(value.device) for rows in places]
        return [select_block(value, axis, dim, rows) for rows in at]

    def join(self, values: Sequence[Tensor], type_: ValueType) -> Tensor:
        """The process's tensor from its parts' rows."""
        found = type_.rows
        if found is None or len(values) == 1:
            return values[0]
        axis, dim = found
        opened, places = zip(*(open_rows(v, axis, dim) for v in values), strict=True)
        at = places[0]
        together = torch.cat(opened, at)
        if self.whole:
            order = torch.cat(self._positions(dim.space))
            inverse = torch.empty_like(order)
            inverse[order] = torch.arange(order.numel(), device=order.device)
            together = together.index_select(at, inverse)
        if dim.plain:
            return together
        shape = list(values[0].shape)
        shape[axis] = dim.before * together.shape[at] * dim.after
        return together.reshape(shape)

    def _runs(self, space: str) -> list[slice]:
        """Where each part's rows lie in a process that has them part after part."""
        starts = [0, *itertools.accumulate(s.row_keys(space).numel() for s in self.states)]
        return list(itertools.starmap(slice, itertools.pairwise(starts)))

    def _positions(self, space: str) -> list[Tensor]:
        """Position of each part's rows among those of the whole graph."""
        keys = [s.row_keys(space) for s in self.states]
        if all(s.spaces[space].kind in ("nodes", "edges") for s in self.states):
            return keys
        # Ascending keys is the order of the rows in the whole graph.
        everything = torch.cat(keys)
        rank = torch.empty_like(everything)
        rank[everything.argsort()] = torch.arange(everything.numel(), device=everything.device)
        return list(rank.split([k.numel() for k in keys]))


def counts(states: Sequence[PartState], names: Sequence[str]) -> Mapping[str, int]:
    """Rows of the hosted parts together, by space."""
    return {name: sum(s.local[name] for s in states) for name in names}
