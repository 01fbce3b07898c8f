"""WholeExchange: the halo rows of some values on their way, from or to every peer at once.

A *table* has the rows that a part reaches through a column: its own first, then those of each peer in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sarc.ir.collective import maximum_of
from sarc.ir.dialect import fold_rows
from sarc.ir.edge_program import ChunkLayout
from sarc.ir.schedule import AllToAll, Message
from sarc.partition.columns import ColumnMap
from sarc.runtime.memory import Pool


class WholeExchange:
    """One exchange of a part: packed when it is made, read when its messages are there.

    Args:
        layout: of a message; its keys are places of `values`.
        column: through which the rows are reached.
        owned: number of the part's own rows.
        values: what is fetched, [owned rows]; or the folds to give back, tables.
        step: the messages.
        sent: memory for what is sent, uint8 [bytes].
        pool: memory of tables.
    """

    def __init__(
        self, layout: ChunkLayout, column: ColumnMap, owned: int, values: Sequence[Tensor], step: AllToAll,
        sent: Tensor, pool: Pool,
    ):  # fmt: skip
        self.layout, self.column, self.owned, self.values, self.step = layout, column, owned, values, step
        self.pool, self.sent = pool, sent
        axes = {key: axis for key, axis, _, _ in layout.entries}
        for message, segments in self._segments(step.sends, sent.split([m.nbytes for m in step.sends])):
            for key, segment in segments.items():
                self._pack(values[key], axes[key], message.peer, segment)

    def _pack(self, value: Tensor, axis: int, peer: int, segment: Tensor) -> None:
        """Write what a peer is sent of a value: rows first."""
        alike = (value.dtype, value.device) == (segment.dtype, segment.device)
        if self.step.what == "fetch" and axis == 0 and alike:
            start = 0
            for rows in self.column.serves[peer]:
                torch.index_select(value, 0, rows, out=segment[start : start + len(rows)])
                start += len(rows)
            return
        segment.copy_(self._rows_of(value, axis, peer).movedim(axis, 0))

    def _segments(self, messages: Sequence[Message], pieces: Sequence[Tensor]):
        for message, piece in zip(messages, pieces, strict=True):
            yield message, self.layout.segments(piece, message.rows)

    def _rows_of(self, value: Tensor, axis: int, peer: int) -> Tensor:
        """Of a fetch, the owned rows that a peer reads; of a give-back, the rows of the table that it owns."""
        if self.step.what == "fetch":
            return value.index_select(axis, torch.cat(self.column.serves[peer]))
        return value.narrow(axis, self.owned + self.column.halo_start(peer), sum(self.column.needs[peer]))

    def tables(self, received: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A fetch's values with the halo, of the messages received, behind the owned rows."""
        found: list[Tensor] = []
        for key, value in enumerate(self.values):
            axis = self._axis(key)
            shape = list(value.shape)
            shape[axis] = self.owned + self.column.halo_rows
            table = self.pool.empty(shape, value.dtype, value.device)
            table.narrow(axis, 0, self.owned).copy_(value)
            found.append(table)
        for message, segments in self._segments(self.step.receives, received):
            start = self.owned + self.column.halo_start(message.peer)
            for key, segment in segments.items():
                axis = self._axis(key)
                found[key].narrow(axis, start, message.rows).copy_(segment.movedim(0, axis))
        return tuple(found)

    def fold(self, received: Sequence[Tensor], folds: Sequence[str]) -> tuple[Tensor, ...]:
        """Folds of the owned rows: this part's share, in the memory of its tables, with what the peers return."""
        found = [v.narrow(self._axis(k), 0, self.owned) for k, v in enumerate(self.values)]
        relative: dict[int, list[int]] = {}
        for key, kind in enumerate(folds):
            if (top := maximum_of(kind)) is not None:
                relative.setdefault(top, []).append(key)
        for message, segments in self._segments(self.step.receives, received):
            rows = torch.cat(self.column.serves[message.peer])
            for key, segment in segments.items():
                if maximum_of(folds[key]) is None and key not in relative:
                    axis, into = self._axis(key), found[key]
                    share = segment.movedim(0, axis).to(into.device, into.dtype)
                    fold_rows(into, axis, rows, share, folds[key])
            for top, sums in relative.items():
                shares = {k: segments[k].movedim(0, self._axis(k)) for k in (top, *sums)}
                tables = [(found[k], share.to(found[k].device)) for k, share in shares.items()]
                combine_states(rows, tables[0], tables[1:])
        return tuple(v.contiguous() for v in found)

    def _axis(self, key: int) -> int:
        return next(axis for k, axis, _, _ in self.layout.entries if k == key)


def combine_states(rows: Tensor, maximum: tuple[Tensor, Tensor], sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Combine fold states of some rows, in place (`sarc.ir.fold_states`).

    Args:
        rows: int64 [K], each once.
        maximum: of all rows [N, *S] and of a share [K, *S].
        sums: each [N, *S, *F] and [K, *S, *F], relative to these.
    """
    whole, share = maximum
    before = whole.index_select(0, rows)
    top = torch.maximum(before, share)
    whole.index_copy_(0, rows, top)
    # Equal ones may be infinite: no edge at all.
    old, new = ((m - top).masked_fill_(m == top, 0).exp_() for m in (before, share))
    for into, part in sums:
        shape = (*top.shape, *[1] * (part.dim() - top.dim()))
        total = into.index_select(0, rows).mul_(old.view(shape)).add_(part * new.view(shape))
        into.index_copy_(0, rows, total)
