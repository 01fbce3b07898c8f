"""What a part knows of the spaces of a program: how many rows it owns, their ids, and the maps of its columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sarc.errors import GraphError, PartitionError, SarcError
from sarc.ir.space import Space, Spaces
from sarc.partition.columns import Block, ColumnMap, chunk_rows, is_hub
from sarc.partition.layout import Part
from sarc.runtime.known_columns import KnownColumns, common_number
from sarc.runtime.work import AllGather, AllReduce, Exchange, Work

NODES, EDGES = "N", "E"


@dataclass
class PartState:
    """Rows of every space on one part.

    Attributes:
        part: owned nodes, edges and halo.
        spaces: of the program; derived ones gain rows as the structure program runs.
        local: rows owned here, by space without parents other than filters.
        total: rows of the whole graph, by the same spaces.
        keys: int64 ids of the owned rows, by space.
        assignment: owner of every node when this process holds the whole graph, else None.
        known: maps, and traversals by kernels, that this part has made for any variant of the model.
        columns: map of each column, by (value name, target space).
        owners: int64 [S_p], owners of the rows that a row set's column names, by the name of its input.
    """

    part: Part
    spaces: Spaces
    local: dict[str, int]
    total: dict[str, int]
    keys: dict[str, Tensor]
    assignment: Tensor | None
    known: KnownColumns = field(default_factory=KnownColumns)
    columns: dict[tuple[str, str | int], ColumnMap] = field(default_factory=dict)
    owners: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return self.part.rank

    @property
    def device(self) -> torch.device:
        """Where its rows are."""
        return self.part.node_ids.device

    def local_sizes(self) -> dict[str, int]:
        return self.spaces.numbers(self.local)

    def total_sizes(self) -> dict[str, int]:
        return self.spaces.numbers(self.total)

    def sizes_of(self, spaces: Spaces) -> tuple[dict[str, int], dict[str, int]]:
        """Rows of a partitioned program's spaces on this part, and in the whole graph."""
        return spaces.numbers(self.local), spaces.numbers(self.total)

    def row_keys(self, name: str) -> Tensor:
        """int64 ids of the rows of a space; those of a concat follow those of its earlier parts."""
        if name not in self.keys:
            space = self.spaces[name]
            start, parts = 0, []
            for parent in space.parents:
                parts.append(self.row_keys(parent) + start)
                start += self.key_bound(parent)
            self.keys[name] = torch.cat(parts)
        return self.keys[name]

    def all_keys(self) -> dict[str, Tensor]:
        known = (s for s in self.spaces if s.kind not in ("filter", "reach") or s.name in self.keys)
        return {s.name: self.row_keys(s.name) for s in known}

    def key_bound(self, name: str) -> int:
        """Ids of the rows of a space are below this number, on every part."""
        space = self.spaces[name]
        if space.kind in ("filter", "placed"):
            return self.key_bound(space.parents[0])
        if space.kind == "concat":
            return sum(self.key_bound(p) for p in space.parents)
        return self.total[name]

    def add_filter(self, name: str, mask: Tensor) -> Work:
        """Enter the rows of a filter space; `mask` bool [T_p] over its parent's rows."""
        self.keys[name] = self.row_keys(self.spaces[name].parents[0])[mask]
        self.local[name] = self.keys[name].numel()
        total = yield AllReduce(torch.tensor(self.local[name]), "sum")
        self.total[name] = int(total)

    def locate(self, ids: Tensor, target: str, where: str) -> tuple[Tensor, Tensor]:
        """Owner of each id, and the id itself; raises when an id is no row of `target` or is not known here."""
        check_range(ids, self.key_bound(target), where)
        if target == NODES:
            if self.assignment is not None:
                return self.assignment[ids], ids
            owner, _ = self.part.locate(ids)
            return owner, ids
        keys = self.row_keys(target)
        at = torch.searchsorted(keys, ids).clamp_(max=max(keys.numel() - 1, 0))
        if ids.numel() and (not keys.numel() or not bool((keys[at] == ids).all())):
            raise PartitionError(
                f"{where}a column names rows of {target} that other parts own: only node rows may be read from other "
                f"parts"
            )
        return torch.full_like(ids, self.rank), ids

    def own_position(self, ids: Tensor, target: str) -> Tensor:
        """Positions of owned ids among this part's rows of `target`."""
        return torch.searchsorted(self.row_keys(target), ids)

    def map_column(self, ids: Tensor, target: str | int, where: str = "", owner: Tensor | None = None) -> Work:
        """The ColumnMap of a column of ids; one that all parts have made before is given again.

        Args:
            target: the space whose rows it names, or the length of a replicated dimension, which is read in place.
            where: "file:line: " of the user's code, for messages.
            owner: int64 [S_p], who owns the rows, where that is known.

        Raises:
            GraphError: an id is out of range, on any part.
            PartitionError: an id names rows that cannot be reached from here.
        """
        problem: SarcError | None = None
        owners = torch.full_like(ids, self.rank)
        try:
            if isinstance(target, int):
                check_range(ids, target, where)
            elif owner is not None:
                owners = owner
            else:
                owners, _ = self.locate(ids, target, where)
        except (GraphError, PartitionError) as error:
            problem = error
        rows = target if isinstance(target, int) else self.row_keys(target)
        answers = yield AllGather((problem, self.known.numbers(ids, rows) if problem is None else frozenset()))
        for found, _ in answers:
            if found:
                raise found
        number = common_number(numbers for _, numbers in answers)
        if number is not None:
            return self.known.map(number)
        made = yield from self._new_map(ids, owners, target)
        return self.known.add(made, ids, rows)

    def _new_map(self, ids: Tensor, owner: Tensor, target: str | int) -> Work:
        """The ColumnMap of a column, whose ids have these owners."""
        if isinstance(target, int):
            return ColumnMap(False, ids)
        remote = bool((owner != self.rank).any())
        index = ids[:0] if remote else self.own_position(ids, target)
        longest = int(index.bincount().max()) if index.numel() else 0
        flag = int((yield AllReduce(torch.tensor(2 if remote else int(is_hub(longest, ids.numel()))), "max")))
        if flag < 2:
            return ColumnMap(False, index, has_hub=flag == 1)
        counts = yield AllGather(self.local[target])
        needed = {q: ids[owner == q].unique() for q in range(self.part.num_parts) if q != self.rank}
        requests = yield Exchange({q: wanted for q, wanted in needed.items() if wanted.numel()})
        own_rows = (owner == self.rank).nonzero().view(-1)
        blocks = [Block(self.rank, 0, own_rows, self.own_position(ids[own_rows], target))]
        needs: list[tuple[int, ...]] = []
        serves: list[tuple[Tensor, ...]] = []
        for q in range(self.part.num_parts):
            if q == self.rank:
                needs.append(())
                serves.append(())
                continue
            step = chunk_rows(counts[self.rank], counts[q])
            needs.append(tuple(len(c) for c in needed[q].split(step)) if needed[q].numel() else ())
            rows = (owner == q).nonzero().view(-1)
            place = torch.searchsorted(needed[q], ids[rows])
            chunk = place // step
            for c in range(len(needs[q])):
                here = chunk == c
                blocks.append(Block(q, c, rows[here], place[here] - c * step))
            asked = requests.get(q)
            serves.append(tuple(self.own_position(asked, target).split(step)) if asked is not None else ())
        everyone = yield AllGather(tuple(sum(chunks) for chunks in needs))
        parts = range(self.part.num_parts)
        chunks = [[-(-everyone[p][q] // chunk_rows(counts[p], counts[q])) for q in parts] for p in parts]
        rounds = tuple(max(chunks[p][(p - r) % len(parts)] for p in parts) for r in parts)
        return ColumnMap(True, None, tuple(blocks), tuple(needs), tuple(serves), rounds, tuple(everyone))

    def add_reach(self, space: Space) -> None:
        """Enter the rows that this part reaches through a column that is mapped: its own, then its halo."""
        (parent,) = space.parents
        column = self.columns[space.mask, parent]
        self.local[space.name] = self.local_sizes()[parent] + column.halo_rows
        self.total[space.name] = self.total_sizes()[parent] + sum(map(sum, column.reads))

    def add_reach_keys(self, space: Space) -> Work:
        """Ids of the rows of a reach space, from their owners: what is drawn for a row is drawn alike everywhere."""
        (parent,) = space.parents
        column, own = self.columns[space.mask, parent], self.row_keys(parent)
        outgoing = {q: own[torch.cat(chunks)] for q, chunks in enumerate(column.serves) if chunks}
        incoming = yield Exchange(outgoing)
        self.keys[space.name] = torch.cat([own, *(incoming[q] for q in sorted(incoming))])

    def reach(self, column: str, parent: str) -> ColumnMap:
        """The map of a column into the rows of `parent` that this part owns, followed by its halo (see `Space`)."""
        found = self.columns[column, parent]
        if not found.remote:
            return found
        return self.known.reach(found, self.local_sizes()[parent])


def check_range(ids: Tensor, bound: int, where: str) -> None:
    """GraphError unless 0 <= ids < bound."""
    if not ids.numel():
        return
    low, high = (int(v) for v in torch.aminmax(ids))
    if low < 0 or high >= bound:
        advice = "negative positions do not count from the end: add the number of rows" if low < 0 else (
            "check the index that is an input, or made from inputs, in this line"
        )
        raise GraphError(
            f"{where}index {low if low < 0 else high} is out of range: expected values from 0 to {bound - 1}; {advice}"
        )
