"""fold-products: the product of a gradient with a sum over neighbours is folded from the edges; the sum is not kept.

The gradient of a softmax's divisor is sum_f g[n, f] o[n, f] of a target's gradient and its weighted sum
o[n, f] = sum_e w[e] z[e, f], which is kept for that, a table. The same number is sum_e w[e] sum_f g[n, f] z[e, f]: a
fold of one number an edge, over the rows that the backward pass gathers anyway.

Before:
    program joint
    space N = nodes
    space E = edges on edges
    %m: f32[E, 8] = input arg m
    %dst: i64[E] = input arg dst
    %tangent_0: f32[N, 8] = input tangent 0
    %o: f32[N, 8] = sarc.reduce(%m, %dst, 0, |N|, 'sum')   # model.py:8
    %p: f32[N, 8] = aten.mul.Tensor(%tangent_0, %o)   # model.py:9
    %d: f32[N] = aten.sum.dim_IntList(%p, [1])   # model.py:9
    return result 0 = %o
    return grad arg s = %d
After:
    program joint
    space N = nodes
    space E = edges on edges
    %m: f32[E, 8] = input arg m
    %dst: i64[E] = input arg dst
    %tangent_0: f32[N, 8] = input tangent 0
    %o: f32[N, 8] = sarc.reduce(%m, %dst, 0, |N|, 'sum')   # model.py:8
    %gather_default: f32[E, 8] = sarc.gather(%tangent_0, %dst, 0)   # model.py:9
    %mul_tensor: f32[E, 8] = aten.mul.Tensor(%gather_default, %m)   # model.py:9
    %sum_dim_int_list: f32[E] = aten.sum.dim_IntList(%mul_tensor, [1])   # model.py:9
    %reduce_default: f32[N] = sarc.reduce(%sum_dim_int_list, %dst, 0, |N|, 'sum')   # model.py:9
    return result 0 = %o
    return grad arg s = %reduce_default
Needs a joint program; gives one whose backward pass reads fewer tables of the forward pass.
It does nothing where the backward pass reads the sum, or what row operations make of it, for something else as well:
the same object comes back when no sum is saved.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from sarc.ir.dialect import GATHER, REDUCE
from sarc.ir.layout_rules import reduced_axes
from sarc.ir.program import Program, remove_dead, type_of
from sarc.ir.space import Rows, ValueType
from sarc.passes.base import Builder, merge_common
from sarc.passes.joint.split import Division

aten = torch.ops.aten

MUL, DIV, SUM = aten.mul.Tensor, aten.div.Tensor, aten.sum.dim_IntList


class FoldProducts:
    """Rewrites a joint program."""

    name = "fold-products"

    def run(self, program: Program) -> Program:
        own = program.copy()
        division = Division(own)
        builder = Builder(own.graph, own.spaces)
        changed = False
        for node in [n for n in division.needed_late if n.target is SUM and not n.kwargs]:
            found = _find(node, division)
            if found is None:
                continue
            with own.graph.inserting_before(node):
                builder.loc = node.meta.get("loc", "")
                made = _folded(node, *found, builder)
            if made.meta["type"] == node.meta["type"]:
                node.replace_all_uses_with(made)
                changed = True
        if not changed:
            return program
        remove_dead(own.graph)
        merge_common(own.graph)
        return own


def _find(node: fx.Node, division: Division) -> tuple[fx.Node, fx.Node, list[fx.Node]] | None:
    """Of a sum over features: the gradient, the fold that it meets, and what scales that, outermost first."""
    product = node.args[0]
    if product.target is not MUL or len(product.users) > 1 or not all(isinstance(a, fx.Node) for a in product.args):
        return None
    dims = type_of(product).dims
    axes = reduced_axes({"dim": node.args[1]}, dims)
    if 0 in axes or any(isinstance(d, Rows) for d in dims[1:]):
        return None
    for gradient, value in (product.args, product.args[::-1]):
        scalings: list[fx.Node] = []
        while value.target in (MUL, DIV) and _scales(value, axes):
            scalings.append(value)
            value = value.args[0]
        if value.target is not REDUCE or value.args[2] != 0 or value.args[4] != "sum" or gradient not in division.late:
            continue
        shape = type_of(gradient).dims
        if type_of(value).dims != dims or len(shape) != len(dims) or shape[0] != dims[0]:
            continue
        late = {n for n in scalings if n not in division.in_forward}
        if value in division.in_forward and _read_only_by(late, product, value, division):
            return gradient, value, scalings
    return None


def _scales(call: fx.Node, axes: set[int]) -> bool:
    """Whether a call multiplies its first operand by what is the same along `axes`."""
    value, factor = call.args
    if call.kwargs or not isinstance(value, fx.Node) or type_of(value).dims != type_of(call).dims:
        return False
    if not isinstance(factor, fx.Node):
        return True
    dims = type_of(factor).dims
    return len(dims) == len(type_of(call).dims) and all(dims[a] == 1 for a in axes)


def _read_only_by(scalings: set[fx.Node], product: fx.Node, fold: fx.Node, division: Division) -> bool:
    """Whether the backward pass reads a fold, and what the forward pass makes of it row by row, for `product` alone."""
    readers = {product, *scalings}
    values = {fold}
    stack = [fold]
    while stack:
        for user in stack.pop().users:
            if user.op == "output" or user in values:
                continue
            if user not in division.in_forward:
                if user not in readers:
                    return False
            elif user.target in (GATHER, REDUCE) or not isinstance(user.meta["type"], ValueType):
                return False
            elif user.target is not aten.mm.default:
                values.add(user)
                stack.append(user)
    return all(u in readers for n in scalings for u in n.users)


def _folded(node: fx.Node, gradient: fx.Node, fold: fx.Node, scalings: list[fx.Node], builder: Builder) -> fx.Node:
    message, column, _, size, _ = fold.args
    axes, keep = list(node.args[1]), len(node.args) > 2 and node.args[2]
    gathered = builder.call(GATHER, gradient, column, 0)
    number = builder.call(SUM, builder.call(MUL, gathered, message), axes, *([True] if keep else []))
    made = builder.call(REDUCE, number, column, 0, size, "sum")
    for call in reversed(scalings):
        factor = call.args[1]
        if isinstance(factor, fx.Node) and not keep:
            factor = builder.call(aten.squeeze.dims, factor, axes)
        made = builder.call(call.target, made, factor)
    return made
