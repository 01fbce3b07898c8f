"""How good a partition is: cut edges, halo rows, and how evenly nodes and edges are spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sarc.errors import PartitionError
from sarc.partition.layout import Partitions


@dataclass(frozen=True)
class Quality:
    """Numbers of one partition.

    Attributes:
        num_parts: P.
        edge_cut: edges whose ends have different owners.
        cut_fraction: edge_cut / E (0 without edges).
        halo_rows: H_pq, rows that part p (first index) needs from q; zero for p == q.
        communication_volume: rows received in one exchange of every halo, the sum of H_pq.
        replication_factor: (N + communication_volume) / N, copies of a node over all parts; 1 is the least.
        node_balance: max N_p / mean N_p; 1 is even.
        edge_balance: max E_p / mean E_p; 1 is even (and without edges).
    """

    num_parts: int
    edge_cut: int
    cut_fraction: float
    halo_rows: tuple[tuple[int, ...], ...]
    communication_volume: int
    replication_factor: float
    node_balance: float
    edge_balance: float

    def __str__(self) -> str:
        return (
            f"{self.num_parts} parts: {self.edge_cut} edges cut ({self.cut_fraction:.1%}), {self.communication_volume} "
            f"halo rows (each node on {self.replication_factor:.2f} parts), balance nodes {self.node_balance:.2f} "
            f"edges {self.edge_balance:.2f}"
        )


def quality(partitions: Partitions) -> Quality:
    """Measures a whole partition.

    Raises:
        PartitionError: this process holds only some of the parts.
    """
    if partitions.assignment is None or partitions.edge_index is None or not partitions.is_whole:
        held = ", ".join(map(str, sorted(partitions.parts)))
        raise PartitionError(
            f"quality needs all {partitions.num_parts} parts, this process holds {held}; measure before saving"
        )
    parts = [partitions.parts[p] for p in range(partitions.num_parts)]
    owner = partitions.assignment[partitions.edge_index]
    edge_cut = int((owner[0] != owner[1]).sum())
    halo_rows = tuple(part.halo_sizes for part in parts)
    volume = sum(map(sum, halo_rows))
    return Quality(
        num_parts=partitions.num_parts,
        edge_cut=edge_cut,
        cut_fraction=edge_cut / max(partitions.num_edges, 1),
        halo_rows=halo_rows,
        communication_volume=volume,
        replication_factor=(partitions.num_nodes + volume) / partitions.num_nodes,
        node_balance=_balance([part.node_ids.numel() for part in parts]),
        edge_balance=_balance([part.edge_ids.numel() for part in parts]),
    )


def _balance(sizes: Sequence[int]) -> float:
    total = sum(sizes)
    return max(sizes) * len(sizes) / total if total else 1.0
