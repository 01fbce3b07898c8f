"""What a graph cut into parts looks like: one part's view, and the set of parts a process holds.

An edge belongs to the owner of its destination. Rows are named by global ids (the row's index in the whole graph) and
kept in ascending global id inside a part, for nodes and edges alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sarc.errors import PartitionError


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
                f"node {missing} is neither owned by part {self.rank} nor a source of one of its edges: a column of node "
                f"ids may name owned nodes and the in-neighbours of owned nodes only; partition again with these pairs "
                f"among the edges"
            )
        return owner, position


@dataclass(frozen=True)
class Partitions:
    """A graph cut into parts: all of them (one process), or those that this process runs (torchrun).

    Attributes:
        num_nodes, num_edges: of the whole graph.
        parts: the parts held here, by rank.
        num_parts: P, of the whole graph.
        assignment: int64 [N], owner of each node, when the whole graph is held; otherwise None.
        edge_index: int64 [2, E] of the whole graph, when it is held; otherwise None.
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
