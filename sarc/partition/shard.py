"""What one process holds of a partitioned graph: its parts, and its rows of node and edge tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sarc.errors import GraphError, PartitionError
from sarc.partition.layout import Partitions


@dataclass(frozen=True)
class ShardGraph:
    """Stands for the graph in a call of a compiled model on owned rows: `compiled(shard.x, shard.graph)`."""

    partitions: Partitions

    @property
    def num_nodes(self) -> int:
        """Rows owned by this process, the sum of N_p over its parts."""
        return sum(part.node_ids.numel() for part in self.partitions.parts.values())

    @property
    def num_edges(self) -> int:
        """Edges whose destination this process owns."""
        return sum(part.edge_ids.numel() for part in self.partitions.parts.values())


@dataclass(frozen=True)
class Shard:
    """The rows of one process. `shard.x` is `shard.node["x"]`, or else `shard.edge["x"]`.

    Attributes:
        partitions: the parts held here, with the sizes of the whole graph.
        node_ids: int64 [sum of N_p], global ids of the owned rows: part after part by rank, ascending inside each.
        edge_ids: int64 [sum of E_p], likewise for edges.
        node: by name, tensors whose rows belong to `node_ids`.
        edge: by name, tensors whose rows belong to `edge_ids`.
        graph: the graph argument of a compiled model.
    """

    partitions: Partitions
    node_ids: Tensor
    edge_ids: Tensor
    node: Mapping[str, Tensor]
    edge: Mapping[str, Tensor]
    graph: ShardGraph = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "graph", ShardGraph(self.partitions))

    def __getattr__(self, name: str) -> Tensor:
        # Reached only when ordinary lookup failed; copy and pickle ask for dunders before the fields exist.
        if name.startswith("__") or name in RESERVED:
            raise AttributeError(name)
        if name in self.node:
            return self.node[name]
        if name in self.edge:
            return self.edge[name]
        raise AttributeError(
            f"this shard has no {name!r}: node tensors {sorted(self.node)}, edge tensors {sorted(self.edge)}, "
            f"and {', '.join(sorted(RESERVED))}"
        )


RESERVED = frozenset(f.name for f in fields(Shard))


def cut_shard(
    partitions: Partitions, ranks: int | Sequence[int], node: Mapping[str, Any], edge: Mapping[str, Any]
) -> Shard:
    """Cuts the Shard of `ranks` out of whole-graph tensors; see `Partitions.shard`."""
    held = checked_ranks(ranks, partitions.num_parts)
    check_rows(node, edge, partitions)
    parts = {rank: partitions.part(rank) for rank in held}
    some = replace(partitions, parts=parts)
    if not some.is_whole:
        some = replace(some, assignment=None, edge_index=None)
    node_ids = torch.cat([part.node_ids for part in parts.values()])
    edge_ids = torch.cat([part.edge_ids for part in parts.values()])
    return Shard(
        partitions=some,
        node_ids=node_ids,
        edge_ids=edge_ids,
        node={name: rows_of(tensor, node_ids) for name, tensor in node.items()},
        edge={name: rows_of(tensor, edge_ids) for name, tensor in edge.items()},
    )


def ranks_of_process(num_parts: int, process: int, num_processes: int) -> tuple[int, ...]:
    """Parts that process r of W runs: r*P//W up to (r+1)*P//W, at least one each.

    Raises:
        PartitionError: W > P, or r is not below W.
    """
    if num_processes < 1 or not 0 <= process < num_processes:
        raise PartitionError(
            f"expected WORLD_SIZE >= 1 and 0 <= RANK < WORLD_SIZE, got RANK={process}, WORLD_SIZE={num_processes}"
        )
    if num_processes > num_parts:
        raise PartitionError(
            f"expected at most {num_parts} processes for {num_parts} parts, got WORLD_SIZE={num_processes}; start "
            f"{num_parts} processes, or partition again with num_parts={num_processes}"
        )
    return tuple(range(process * num_parts // num_processes, (process + 1) * num_parts // num_processes))


def checked_ranks(ranks: int | Sequence[int], num_parts: int) -> tuple[int, ...]:
    """`ranks` as an ascending tuple; PartitionError when empty, repeated, out of range or not ints."""
    try:
        held = tuple(sorted(operator.index(r) for r in (ranks if isinstance(ranks, Sequence) else [ranks])))
    except TypeError:
        raise PartitionError(f"ranks: expected an int or a sequence of ints, got {ranks!r}") from None
    if not held or held[0] < 0 or held[-1] >= num_parts or len(set(held)) < len(held):
        raise PartitionError(f"ranks: expected distinct ranks from 0 to {num_parts - 1}, got {ranks!r}")
    return held


def check_rows(node: Mapping[str, Any], edge: Mapping[str, Any], partitions: Partitions) -> None:
    """GraphError unless every tensor has N (node) or E (edge) rows and a name that a Shard can carry."""
    for kind, tensors, rows in (("node", node, partitions.num_nodes), ("edge", edge, partitions.num_edges)):
        for name, tensor in tensors.items():
            if name in RESERVED or name.startswith("__"):
                raise GraphError(f"{kind} tensor {name!r}: this name is taken by Shard itself; choose another")
            if not isinstance(tensor, Tensor | np.ndarray):
                raise GraphError(
                    f"{kind} tensor {name!r}: expected a tensor or numpy array, got {type(tensor).__name__}"
                )
            if isinstance(tensor, Tensor) and tensor.layout != torch.strided:
                raise GraphError(
                    f"{kind} tensor {name!r}: expected a dense tensor, got {tensor.layout}; pass .to_dense()"
                )
            shape = tuple(tensor.shape)
            if not shape or shape[0] != rows:
                advice = "; rows come first: pass its transpose" if shape and shape[-1] == rows else ""
                raise GraphError(
                    f"{kind} tensor {name!r}: expected one row for each of the {rows} {kind}s, got shape "
                    f"{shape}{advice}"
                )


def rows_of(tensor: Tensor | np.ndarray, ids: Tensor) -> Tensor:
    """The rows `ids` (int64 [K], CPU) of a tensor or array, as a new tensor on the tensor's device."""
    if isinstance(tensor, Tensor):
        return tensor[ids.to(tensor.device)]
    rows = np.ascontiguousarray(np.asarray(tensor[ids.numpy()]))  # indexing a memory map reads these rows only
    try:
        return torch.from_numpy(rows)
    except TypeError as error:
        raise GraphError(f"numpy array of dtype {rows.dtype}: torch has no such dtype ({error})") from None
