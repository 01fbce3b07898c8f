"""Read the whole graph out of what users hold: an edge_index, a DGLGraph, a PyG Data or a scipy sparse matrix.

Each kind is told by the module its class comes from, so neither DGL nor PyG is imported here.
"""

from __future__ import annotations

import operator
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sarc.errors import GraphError

ACCEPTED = (
    "an int64 or int32 edge_index of shape [2, E], a homogeneous DGLGraph, a PyG Data or a square scipy sparse matrix"
)


class WholeGraph(NamedTuple):
    """edge_index int64 [2, E] on the CPU (row 0 sources, row 1 destinations), N, and "edge_index" or "dgl"."""

    edge_index: Tensor
    num_nodes: int
    kind: str


def read_graph(graph: Any, num_nodes: int | None = None) -> WholeGraph:
    """Reads edges and node count of `graph`, checked.

    Args:
        graph: edge_index [2, E] (tensor or numpy array, int64 or int32), DGLGraph with one node and one edge type
            (edges in edge-id order), PyG Data, or scipy sparse matrix [N, N] whose rows are SOURCES and columns
            DESTINATIONS (edges in the order of `A.tocoo()`; stored zeros are edges, repeated coordinates are repeated
            edges).
        num_nodes: N; needed with an edge_index, must agree where the graph tells it.

    Raises:
        GraphError: another type, layout or dtype; ids out of range; N missing or contradictory.
    """
    if isinstance(graph, Tensor):
        return _read_edge_index(graph, num_nodes)
    if isinstance(graph, np.ndarray):
        return _read_edge_index(_tensor(graph), num_nodes)
    libraries = {base.__module__.partition(".")[0] for base in type(graph).__mro__}
    if "dgl" in libraries:
        source, destination, stated = _read_dgl(graph)
        return WholeGraph(_checked(torch.stack([source, destination]), _agree(num_nodes, stated)), stated, "dgl")
    if "torch_geometric" in libraries:
        edge_index, stated = _read_pyg(graph, num_nodes)
        return WholeGraph(_checked(edge_index, _agree(num_nodes, stated)), stated, "edge_index")
    if "scipy" in libraries:
        edge_index, stated = _read_scipy(graph)
        return WholeGraph(_checked(edge_index, _agree(num_nodes, stated)), stated, "edge_index")
    raise GraphError(f"expected {ACCEPTED}, got {type(graph).__module__}.{type(graph).__qualname__}")


def checked_count(num_nodes: object) -> int:
    """N as an int of at least 1; GraphError otherwise."""
    try:
        count = operator.index(num_nodes)  # type: ignore[arg-type]
    except TypeError:
        raise GraphError(f"num_nodes: expected an int, got {num_nodes!r} ({type(num_nodes).__name__})") from None
    if isinstance(num_nodes, bool) or count < 1:
        raise GraphError(f"num_nodes: expected at least 1, got {num_nodes}")
    return count


def _agree(given: int | None, stated: int) -> int:
    if given is not None and checked_count(given) != stated:
        raise GraphError(f"num_nodes: the graph itself has {stated} nodes, got num_nodes={given}; leave num_nodes out")
    return checked_count(stated)


def _read_edge_index(edge_index: Tensor, num_nodes: int | None) -> WholeGraph:
    _check_layout(edge_index)
    if num_nodes is None:
        largest = f" (here the largest id is {int(edge_index.max())})" if edge_index.numel() else ""
        raise GraphError(
            f"num_nodes is missing: an edge_index does not tell of isolated nodes after its largest id{largest}; "
            f"pass num_nodes=x.shape[0]"
        )
    count = checked_count(num_nodes)
    edge_index = edge_index.as_subclass(Tensor)  # type: ignore[arg-type]  # PyG's EdgeIndex is a Tensor with more to it
    return WholeGraph(_checked(edge_index, count), count, "edge_index")


def _check_layout(edge_index: Tensor) -> None:
    shape = tuple(edge_index.shape)
    if edge_index.layout != torch.strided:
        raise GraphError(f"edge_index: expected a dense tensor [2, E], got layout {edge_index.layout}; pass {ACCEPTED}")
    if edge_index.ndim == 2 and shape[1] == 2 and shape[0] != 2:
        raise GraphError(f"edge_index: expected shape [2, E], got {shape}, which is [E, 2]; pass edge_index.t()")
    if edge_index.ndim != 2 or shape[0] != 2:
        raise GraphError(
            f"edge_index: expected shape [2, E], got {shape}; for no edges: torch.empty(2, 0, dtype=torch.long)"
        )
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise GraphError(
            f"edge_index: expected int64 or int32 node ids, got {edge_index.dtype}; pass edge_index.long()"
        )


def _checked(edge_index: Tensor, num_nodes: int) -> Tensor:
    """int64 contiguous CPU copy or view of `edge_index`; GraphError when an id is not in [0, N)."""
    _check_layout(edge_index)
    edge_index = edge_index.detach().to(device="cpu", dtype=torch.int64).contiguous()
    if edge_index.numel() == 0:
        return edge_index
    low, high = (int(v) for v in torch.aminmax(edge_index))
    if low < 0 or high >= num_nodes:
        end, edge = ((edge_index < 0) | (edge_index >= num_nodes)).nonzero()[0].tolist()
        raise GraphError(
            f"edge_index: expected node ids from 0 to {num_nodes - 1} (num_nodes={num_nodes}), got "
            f"{int(edge_index[end, edge])} as {('source', 'destination')[end]} of edge {edge} (ids span {low} to "
            f"{high}); "
            + ("negative ids cannot be padding here: drop those edges" if low < 0 else "pass the right num_nodes")
        )
    return edge_index


def _read_dgl(graph: Any) -> tuple[Tensor, Tensor, int]:
    if getattr(graph, "is_block", False) or not graph.is_homogeneous:
        raise GraphError(
            f"expected a DGLGraph with one node type and one edge type, got node types {list(graph.ntypes)} and edge "
            f"types {list(graph.canonical_etypes)}; take dgl.to_homogeneous(g)"
        )
    source, destination = graph.edges(order="eid")
    return source, destination, int(graph.num_nodes())


def _read_pyg(data: Any, num_nodes: int | None) -> tuple[Tensor, int]:
    if hasattr(data, "node_types"):
        raise GraphError("expected a PyG Data, got HeteroData; take data.to_homogeneous()")
    if getattr(data, "edge_index", None) is None:
        raise GraphError(
            "expected a PyG Data with edge_index, got one without (adj_t is not read); set data.edge_index"
        )
    _check_layout(data.edge_index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyG 2.x warns when it guesses N from the largest id
        try:
            stated = data.num_nodes
        except UserWarning:
            stated = num_nodes
    if stated is None:
        raise GraphError("num_nodes is missing: this PyG Data has neither x nor num_nodes; set data.num_nodes")
    return data.edge_index, checked_count(stated)


def _read_scipy(matrix: Any) -> tuple[Tensor, int]:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise GraphError(f"expected a square scipy sparse matrix [N, N], got shape {tuple(matrix.shape)}")
    coo = matrix.tocoo()
    return torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64)), int(matrix.shape[0])


def _tensor(array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise GraphError(f"edge_index: expected int64 or int32, got a numpy array of {array.dtype} ({error})") from None
