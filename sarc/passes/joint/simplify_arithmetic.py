"""The arithmetic rules of simplify: neutral operands, negations, scalars, sums of spread factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from sarc.ir.dialect import REDUCE
from sarc.ir.frontier import row_width
from sarc.ir.layout_rules import reduced_axes
from sarc.ir.program import type_of
from sarc.ir.space import Dim, Rows
from sarc.passes.base import Builder, Rules

aten = torch.ops.aten

ADD, SUB, MUL, DIV = aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor
NEG, SUM, MM = aten.neg.default, aten.sum.dim_IntList, aten.mm.default


def _is(value: Any, target: object) -> bool:
    return isinstance(value, fx.Node) and value.target is target


def _once(value: Any, target: object) -> bool:
    """Whether `value` is a call of `target` that nothing else reads."""
    return _is(value, target) and len(value.users) == 1


def _number(value: Any) -> float | int | None:
    """A literal number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def constant_operand(node: fx.Node, builder: Builder) -> fx.Node | None:
    """op(x, full(c)) -> op(x, c)"""
    a, b = node.args[:2]
    if node.target in (ADD, MUL) and _is(a, aten.full.default) and not _is(b, aten.full.default):
        a, b = b, a
    if not _is(b, aten.full.default) or not isinstance(a, fx.Node) or _number(b.args[1]) is None or node.kwargs:
        return None
    return builder.call(node.target, a, b.args[1])


def neutral(node: fx.Node, builder: Builder) -> fx.Node | None:
    """x * 1, x / 1, x + 0, x - 0 -> x"""
    a, b = node.args[:2]
    return a if _number(b) == (1 if node.target in (MUL, DIV) else 0) else None


def negated_operand(node: fx.Node, builder: Builder) -> fx.Node | None:
    """a + (-b) -> a - b and the like: a sum takes negations in"""
    a, b = node.args[:2]
    if node.kwargs:
        return None
    if _is(b, NEG) and isinstance(a, fx.Node):
        return builder.call(SUB if node.target is ADD else ADD, a, b.args[0])
    if node.target is ADD and _is(a, NEG) and isinstance(b, fx.Node):
        return builder.call(SUB, b, a.args[0])
    return None


def negated_factor(node: fx.Node, builder: Builder) -> fx.Node | None:
    """(-a) * b -> -(a * b): negations move towards the sums that take them in"""
    a, b = node.args[:2]
    if _once(a, NEG):
        if _number(b) is not None:
            return builder.call(node.target, a.args[0], -b)
        return builder.call(NEG, builder.call(node.target, a.args[0], b))
    if _once(b, NEG) and isinstance(a, fx.Node):
        return builder.call(NEG, builder.call(node.target, a, b.args[0]))
    return None


def negated_rows(node: fx.Node, builder: Builder) -> fx.Node | None:
    """sum(-x) -> -sum(x), for sums and for folds"""
    if not _once(node.args[0], NEG) or (node.target is REDUCE and node.args[4] != "sum"):
        return None
    return builder.call(NEG, builder.call(node.target, node.args[0].args[0], *node.args[1:], **node.kwargs))


def negation(node: fx.Node, builder: Builder) -> fx.Node | None:
    """-(-x) -> x, -(a - b) -> b - a, -(x * c) -> x * -c"""
    (x,) = node.args
    if _is(x, NEG):
        return x.args[0]
    if _once(x, SUB) and isinstance(x.args[1], fx.Node) and not x.kwargs:
        return builder.call(SUB, x.args[1], x.args[0])
    if (_once(x, MUL) or _once(x, DIV)) and _number(x.args[1]) is not None:
        return builder.call(x.target, x.args[0], -x.args[1])
    return None


def scaled_twice(node: fx.Node, builder: Builder) -> fx.Node | None:
    """(x * c) * d -> x * (c d)"""
    x, factor = node.args[:2]
    if _number(factor) is None or not _once(x, MUL) or _number(x.args[1]) is None:
        return None
    return builder.call(MUL, x.args[0], x.args[1] * factor)


def scaled_operand(node: fx.Node, builder: Builder) -> fx.Node | None:
    """(x * c) * w -> x * (w * c), where w has fewer entries than x"""
    if node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
        return None
    x, w = node.args
    scaled = _scaled_by(x)
    if scaled is None and node.target is MUL:
        x, w = w, x
        scaled = _scaled_by(x)
    if scaled is None or not _narrower(w, x):
        return None
    (plain, views), (target, factor) = _below_views(x), scaled
    if node.target is DIV:
        target = DIV if target is MUL else MUL
    return builder.call(node.target, _viewed(plain.args[0], views, builder), builder.call(target, w, factor))


def sum_of_scaled(node: fx.Node, builder: Builder) -> fx.Node | None:
    """sum((x * c) * y) -> sum(x * y) * c"""
    product = node.args[0]
    if not _once(product, MUL) or node.kwargs or not all(isinstance(a, fx.Node) for a in product.args):
        return None
    for x, y in (product.args, product.args[::-1]):
        scaled = _scaled_by(x)
        if scaled is None or not _narrower(node, product):
            continue
        plain, views = _below_views(x)
        unscaled = builder.call(MUL, _viewed(plain.args[0], views, builder), y)
        return builder.call(scaled[0], builder.call(node.target, unscaled, *node.args[1:]), scaled[1])
    return None


def _scaled_by(x: fx.Node) -> tuple[Callable, float | int] | None:
    """How a value, perhaps with axes of length one added, is scaled by a number.

    None in half precision: there the number may be what keeps a sum, or a factor, in range.
    """
    plain, _ = _below_views(x)
    if plain.target not in (MUL, DIV) or plain.kwargs or not isinstance(plain.args[0], fx.Node):
        return None
    factor = _number(plain.args[1])
    if not factor or type_of(plain.args[0]) != type_of(plain) or not _is_precise(plain):
        return None
    return (MUL if plain.target is MUL else DIV), factor


def _is_precise(x: fx.Node) -> bool:
    dtype = type_of(x).dtype
    return dtype.is_floating_point and dtype.itemsize >= 4


def _below_views(x: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """A value without the axes of length one that are added to it, and the calls that add them, innermost first."""
    views: list[fx.Node] = []
    while _is(x, aten.unsqueeze.default):
        views.insert(0, x)
        x = x.args[0]
    return x, views


def _viewed(x: fx.Node, views: list[fx.Node], builder: Builder) -> fx.Node:
    for view in views:
        x = builder.call(view.target, x, *view.args[1:])
    return x


def _narrower(w: fx.Node, x: fx.Node) -> bool:
    """Whether a value has no rows, where another one has, or fewer entries a row of the same rows."""
    a, b = type_of(w), type_of(x)
    rows, others = ([d for d in t.dims if isinstance(d, Rows)] for t in (a, b))
    return a.dtype == b.dtype and ((not rows and bool(others)) or (rows == others and row_width(a) < row_width(b)))


def sum_of_spread(node: fx.Node, builder: Builder) -> fx.Node | None:
    """sum(a * u) -> sum(a) * u where u has length one along the summed axes"""
    product, axes, keep = node.args[0], node.args[1], len(node.args) > 2 and node.args[2]
    if not _once(product, MUL) or not all(isinstance(a, fx.Node) for a in product.args) or node.kwargs:
        return None
    dims = type_of(product).dims
    summed = reduced_axes({"dim": axes}, dims)
    for rows, factor in (product.args, product.args[::-1]):
        shape = type_of(factor).dims
        shape = (1,) * (len(dims) - len(shape)) + shape
        if type_of(rows).dims != dims or any(shape[a] != 1 for a in summed):
            continue
        if any(isinstance(dims[a], Rows) for a in summed) and any(isinstance(d, Rows) for d in shape):
            continue
        total = builder.call(SUM, rows, list(axes), *([True] if keep else []))
        drop = [] if keep else sorted(a - len(dims) + len(type_of(factor).dims) for a in summed)
        drop = [a for a in drop if a >= 0]
        return builder.call(MUL, total, builder.call(aten.squeeze.dims, factor, drop) if drop else factor)
    return None


def sum_of_weighted_product(node: fx.Node, builder: Builder) -> fx.Node | None:
    """sum_n d[n, h] (x w)[n, h, f] -> sum_k (d^T x)[h, k] w[k, h, f]: the product itself is not read"""
    product, axes, keep = node.args[0], node.args[1], len(node.args) > 2 and node.args[2]
    if not _once(product, MUL) or not all(isinstance(a, fx.Node) for a in product.args) or node.kwargs:
        return None
    dims = type_of(product).dims
    if len(dims) != 3 or reduced_axes({"dim": axes}, dims) != {0} or not isinstance(dims[0], Rows):
        return None
    for weight, rows in (product.args, product.args[::-1]):
        if type_of(weight).dims != (*dims[:2], 1) or type_of(rows).dims != dims:
            continue
        if not (_is(rows, aten.reshape.default) or _is(rows, aten.view.default)) or not _is(rows.args[0], MM):
            continue
        x, w = rows.args[0].args
        if type_of(w).spaces or type_of(x).dims[0] != dims[0]:
            continue
        heads, features, inner = dims[1], dims[2], type_of(x).dims[1]
        if isinstance(inner, Rows) or isinstance(heads, Rows) or isinstance(features, Rows):
            continue
        if builder.spaces[dims[0].space].on_edges or not dims[0].plain or inner > 2 * heads * features:
            continue
        narrow = builder.call(aten.squeeze.dims, weight, [2])
        summed = builder.call(aten.t.default, builder.call(MM, builder.call(aten.t.default, narrow), x))
        parts = builder.reshape(w, (inner, heads, features))
        weighted = builder.call(MUL, builder.call(aten.unsqueeze.default, summed, 2), parts)
        return builder.call(SUM, weighted, [0], *([True] if keep else []))
    return None


def sum_of_expanded(node: fx.Node, builder: Builder) -> fx.Node | None:
    """sum(expand(x)) over the axis that was spread -> x * its length"""
    spread, axes, keep = node.args[0], node.args[1], len(node.args) > 2 and node.args[2]
    if not _is(spread, aten.expand.default) or node.kwargs:
        return None
    dims, inner = type_of(spread).dims, type_of(spread.args[0]).dims
    inner = (1,) * (len(dims) - len(inner)) + inner
    summed = reduced_axes({"dim": axes}, dims)
    if any(isinstance(dims[a], Rows) or inner[a] != 1 for a in summed):
        return None
    x = builder.align(spread.args[0], len(dims))
    kept = tuple(1 if a in summed else d for a, d in enumerate(dims))
    x = builder.expand(builder.call(MUL, x, math.prod(dims[a] for a in summed)), kept)
    return x if keep else builder.call(aten.squeeze.dims, x, sorted(summed))


def sum_over_ones(node: fx.Node, builder: Builder) -> fx.Node | None:
    """sum over axes of length one -> the value without them"""
    x, axes, keep = node.args[0], node.args[1], len(node.args) > 2 and node.args[2]
    dims = type_of(x).dims
    summed = reduced_axes({"dim": axes}, dims)
    if any(dims[a] != 1 for a in summed) or not summed:
        return None
    return x if keep else builder.call(aten.squeeze.dims, x, sorted(summed))


def features_first(node: fx.Node, builder: Builder) -> fx.Node | None:
    """A contraction of edges and their features -> of one number an edge, which its features are summed to"""
    x, keep = node.args[0], len(node.args) > 2 and node.args[2]
    dims = type_of(x).dims
    summed = reduced_axes({"dim": node.args[1] if len(node.args) > 1 else None}, dims)
    rows = [a for a in summed if isinstance(d := dims[a], Rows) and builder.spaces[d.space].on_edges]
    if len(rows) != 1 or node.kwargs or (node.target is SUM and len(summed) == 1):
        return None
    features = sorted(summed - set(rows))
    total = builder.call(SUM, x, features, True) if features else x
    total = builder.call(SUM, total, rows, True)
    return total if keep else builder.call(aten.squeeze.dims, total, sorted(summed))


def before_relu(node: fx.Node, builder: Builder) -> fx.Node | None:
    """g * y -> g * (r - b), r = relu(y + b), where g is 0 wherever r is: y need not be kept beside r"""
    if node.kwargs or not all(isinstance(a, fx.Node) for a in node.args) or not _is_precise(node):
        return None
    dims = type_of(node).dims
    for gradient, value in (node.args, node.args[::-1]):
        relu = _cuts(gradient)
        if relu is None or type_of(gradient).dims != dims or type_of(relu).dims[:1] != dims[:1]:
            continue
        y, bias = _unreshaped(relu.args[0]), None
        if _is(y, ADD) and not y.kwargs and isinstance(y.args[1], fx.Node):
            y, bias = _unreshaped(y.args[0]), y.args[1]
        if bias is not None and type_of(bias).dims != type_of(relu).dims[1:]:
            continue
        scaled = _scalings(value, y, dims)
        if scaled is None:
            continue
        made = builder.reshape(relu, dims)
        if bias is not None:
            made = builder.call(SUB, made, builder.reshape(bias, dims[1:]))
        for call in reversed(scaled):
            made = builder.call(call.target, made, call.args[1])
        return builder.call(MUL, gradient, made)
    return None


def _cuts(gradient: fx.Node) -> fx.Node | None:
    """r = relu(..) of a value that is where(r <= 0, 0, ..), reshaped or not."""
    chosen = _unreshaped(gradient)
    if not _is(chosen, aten.where.self) or not _is(chosen.args[0], aten.le.Scalar):
        return None
    (r, bound), zero = chosen.args[0].args, chosen.args[1]
    if not _is(r, aten.relu.default) or bound != 0 or not _is(zero, aten.full.default) or zero.args[1] != 0:
        return None
    return r if type_of(r).dims == type_of(chosen).dims else None


def _scalings(value: fx.Node, y: fx.Node, dims: tuple[Dim, ...]) -> list[fx.Node] | None:
    """The calls, outermost first, that make `value`, all of shape `dims`, of `y` by factors."""
    calls: list[fx.Node] = []
    while type_of(value).dims == dims:
        if _unreshaped(value) is y:
            return calls
        if value.target not in (MUL, DIV) or value.kwargs or not isinstance(value.args[0], fx.Node):
            return None
        calls.append(value)
        value = value.args[0]
    return None


def _unreshaped(value: Any) -> Any:
    while _is(value, aten.reshape.default):
        value = value.args[0]
    return value


def same_branches(node: fx.Node, builder: Builder) -> fx.Node | None:
    """where(c, a, a) -> a; where(c, where(c, a, b), d) -> where(c, a, d)"""
    mask, yes, no = node.args
    if yes is no:
        return yes
    if _is(yes, aten.where.self) and yes.args[0] is mask:
        return builder.call(aten.where.self, mask, yes.args[1], no)
    if _is(no, aten.where.self) and no.args[0] is mask:
        return builder.call(aten.where.self, mask, yes, no.args[2])
    return None


def same_dtype(node: fx.Node, builder: Builder) -> fx.Node | None:
    """A conversion to the dtype that a value has -> the value"""
    return node.args[0] if set(node.kwargs) <= {"dtype"} else None


ARITHMETIC: Rules = {
    ADD: (constant_operand, neutral, negated_operand),
    SUB: (constant_operand, neutral, negated_operand),
    MUL: (constant_operand, neutral, negated_factor, scaled_twice, scaled_operand, before_relu),
    DIV: (constant_operand, neutral, negated_factor, scaled_operand),
    NEG: (negation,),
    SUM: (
        *(negated_rows, sum_over_ones, sum_of_expanded, sum_of_spread),
        *(sum_of_weighted_product, sum_of_scaled, features_first),
    ),
    aten.sum.default: (negated_rows, features_first),
    REDUCE: (negated_rows,),
    aten.where.self: (same_branches,),
    aten._to_copy.default: (same_dtype,),
}
