"""A labelled graph in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sarc.errors import GraphError

MASKS = ("train_mask", "val_mask", "test_mask")


@dataclass(frozen=True, eq=False)
class GraphData:
    """One graph with features, labels and splits; what is not there is None.

    Attributes:
        edge_index: int64 [2, E], row 0 sources, row 1 destinations.
        num_nodes: N.
        x: float [N, F], dense or sparse CSR.
        y: int64 [N] classes (-1: no label), or [N, T] for T tasks or float targets.
        train_mask, val_mask, test_mask: bool [N].
        num_classes: C of a classification, otherwise 0.
        name: for printing.
        edge: by name, tensors of E rows (weights, types).
        meta: what the source says of itself.

    Raises:
        GraphError: shapes do not agree.
    """

    edge_index: Tensor
    num_nodes: int
    x: Tensor | None = None
    y: Tensor | None = None
    train_mask: Tensor | None = None
    val_mask: Tensor | None = None
    test_mask: Tensor | None = None
    num_classes: int = 0
    name: str = "graph"
    edge: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.edge_index.shape)
        if len(shape) != 2 or shape[0] != 2 or self.edge_index.dtype != torch.int64:
            raise GraphError(f"{self.name}: edge_index: expected int64 [2, E], got {self.edge_index.dtype} {shape}")
        for name in ("x", "y", *MASKS):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.ndim == 0 or tensor.shape[0] != self.num_nodes):
                raise GraphError(
                    f"{self.name}: {name}: expected {self.num_nodes} rows, got shape {tuple(tensor.shape)}"
                )
            if tensor is not None and name in MASKS and (tensor.dtype != torch.bool or tensor.ndim != 1):
                raise GraphError(f"{self.name}: {name}: expected bool [N], got {tensor.dtype} {tuple(tensor.shape)}")
        for name, tensor in self.edge.items():
            if tensor.ndim == 0 or tensor.shape[0] != self.num_edges:
                raise GraphError(
                    f"{self.name}: edge tensor {name!r}: expected {self.num_edges} rows, got shape "
                    f"{tuple(tensor.shape)}"
                )

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def num_features(self) -> int:
        return 0 if self.x is None else self.x.shape[1]

    def reordered(self, order: Tensor) -> GraphData:
        """The same graph with its nodes renumbered: node `order[k]` becomes node k (see `sarc.locality_order`).

        Edges keep their order. Results for the nodes of the original are those rows `order.argsort()` of the new ones.

        Args:
            order: int64 [N], every node once.

        Raises:
            GraphError: order is no permutation of the nodes.
        """
        place = torch.full((self.num_nodes,), -1)
        fits = order.dtype == torch.int64 and tuple(order.shape) == (self.num_nodes,)
        if fits and self.num_nodes and 0 <= int(order.min()) and int(order.max()) < self.num_nodes:
            place[order] = torch.arange(self.num_nodes)
        if not fits or bool((place < 0).any()):
            raise GraphError(
                f"{self.name}: order: expected every one of {self.num_nodes} nodes once, int64 [{self.num_nodes}], got "
                f"{order.dtype} {tuple(order.shape)}; take it from sarc.locality_order(edge_index, num_nodes)"
            )
        present = {name: getattr(self, name) for name in ("x", "y", *MASKS)}
        rows: dict[str, Any] = {name: _take(t, order) for name, t in present.items() if t is not None}
        return replace(self, edge_index=place[self.edge_index], **rows)

    def __repr__(self) -> str:
        return (
            f"GraphData({self.name}: {self.num_nodes} nodes, {self.num_edges} edges, {self.num_features} features, "
            f"{self.num_classes} classes)"
        )


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a dense or a sparse CSR tensor."""
    if tensor.layout is torch.sparse_csr:
        return tensor.to_sparse_coo().index_select(0, rows).to_sparse_csr()
    return tensor[rows]


def classes_of(y: Tensor | None) -> int:
    """Number of classes of integer labels int64 [N] (-1: no label); 0 for anything else."""
    if y is None or y.ndim != 1 or y.is_floating_point() or y.numel() == 0:
        return 0
    return int(y.max()) + 1
