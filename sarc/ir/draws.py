"""Random draws of rows that have keys of their own: those of a part, of a block of edges, of a derived row set."""

from __future__ import annotations

from typing import Any

import torch.fx as fx
from torch import Tensor

from sarc.ir.philox import uniform
from sarc.ir.space import Rows, ValueType


def keyed_uniform(node: fx.Node, args: Any, row_keys: dict[str, Tensor]) -> Tensor:
    """The draws of a `uniform` node for rows with given keys."""
    rng, shape, op = args
    type_: ValueType = node.meta["type"]
    axis = type_.row_axis
    if axis is None:
        return uniform(rng, tuple(shape), None, next(iter(row_keys.values()), rng), op)
    dim = type_.dims[axis]
    assert isinstance(dim, Rows)
    keys = row_keys[dim.space]
    if not dim.plain:
        keys = spread_keys(keys, dim)
    return uniform(rng, tuple(shape), axis, keys, op)


def spread_keys(keys: Tensor, dim: Rows) -> Tensor:
    """Keys of flattened rows: entry (b, row, a) has key (key of row) * before * after + b * after + a."""
    inner = keys.view(1, -1, 1) * (dim.before * dim.after)
    before = keys.new_tensor(range(dim.before)).view(-1, 1, 1) * dim.after
    after = keys.new_tensor(range(dim.after)).view(1, 1, -1)
    return (inner + before + after).reshape(-1)
