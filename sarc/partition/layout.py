"""What a graph cut into parts looks like: one part's view, and the set of parts a process holds.

An edge belongs to the owner of its destination. Rows are named by global ids (the row's index in the whole graph) and
kept in ascending global id inside a part, for nodes and edges alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sarc.errors import PartitionError

if TYPE_CHECKING:
    from sarc.partition.shard import Shard


@dataclass(frozen=True)
class Part:
    """What one part knows of the graph.

    Attributes:
        rank: index of the part, 0 <= rank < P.
        node_ids: int64 [N_p], global ids of the owned nodes, ascending.
        edge_ids: int64 [E_p], global ids of the edges whose destination is owned, ascending.
        edge_index: int64 [2, E_p], row 0 global source ids, row 1 global destination ids, aligned with `edge_ids`.
        halo_ids: for each peer q, int64 [H_pq], ascending global ids of q's nodes that are sources of owned edges
            (empty for q == rank).
    """

    rank: int
    node_ids: Tensor
    edge_ids: Tensor
    edge_index: Tensor
    halo_ids: tuple[Tensor, ...]

    @property
    def num_parts(self) -> int:
        return len(self.halo_ids)

    @property
    def halo_sizes(self) -> tuple[int, ...]:
        """H_pq for each peer q."""
        return tuple(ids.numel() for ids in self.halo_ids)

    def to(self, device: torch.device) -> Part:
        """The part with its tensors on a device."""
        nodes, edges, index = (t.to(device) for t in (self.node_ids, self.edge_ids, self.edge_index))
        return Part(self.rank, nodes, edges, index, tuple(ids.to(device) for ids in self.halo_ids))

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Owner and position of each node in `ids`.

        Args:
            ids: int64 [K], global node ids, each owned by this part or in its halo.

        Returns:
            owner int64 [K] and position int64 [K] within `node_ids` (owner == rank) or `halo_ids[owner]`.

        Raises:
            PartitionError: an id is neither owned nor in the halo.
        """
        owner = torch.full_like(ids, -1)
        position = torch.zeros_like(ids)
        for q in range(self.num_parts):
            table = self.node_ids if q == self.rank else self.halo_ids[q]
            if table.numel() == 0:
                continue
            at = torch.searchsorted(table, ids).clamp_(max=table.numel() - 1)
            here = table[at] == ids
            owner[here] = q
            position[here] = at[here]
        if bool((owner < 0).any()):
            missing = int(ids[owner < 0][0])
            raise PartitionError(
                f"node {missing} is neither owned by part {self.rank} nor a source of one of its edges: a column of "
                "node ids may name owned nodes and the in-neighbours of owned nodes only; partition again with these "
                "pairs among the edges"
            )
        return owner, position


@dataclass(frozen=True)
class Partitions:
    """A graph cut into parts: all of them (one process), or those that this process runs (torchrun).

    Attributes:
        num_nodes, num_edges: of the whole graph.
        parts: the parts held here, by rank.
        num_parts: P, of the whole graph.
        assignment: int64 [N], owner of each node, when every part is held; otherwise None.
        edge_index: int64 [2, E] of the whole graph, when every part is held; otherwise None.
        method: how the assignment was made, as printed by `plan()` ("metis", "random", "contiguous", "given", ...).
        fingerprint: hash of the whole graph and assignment; equal on every rank of one partition.
        graph_kind: what the user's model is called with: "edge_index" or "dgl".
        node_type, relation: names of the one node type and the one relation (the default of each).
    """

    num_nodes: int
    num_edges: int
    num_parts: int
    parts: Mapping[int, Part]
    assignment: Tensor | None = None
    edge_index: Tensor | None = None
    method: str = "given"
    fingerprint: str = ""
    graph_kind: str = "edge_index"
    node_type: str = "_N"
    relation: str = "_E"
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every part is held by this process."""
        return len(self.parts) == self.num_parts

    def part(self, rank: int) -> Part:
        """The part of `rank`; raises PartitionError when it is not held here."""
        if rank not in self.parts:
            held = ", ".join(map(str, sorted(self.parts)))
            raise PartitionError(f"part {rank} of {self.num_parts} is not held by this process (held: {held})")
        return self.parts[rank]

    def save(
        self,
        directory: str | PathLike[str],
        node: Mapping[str, Any] | None = None,
        edge: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes one file a part, with its rows of each whole-graph tensor, and a manifest.

        Args:
            directory: made when missing; a partition already there is replaced.
            node: tensors or numpy arrays (memory-mapped ones too) of N rows, by name.
            edge: the same of E rows, in the order of edge ids.

        Raises:
            GraphError: a tensor has another number of rows.
            PartitionError: this process does not hold every part.
        """
        from sarc.partition.files import save

        save(self, directory, node or {}, edge or {})

    def shard(
        self, rank_or_ranks: int | Sequence[int], /, *, edge: Mapping[str, Any] | None = None, **node_tensors: Any
    ) -> Shard:
        """What the given rank (or ranks) holds, cut out of whole tensors that every rank has.

        Args:
            rank_or_ranks: parts of this process.
            edge: tensors or numpy arrays of E rows, in the order of edge ids, by name.
            node_tensors: tensors or numpy arrays of N rows: `parts.shard(rank, x=x, y=y)`.

        Raises:
            GraphError: a tensor has another number of rows.
            PartitionError: a rank is out of range, repeated or not held here.
        """
        from sarc.partition.shard import cut_shard

        return cut_shard(self, rank_or_ranks, node_tensors, edge or {})
