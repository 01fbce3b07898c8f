"""Views as index maps: where an element of a view lies in the value it looks at."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.fx as fx

from sarc.ir.space import Rows, Size

aten = torch.ops.aten

Index = list[str]


class NoKernel(Exception):
    """A program has no scalar form; the message says which operator has none."""


def index_map(node: fx.Node, dims: tuple) -> Callable[[Index], Index]:
    """From an index of the view `node` to the index of its operand, which has dimensions `dims`."""
    return _MAPS[node.target](node, dims)


def _expand(node: fx.Node, dims: tuple) -> Callable[[Index], Index]:
    shift = len(node.meta["type"].dims) - len(dims)
    return lambda index: ["0" if d == 1 else index[axis + shift] for axis, d in enumerate(dims)]


def _unsqueeze(node: fx.Node, dims: tuple) -> Callable[[Index], Index]:
    at = node.args[1] % (len(dims) + 1)
    return lambda index: index[:at] + index[at + 1 :]


def _squeeze(node: fx.Node, dims: tuple) -> Callable[[Index], Index]:
    drop = {d % len(dims) for d in node.args[1]}

    def back(index: Index) -> Index:
        rest = iter(index)
        return ["0" if axis in drop and d == 1 else next(rest) for axis, d in enumerate(dims)]

    return back


def _permute(node: fx.Node, dims: tuple) -> Callable[[Index], Index]:
    order = [axis % len(dims) for axis in node.args[1]]

    def back(index: Index) -> Index:
        at = ["0"] * len(order)
        for place, axis in enumerate(order):
            at[axis] = index[place]
        return at

    return back


def _slice(node: fx.Node, dims: tuple) -> Callable[[Index], Index]:
    axis = (node.args[1] if len(node.args) > 1 else 0) % len(dims)
    start = (node.args[2] if len(node.args) > 2 else 0) or 0
    step = node.args[4] if len(node.args) > 4 else 1
    if isinstance(start, Size) or isinstance(dims[axis], Rows):
        raise NoKernel("slice of rows")
    start = start + dims[axis] if start < 0 else start
    return lambda index: [f"({at} * {step} + {start})" if a == axis else at for a, at in enumerate(index)]


def _select(node: fx.Node, dims: tuple) -> Callable[[Index], Index]:
    axis = node.args[1] % len(dims)
    at = node.args[2] % dims[axis]
    return lambda index: [*index[:axis], str(at), *index[axis:]]


_MAPS = {
    aten.expand.default: _expand,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dims: _squeeze,
    aten.permute.default: _permute,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
}
