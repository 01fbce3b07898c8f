"""Cut a graph along an assignment: builds every part's nodes, edges and halo."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from sarc.partition.layout import Part, Partitions


def cut(
    edge_index: Tensor, assignment: Tensor, num_parts: int, *, method: str = "given", graph_kind: str = "edge_index"
) -> Partitions:
    """Builds the Partitions in which part p owns the nodes with `assignment == p` and their in-edges.

    The arguments are taken to be checked already (see `partition`). Work is O(E + P N) without a loop over edges or
    nodes.

    Args:
        edge_index: int64 [2, E] on the CPU, row 0 source ids, row 1 destination ids.
        assignment: int64 [N] on the CPU, owner of each node, 0 <= owner < P.
        num_parts: P, at least 1; parts may be empty.
    """
    num_nodes, num_edges = assignment.numel(), edge_index.shape[1]
    node_ids = _ids_by_owner(assignment, num_parts)
    edge_ids = _ids_by_owner(assignment[edge_index[1]], num_parts)
    parts = {}
    for p in range(num_parts):
        edges = edge_index[:, edge_ids[p]]
        halo = _halo(edges[0], p, assignment, num_parts)
        parts[p] = Part(rank=p, node_ids=node_ids[p], edge_ids=edge_ids[p], edge_index=edges, halo_ids=halo)
    return Partitions(
        num_nodes=num_nodes,
        num_edges=num_edges,
        num_parts=num_parts,
        parts=parts,
        assignment=assignment,
        edge_index=edge_index,
        method=method,
        fingerprint=fingerprint(edge_index, assignment, num_parts),
        graph_kind=graph_kind,
    )


def fingerprint(edge_index: Tensor, assignment: Tensor, num_parts: int) -> str:
    """SHA-256 (hex) over N, E, P, the edges in order and the assignment."""
    digest = hashlib.sha256(f"sarc partition N={assignment.numel()} E={edge_index.shape[1]} P={num_parts}\n".encode())
    for tensor in (edge_index, assignment):
        digest.update(tensor.to(torch.int64).contiguous().numpy().data)
    return digest.hexdigest()


def _ids_by_owner(owner: Tensor, num_parts: int) -> list[Tensor]:
    """For each part, the ascending positions where `owner` names it: P tensors int64, each with its own storage."""
    # NumPy sorts 16-bit keys by radix, 17 times faster than int64 keys at 20 M edges.
    key = owner.to(torch.int16 if num_parts < 2**15 else torch.int64).numpy()
    order = torch.from_numpy(key.argsort(kind="stable"))
    counts = torch.bincount(owner, minlength=num_parts)
    return [ids.clone() for ids in order.split(counts.tolist())]


def _halo(sources: Tensor, rank: int, assignment: Tensor, num_parts: int) -> tuple[Tensor, ...]:
    """Per peer, the distinct sources it owns, ascending; empty for `rank` itself."""
    is_source = torch.zeros(assignment.numel(), dtype=torch.bool)
    is_source.index_fill_(0, sources, True)
    remote = (is_source & (assignment != rank)).nonzero().squeeze(1)
    # Most of P*P pairs are empty when P is large: they share one empty tensor.
    empty = torch.empty(0, dtype=torch.int64)
    return tuple(remote[at] if at.numel() else empty for at in _ids_by_owner(assignment[remote], num_parts))
