"""The columns that a part has mapped, whatever variant of a model asked for them.

Variants (train and eval mode, with and without gradients) of one model run over one graph: equal columns share one map,
and the traversals of kernels made by it. What is kept here lives as long as a binding uses the map.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sarc.partition.columns import ColumnMap


@dataclass(frozen=True)
class _Source:
    """What a map was made from.

    Attributes:
        number: of the map, in the order of making, the same on all parts.
        ids: int64 [S_p], the column; may be the user's own memory.
        version: of `ids` then: a column that was changed in place is no longer what the map was made from.
        rows: int64, ids of the part's rows of the target space; the length of a replicated dimension otherwise.
    """

    number: int
    ids: Tensor
    version: int
    rows: Tensor | int

    def is_of(self, ids: Tensor, rows: Tensor | int) -> bool:
        return _version(self.ids) == self.version and _equal(self.rows, rows) and _equal(self.ids, ids)


class KnownColumns:
    """Maps of one part, and traversals of edges by them."""

    def __init__(self) -> None:
        self._sources: WeakKeyDictionary[ColumnMap, _Source] = WeakKeyDictionary()
        self._traversals: WeakKeyDictionary[ColumnMap, dict[tuple[int, ...], dict[object, object]]]
        self._traversals = WeakKeyDictionary()
        self._reaches: WeakKeyDictionary[ColumnMap, ColumnMap] = WeakKeyDictionary()
        self._made = 0
        self.without_columns: dict[object, object] = {}  # traversals of row sets in their own order

    def numbers(self, ids: Tensor, rows: Tensor | int) -> frozenset[int]:
        """Numbers of the maps of an equal column into equal rows."""
        return frozenset(s.number for s in self._sources.values() if s.is_of(ids, rows))

    def map(self, number: int) -> ColumnMap:
        """The map of a number that `numbers` has named."""
        return next(column for column, source in self._sources.items() if source.number == number)

    def add(self, column: ColumnMap, ids: Tensor, rows: Tensor | int) -> ColumnMap:
        """Enter a new map; every part enters its own of the same column at this time."""
        ids = ids.clone() if ids.is_inference() else ids  # in-place changes of those are not counted
        self._sources[column] = _Source(self._made, ids, _version(ids), rows)
        self._made += 1
        return column

    def reach(self, column: ColumnMap, owned: int) -> ColumnMap:
        """A column that reaches other parts, as positions among `owned` rows followed by the halo's; made once."""
        if column not in self._reaches:
            length = sum(b.rows.numel() for b in column.blocks)
            index = torch.empty(length, dtype=torch.int64, device=column.blocks[0].rows.device)
            for k, block in enumerate(column.blocks):
                start = owned + column.halo_start(block.peer, block.chunk) if k else 0  # the first is the part's own
                index[block.rows] = block.index + start
            made = ColumnMap(False, index)
            self._reaches[column] = self.add(made, index, -1)
        return self._reaches[column]

    def traversals(self, columns: Iterable[ColumnMap]) -> dict[object, object]:
        """The traversals made through some columns (at least one), in this order, as long as all of them live."""
        maps = list(columns)
        by_numbers = self._traversals.setdefault(maps[0], {})
        alive = {source.number for source in self._sources.values()}
        for numbers in [n for n in by_numbers if not alive.issuperset(n)]:
            del by_numbers[numbers]
        return by_numbers.setdefault(tuple(self._sources[column].number for column in maps), {})


def common_number(numbers: Iterable[frozenset[int]]) -> int | None:
    """The first map that every part knows, from the numbers that each has found."""
    shared = frozenset.intersection(*numbers)
    return min(shared, default=None)


def _version(ids: Tensor) -> int:
    return -1 if ids.is_inference() else ids._version


def _equal(a: Tensor | int, b: Tensor | int) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a is b or (a.shape == b.shape and torch.equal(a, b))
