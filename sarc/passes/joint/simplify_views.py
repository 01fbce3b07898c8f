"""The view rules of simplify: views undone or joined, single operands, expansions that broadcasting does anyway."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from sarc.ir.layout_rules import reduced_axes
from sarc.ir.program import type_of
from sarc.ir.space import Rows
from sarc.passes.base import Builder, Rules

aten = torch.ops.aten

_SAME_ORDER = {aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dims, aten.view.default}


def undone(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Views that keep the order of entries and end in the dimensions they began with -> their operand"""
    root = node.args[0]
    while True:
        if type_of(root).dims == type_of(node).dims:
            return root
        if root.target not in _SAME_ORDER:
            return None
        root = root.args[0]


def reshaped_twice(node: fx.Node, builder: Builder) -> fx.Node | None:
    """reshape(any view of the same order of x) -> reshape(x)"""
    x = node.args[0]
    return builder.call(aten.reshape.default, x.args[0], node.args[1]) if x.target in _SAME_ORDER else None


def sum_without_axis(node: fx.Node, builder: Builder) -> fx.Node | None:
    """A view that drops the axes that a sum kept -> the sum without them"""
    total = node.args[0]
    if total.target is not aten.sum.dim_IntList or len(total.users) > 1 or total.kwargs or len(total.args) < 3:
        return None
    summed = reduced_axes({"dim": total.args[1]}, type_of(total.args[0]).dims)
    left = tuple(d for a, d in enumerate(type_of(total).dims) if a not in summed)
    if not total.args[2] or type_of(node).dims != left:
        return None
    return builder.call(aten.sum.dim_IntList, total.args[0], list(total.args[1]))


def transposed_twice(node: fx.Node, builder: Builder) -> fx.Node | None:
    """t(t(x)), transpose(transpose(x, a, b), a, b) -> x; permutations are joined"""
    x = node.args[0]
    if x.target is not node.target:
        return None
    if node.target is aten.permute.default:
        return builder.call(node.target, x.args[0], [x.args[1][axis] for axis in node.args[1]])
    return x.args[0] if x.args[1:] == node.args[1:] else None


def in_order(node: fx.Node, builder: Builder) -> fx.Node | None:
    """permute to the order that there is -> its operand"""
    rank = len(type_of(node).dims)
    return node.args[0] if [axis % rank for axis in node.args[1]] == list(range(rank)) else None


def expanded_twice(node: fx.Node, builder: Builder) -> fx.Node | None:
    """expand(expand(x)) -> expand(x); expand to the dimensions that there are -> its operand"""
    x = node.args[0]
    if type_of(x).dims == type_of(node).dims:
        return x
    return builder.call(node.target, x.args[0], node.args[1]) if x.target is node.target else None


def broadcast(node: fx.Node, builder: Builder) -> fx.Node | None:
    """op(expand(x), y) -> op(x, y) where y has the dimensions of the result"""
    dims = type_of(node).dims
    tensors = [a for a in node.args if isinstance(a, fx.Node)]
    spread = [a for a in tensors if a.target is aten.expand.default]
    if not spread:
        return None
    narrow = {a: a.args[0] for a in spread}
    shapes = [type_of(narrow.get(a, a)).dims for a in tensors]
    for place in range(1, len(dims) + 1):
        lengths = [shape[-place] for shape in shapes if len(shape) >= place]
        if dims[-place] not in lengths:
            return None
    args = [narrow.get(a, a) if isinstance(a, fx.Node) else a for a in node.args]
    return builder.call(node.target, *args, **node.kwargs)


def all_of_it(node: fx.Node, builder: Builder) -> fx.Node | None:
    """A repeat by ones, a slice of a whole axis -> the operand"""
    x = node.args[0]
    whole = node.target is aten.slice.Tensor or all(n == 1 for n in node.args[1])
    return x if whole and type_of(x).dims == type_of(node).dims else None


def only_entry(node: fx.Node, builder: Builder) -> fx.Node | None:
    """select of an axis of length one -> squeeze; select from a stack -> what was stacked"""
    x, axis, index = node.args
    axis %= len(type_of(x).dims)
    if type_of(x).dims[axis] == 1:
        return builder.call(aten.squeeze.dims, x, [axis])
    if x.target is aten.stack.default and axis == _axis(x, len(type_of(x).dims)):
        return x.args[0][index]
    return None


def one_part(node: fx.Node, builder: Builder) -> fx.Node | None:
    """cat([x]) -> x; stack([x]) -> unsqueeze(x)"""
    parts = node.args[0]
    if len(parts) != 1:
        return None
    if node.target is aten.cat.default:
        return parts[0]
    return builder.call(aten.unsqueeze.default, parts[0], _axis(node, len(type_of(node).dims)))


def part_of_cat(node: fx.Node, builder: Builder) -> fx.Node | None:
    """A slice of features of a cat that is one of its parts -> the part"""
    x, (axis, start, end) = node.args[0], _bounds(node)
    if x.target is not aten.cat.default or axis != _axis(x, len(type_of(x).dims)) or start is None:
        return None
    at = 0
    for part in x.args[0]:
        length = type_of(part).dims[axis]
        if isinstance(length, Rows):
            return None
        if (at, at + length) == (start, end):
            return part
        at += length
    return None


def sliced_twice(node: fx.Node, builder: Builder) -> fx.Node | None:
    """slice(slice(x)) of features along one axis -> slice(x)"""
    x, (axis, start, end) = node.args[0], _bounds(node)
    if x.target is not aten.slice.Tensor or start is None:
        return None
    outer, offset, _ = _bounds(x)
    if outer != axis or offset is None:
        return None
    return builder.call(aten.slice.Tensor, x.args[0], axis, offset + start, offset + end)


def whole_scatter(node: fx.Node, builder: Builder) -> fx.Node | None:
    """select_scatter into an axis of length one -> unsqueeze"""
    x, source, axis = node.args[:3]
    axis %= len(type_of(x).dims)
    return builder.call(aten.unsqueeze.default, source, axis) if type_of(x).dims[axis] == 1 else None


def _axis(node: fx.Node, rank: int) -> int:
    return (node.args[1] if len(node.args) > 1 else 0) % rank  # type: ignore[operator]


def _bounds(node: fx.Node) -> tuple[int, Any, Any]:
    """Axis, start and end of a slice of step one along features; None for start and end of any other."""
    x, dims = node.args[0], type_of(node.args[0]).dims
    axis = _axis(node, len(dims))
    start, end, step = (node.args[k] if len(node.args) > k else None for k in (2, 3, 4))
    length = dims[axis]
    if isinstance(length, Rows) or step not in (None, 1) or x.op == "output":
        return axis, None, None
    return axis, *slice(start, end).indices(length)[:2]


def detached(node: fx.Node, builder: Builder) -> fx.Node | None:
    """detach(x) -> x: nothing is differentiated any more"""
    return node.args[0]


_POINTWISE = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.where.self, aten.maximum.default,
    aten.minimum.default, aten.eq.Tensor, aten.gt.Tensor, aten.lt.Tensor, aten.ge.Tensor, aten.le.Tensor,
)  # fmt: skip

VIEWS: Rules = {
    aten.reshape.default: (undone, sum_without_axis, reshaped_twice),
    aten.unsqueeze.default: (undone,),
    aten.squeeze.dims: (undone, sum_without_axis),
    aten.t.default: (transposed_twice,),
    aten.transpose.int: (transposed_twice,),
    aten.permute.default: (in_order, transposed_twice),
    aten.expand.default: (expanded_twice,),
    aten.repeat.default: (all_of_it,),
    aten.slice.Tensor: (all_of_it, part_of_cat, sliced_twice),
    aten.select.int: (only_entry,),
    aten.cat.default: (one_part,),
    aten.detach.default: (detached,),
    aten.stack.default: (one_part,),
    aten.select_scatter.default: (whole_scatter,),
    **dict.fromkeys(_POINTWISE, (broadcast,)),
}
