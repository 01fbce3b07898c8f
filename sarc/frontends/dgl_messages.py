"""DGL's built-in message and reduce functions as plain torch ops on an edge list.

Symbols: `index` int64 [E] holds a node of each edge (its source or its destination), `num_rows` is N, possibly a
torch.SymInt. Nothing here looks at a size or a value: the same ops are recorded whatever the graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import SymInt, Tensor

BINARY_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "dot": lambda lhs, rhs: (lhs * rhs).sum(-1, keepdim=True) if lhs.dim() > 1 else lhs * rhs,
}


def gather(column: Tensor, index: Tensor) -> Tensor:
    """Row of `column` [N, *F] at each edge's node: [E, *F]."""
    return column.index_select(0, index)


def fold(op: str, values: Tensor, index: Tensor, num_rows: int | SymInt, empty: float = 0) -> Tensor:
    """Folds edge values [E, *F] by sum, mean, max or min over the edges of each node: [N, *F].

    Nodes without edges get 0, or in a max or min `empty`. The gradient of max and min is shared evenly among ties,
    where DGL gives it to one of them.
    """
    rows = values.new_full((num_rows, *values.shape[1:]), empty)
    if op in ("max", "min"):
        spread = broadcast_rows(index, values.dim()).expand_as(values)
        return rows.scatter_reduce(0, spread, values, "a" + op, include_self=False)
    total = rows.index_add(0, index, values)
    if op == "sum":
        return total
    count = degrees(index, num_rows).clamp(min=1).to(values.dtype)
    return total / broadcast_rows(count, total.dim())


def degrees(index: Tensor, num_rows: int | SymInt) -> Tensor:
    """How many edges each node has in `index`: int64 [N]."""
    return index.new_zeros((num_rows,)).index_add(0, index, torch.ones_like(index))


def edge_softmax(logits: Tensor, index: Tensor, num_rows: int | SymInt) -> Tensor:
    """Softmax of `logits` [E, *F] over the edges of each node, shifted by their maximum: [E, *F]."""
    shift = fold("max", logits.detach(), index, num_rows)
    weight = (logits - gather(shift, index)).exp()
    return weight / gather(fold("sum", weight, index, num_rows), index)


def combine(op: str, lhs: Tensor, rhs: Tensor) -> Tensor:
    """`lhs` op `rhs`, both [E, ...]; feature axes are aligned at the right, as DGL does."""
    rank = max(lhs.dim(), rhs.dim())
    return BINARY_OPS[op](_insert_axes(lhs, rank), _insert_axes(rhs, rank))


def broadcast_rows(column: Tensor, rank: int) -> Tensor:
    """`column` [R] as [R, 1, ..., 1] of `rank` axes."""
    return column.reshape((column.shape[0],) + (1,) * (rank - 1))


def _insert_axes(values: Tensor, rank: int) -> Tensor:
    if values.dim() == rank:
        return values
    return values.reshape((values.shape[0],) + (1,) * (rank - values.dim()) + tuple(values.shape[1:]))
