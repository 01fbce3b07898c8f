"""Assign every node to a part: METIS, random, contiguous, or as given; then cut the graph along it."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import torch
from torch import Tensor

from sarc.errors import PartitionError
from sarc.partition.cut import cut
from sarc.partition.layout import Partitions
from sarc.partition.read_graph import read_graph

METHODS = ("metis", "random", "contiguous", "given")


def partition(
    edge_index: Any,
    num_nodes: int | None = None,
    num_parts: int | None = None,
    method: str | None = None,
    assignment: Any = None,
    seed: int = 0,
) -> Partitions:
    """Cuts a graph into `num_parts` parts; the same arguments give the same parts.

    Args:
        edge_index: int64 or int32 [2, E] (row 0 sources, row 1 destinations), or a homogeneous DGLGraph, a PyG Data, or
            a scipy sparse matrix [N, N] with rows = sources, columns = destinations (the transpose of a PyG `adj_t`).
            Edge ids count the columns of edge_index, DGL's edge ids, or the entries of `A.tocoo()`.
        num_nodes: N; needed with a plain edge_index.
        num_parts: P, at least 1; may exceed N (some parts are then empty). With an assignment, None means its
            maximum + 1.
        method: "metis" (few cut edges, equal node counts; the default), "random" (equal node counts), "contiguous"
            (ranges of node ids), "given" (the default when there is an assignment).
        assignment: int [N], owner of each node, for "given".
        seed: of "metis" and "random".

    Raises:
        GraphError: the graph is malformed.
        PartitionError: num_parts, method or assignment is.
    """
    graph = read_graph(edge_index, num_nodes)
    if method is None:
        method = "metis" if assignment is None else "given"
    if method not in METHODS:
        raise PartitionError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if (method == "given") != (assignment is not None):
        got = "no assignment" if assignment is None else f"an assignment and method={method!r}"
        raise PartitionError(f"method='given' and assignment= go together, got {got}; pass both or neither")
    if assignment is not None:
        owner, parts = _checked_assignment(assignment, graph.num_nodes, num_parts)
    else:
        parts = _checked_num_parts(num_parts)
        owner, method = _assign(graph.edge_index, graph.num_nodes, parts, method, _checked_seed(seed))
    return cut(graph.edge_index, owner, parts, method=method, graph_kind=graph.kind)


def _assign(edge_index: Tensor, num_nodes: int, num_parts: int, method: str, seed: int) -> tuple[Tensor, str]:
    """Owner of each node, int64 [N], and the name of the method that was really used."""
    if method == "random":
        order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))
        return _ranges(order, num_parts), method
    if method == "contiguous":
        return _ranges(torch.arange(num_nodes), num_parts), method
    if num_parts == 1 or num_parts >= num_nodes:
        # METIS has nothing to choose, and is not made for fewer nodes than parts.
        return _ranges(torch.arange(num_nodes), num_parts), method
    adjacency = symmetric_adjacency(edge_index, num_nodes)
    try:
        import pymetis
    except ImportError:
        warnings.warn(
            "pymetis is not installed: parts are contiguous ranges of a reverse Cuthill-McKee order, which cut more "
            "edges than METIS; pip install pymetis",
            stacklevel=3,
        )
        order = scipy.sparse.csgraph.reverse_cuthill_mckee(adjacency, symmetric_mode=True)
        return _ranges(torch.from_numpy(order.astype(np.int64)), num_parts), "contiguous (pymetis not installed)"
    starts, neighbours = adjacency.indptr.astype(np.int64), adjacency.indices.astype(np.int64)
    # METIS reads a negative seed as "none given".
    options = pymetis.Options(seed=seed % 2**31)
    if hasattr(pymetis, "CSRAdjacency"):  # pymetis 2025 deprecates xadj=, adjncy=
        _, owner = pymetis.part_graph(num_parts, pymetis.CSRAdjacency(starts, neighbours), options=options)
    else:
        _, owner = pymetis.part_graph(num_parts, xadj=starts, adjncy=neighbours, options=options)
    return torch.from_numpy(np.asarray(owner, dtype=np.int64).copy()), method


def _ranges(order: Tensor, num_parts: int) -> Tensor:
    """Owner of each node when `order` (a permutation of the nodes) is cut into P runs whose lengths differ by at most "
    "1."""
    num_nodes = order.numel()
    owner = torch.empty(num_nodes, dtype=torch.int64)
    owner[order] = torch.arange(num_nodes) * num_parts // num_nodes
    return owner


def symmetric_adjacency(edge_index: Tensor, num_nodes: int) -> scipy.sparse.csr_matrix:
    """Both directions of every edge once, without self loops: CSR [N, N]; its values mean nothing."""
    source, destination = edge_index[:, edge_index[0] != edge_index[1]].numpy()
    rows, columns = np.concatenate([source, destination]), np.concatenate([destination, source])
    # int32 values: the sum over a repeated edge must not wrap to zero.
    adjacency = scipy.sparse.csr_matrix((np.ones(rows.size, np.int32), (rows, columns)), shape=(num_nodes, num_nodes))
    adjacency.sort_indices()
    return adjacency


def _checked_num_parts(num_parts: object) -> int:
    if num_parts is None:
        raise PartitionError("num_parts is missing: pass the number of parts, e.g. num_parts=4")
    try:
        count = operator.index(num_parts)  # type: ignore[arg-type]
    except TypeError:
        raise PartitionError(f"num_parts: expected an int, got {num_parts!r} ({type(num_parts).__name__})") from None
    if isinstance(num_parts, bool) or count < 1:
        raise PartitionError(f"num_parts: expected at least 1, got {num_parts!r}")
    return count


def _checked_seed(seed: object) -> int:
    try:
        return operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise PartitionError(f"seed: expected an int, got {seed!r} ({type(seed).__name__})") from None


def _checked_assignment(assignment: Any, num_nodes: int, num_parts: int | None) -> tuple[Tensor, int]:
    """int64 [N] CPU copy of the assignment, and P."""
    try:
        owner = torch.as_tensor(assignment).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise PartitionError(
            f"assignment: expected int64 [N={num_nodes}], got {type(assignment).__name__} ({error})"
        ) from None
    if owner.shape != (num_nodes,):
        raise PartitionError(
            f"assignment: expected the owner of each node, shape [N={num_nodes}], got shape {tuple(owner.shape)}"
        )
    if owner.is_floating_point() or owner.is_complex() or owner.dtype == torch.bool:
        nans = int(owner.isnan().sum()) if owner.is_floating_point() else 0
        found = f"{owner.dtype} with {nans} NaN" if nans else str(owner.dtype)
        advice = "nodes without an owner must be given one" if nans else "pass assignment.long()"
        raise PartitionError(f"assignment: expected integers (int64 [N]), got {found}; {advice}")
    owner = owner.to(torch.int64, copy=True)
    parts = int(owner.max()) + 1 if num_parts is None else _checked_num_parts(num_parts)
    wrong = ((owner < 0) | (owner >= parts)).nonzero()
    if wrong.numel():
        node = int(wrong[0])
        raise PartitionError(
            f"assignment: expected owners from 0 to {parts - 1} (num_parts={parts}), got {int(owner[node])} for node "
            f"{node} ({len(wrong)} such nodes)"
        )
    return owner, parts
