"""Vertex covers of a bipartite block: which rows travel when each edge may run at either of its ends.

An edge whose ends two parts own needs the row of one end at the other: it is computed where the far row is fetched to,
or where the near row's operands and partial folds travel from and to. The rows that travel cover all edges, so the
fewest bytes are a minimum weighted vertex cover.

1. Equal weights: a cover of the size of a maximum matching (Koenig 1931), found from the alternating paths that start
   at unmatched rows.
2. Other weights: a minimum cut of source -> far rows -> near rows -> sink, whose capacities are the weights
   (the cover is the cut rows; edges are never cut).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_bipartite_matching, maximum_flow
from torch import Tensor

# scipy's flows are int32: capacities are scaled down until their sum fits.
_LARGEST_FLOW = 2**31 - 1


@dataclass(frozen=True)
class Cover:
    """Rows that travel.

    Attributes:
        far: bool [number of far rows].
        near: bool [number of near rows].
    """

    far: Tensor
    near: Tensor


def ratio(far: int, near: int) -> tuple[int, int]:
    """Two weights without their common divisor: blocks of equal ratios have equal covers."""
    common = math.gcd(far, near) or 1
    return far // common, near // common


def minimum_cover(far: Tensor, near: Tensor, num_far: int, num_near: int, weights: tuple[int, int]) -> Cover:
    """A vertex cover of least weight; the same for the same edges in any order.

    Args:
        far, near: int64 [K], ends of each edge, numbered from 0.
        num_far, num_near: rows at each side.
        weights: of a far row and of a near row, not negative.
    """
    in_far, in_near = torch.zeros(num_far, dtype=torch.bool), torch.zeros(num_near, dtype=torch.bool)
    if not far.numel():
        return Cover(in_far, in_near)
    if 0 in weights:  # rows of one side are free
        (in_far if weights[0] == 0 else in_near)[far if weights[0] == 0 else near] = True
        return Cover(in_far, in_near)
    ones = np.ones(far.numel(), dtype=np.int32)
    edges = csr_array(coo_array((ones, (far.numpy(), near.numpy())), shape=(num_far, num_near)))
    edges.sum_duplicates()
    edges.sort_indices()
    find = _by_matching if weights[0] == weights[1] else _by_cut
    reached_far, reached_near = find(edges, weights)
    used_far, used_near = np.diff(edges.indptr) > 0, np.bincount(edges.indices, minlength=num_near) > 0
    return Cover(torch.from_numpy(used_far & ~reached_far), torch.from_numpy(used_near & reached_near))


def _by_matching(edges: csr_array, weights: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows reached from unmatched far rows by paths that leave a far row by any edge and a near row by its match."""
    num_far, num_near = edges.shape
    near_of = maximum_bipartite_matching(edges, perm_type="column")
    matched = np.flatnonzero(near_of >= 0)
    starts = np.flatnonzero(near_of < 0)
    # One graph over start, far rows and near rows, in which every step of an alternating path is an edge.
    size = 1 + num_far + num_near
    rows = np.concatenate([np.zeros_like(starts), 1 + np.repeat(np.arange(num_far), np.diff(edges.indptr)),
                           1 + num_far + near_of[matched]])  # fmt: skip
    columns = np.concatenate([1 + starts, 1 + num_far + edges.indices, 1 + matched])
    return _reached(rows, columns, size, edges.shape)


def _by_cut(edges: csr_array, weights: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows on the source's side of a minimum cut."""
    num_far, num_near = edges.shape
    far_weight, near_weight = _scaled(weights, num_far, num_near)
    size = 2 + num_far + num_near
    source, sink = 0, size - 1
    far, near = 1 + np.arange(num_far), 1 + num_far + np.arange(num_near)
    rows = np.concatenate([np.full(num_far, source), np.repeat(far, np.diff(edges.indptr)), near])
    columns = np.concatenate([far, 1 + num_far + edges.indices, np.full(num_near, sink)])
    enough = far_weight + near_weight  # an edge carries at most what one of its ends does
    capacity = np.concatenate([
        np.full(num_far, far_weight), np.full(edges.nnz, enough), np.full(num_near, near_weight)
    ]).astype(np.int32)  # fmt: skip
    network = csr_array((capacity, (rows.astype(np.int32), columns.astype(np.int32))), shape=(size, size))
    left = network - maximum_flow(network, source, sink).flow
    left.eliminate_zeros()
    left = coo_array(left)
    return _reached(left.coords[0], left.coords[1], size, edges.shape)


def _scaled(weights: tuple[int, int], num_far: int, num_near: int) -> tuple[int, int]:
    """Weights whose flow fits into int32, in the same ratio as nearly as they allow."""
    far, near = ratio(*weights)
    largest = max(far * num_far, near * num_near, far + near)
    if largest <= _LARGEST_FLOW:
        return far, near
    return max(1, far * _LARGEST_FLOW // largest), max(1, near * _LARGEST_FLOW // largest)


def _reached(
    rows: np.ndarray, columns: np.ndarray, size: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Far rows (numbered from 1) and near rows (after them) that paths from 0 lead to."""
    num_far, num_near = shape
    ones = np.ones(len(rows), dtype=np.int8)
    steps = csr_array((ones, (rows.astype(np.int32), columns.astype(np.int32))), shape=(size, size))
    found = np.zeros(size, dtype=bool)
    found[breadth_first_order(steps, 0, return_predecessors=False)] = True
    return found[1 : 1 + num_far], found[1 + num_far : 1 + num_far + num_near]
