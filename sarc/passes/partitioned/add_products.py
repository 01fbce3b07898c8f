"""add-products: a matrix product that is added to another one is added to its table in place.

A layer that adds a product of its own rows to one of its neighbours' (SAGE, GraphConv), and the gradient of a value
that two products read, would make both tables and then a third: a product can start from what it is added to. Sums are
looked through, so a bias between the two does not hinder.

Before:
    program forward
    space N = nodes
    %x: f32[N, 4] = input arg x
    %y: f32[N, 4] = input arg y
    %w: f32[4, 8] = input param w
    %b: f32[8] = input param b
    %p: f32[N, 8] = aten.mm(%x, %w)   # model.py:8
    %s: f32[N, 8] = aten.add.Tensor(%p, %b)   # model.py:8
    %q: f32[N, 8] = aten.mm(%y, %w)   # model.py:9
    %out: f32[N, 8] = aten.add.Tensor(%s, %q)   # model.py:10
    return result 0 = %out
After:
    program forward
    space N = nodes
    %x: f32[N, 4] = input arg x
    %y: f32[N, 4] = input arg y
    %w: f32[4, 8] = input param w
    %b: f32[8] = input param b
    %p: f32[N, 8] = aten.mm(%x, %w)   # model.py:8
    %addmm__default: f32[N, 8] = aten.addmm_(%p, %y, %w)   # model.py:9
    %out: f32[N, 8] = aten.add.Tensor(%addmm__default, %b)   # model.py:10
    return result 0 = %out
Needs a partitioned program; gives one with fewer tables, equal up to the order of sums.
It does nothing to products that anything else reads, that sum over rows, or whose sum has another type: the same object
comes back when no product is added to one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.fx as fx

from sarc.ir.cluster import plain_space
from sarc.ir.program import Program, remove_dead
from sarc.passes.base import Builder

aten = torch.ops.aten


class AddProducts:
    """Adds products of a program in place."""

    name = "add-products"

    def run(self, program: Program) -> Program:
        own = program.copy()
        builder = Builder(own.graph, own.spaces)
        returned = set(own.returned)
        changed = False
        for node in reversed(own.graph.nodes):
            if not _is_sum(node) or any(_is_sum(u) and _is_inner(node, u, returned) for u in node.users):
                continue
            leaves = _leaves(node, node, returned)
            products = [n for n in leaves if _is_product(n, node, returned)]
            if len(products) < 2:
                continue
            with own.graph.inserting_before(node):
                _rewrite(builder, node, leaves, products)
            changed = True
        if not changed:
            return program
        remove_dead(own.graph)
        return own


def _is_sum(node: fx.Node) -> bool:
    if node.target is not aten.add.Tensor or node.kwargs:
        return False
    return all(isinstance(n, fx.Node) for n in node.args) and bool(plain_space(node.meta["type"]))


def _is_inner(node: fx.Node, reader: fx.Node, returned: set[fx.Node]) -> bool:
    """Whether a value exists for one sum of its type alone."""
    alone = list(node.users) == [reader] and node not in returned and reader.args.count(node) == 1
    return alone and node.meta["type"] == reader.meta["type"]


def _leaves(node: fx.Node, root: fx.Node, returned: set[fx.Node]) -> list[fx.Node]:
    """What a sum adds up, sums that exist for it alone looked through."""
    found: list[fx.Node] = []
    for operand in node.args:
        inner = _is_sum(operand) and _is_inner(operand, node, returned)
        found += _leaves(operand, root, returned) if inner else [operand]
    return found


def _is_product(node: fx.Node, root: fx.Node, returned: set[fx.Node]) -> bool:
    """Whether a leaf is a product of rows with a replicated matrix, of the sum's type, that nothing else reads."""
    if node.target is not aten.mm.default or node in returned or len(node.users) != 1:
        return False
    if node.meta["type"] != root.meta["type"] or next(iter(node.users)).args.count(node) != 1:
        return False
    return bool(plain_space(node.args[0].meta["type"])) and not node.args[1].meta["type"].spaces


def _rewrite(builder: Builder, root: fx.Node, leaves: Sequence[fx.Node], products: Sequence[fx.Node]) -> None:
    """Put before `root` what it adds up, all but the last of the rest, which it adds itself."""
    total = products[0]
    for product in products[1:]:
        builder.loc = product.meta.get("loc", "")
        total = builder.call(aten.addmm_.default, total, *product.args)
    builder.loc = root.meta.get("loc", "")
    rest = [leaf for leaf in leaves if leaf not in products]
    for leaf in rest[:-1]:
        total = builder.call(aten.add.Tensor, total, leaf)
    if rest:
        root.args = (total, rest[-1])
    else:
        root.replace_all_uses_with(total)
        builder.graph.erase_node(root)
