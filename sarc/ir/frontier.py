"""Frontier: the narrowest values from which others can be computed row by row.

What another part needs of some rows may be sent as it is, or as what it is computed from: a gradient before it is
copied to every head, an attention score as the features it is a product of, when these travel anyway. The cheapest set
is a minimum cut between what cannot be computed again and what is asked for; a value's capacity is the bytes of a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
import torch
import torch.fx as fx

from sarc.ir.cluster import ROW_VIEWS, is_row_operation, plain_space
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.layout_rules import static_length
from sarc.ir.space import Size, ValueType

aten = torch.ops.aten

# Operators whose results are the same bit for bit in any set of rows.
_EXACT = ROW_VIEWS | {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.relu.default,
    aten.leaky_relu.default, aten.abs.default, aten.where.self, aten.maximum.default, aten.minimum.default,
    aten.gt.Scalar, aten.lt.Scalar, aten.ge.Scalar, aten.le.Scalar, aten._to_copy.default,
}  # fmt: skip


def repeats_exactly(node: fx.Node, space: str) -> bool:
    """Whether rows computed elsewhere are equal bit for bit, and cost little."""
    return node.target in _EXACT and is_row_operation(node, space) and _sizes_are_shapes(node)


def repeats(node: fx.Node, space: str) -> bool:
    """Whether rows can be computed elsewhere, up to rounding: products with replicated matrices too."""
    if node.target is aten.mm.default:
        first, second = (n.meta["type"] for n in node.args)
        return plain_space(first) == space and not second.spaces
    return node.target is not UNIFORM and is_row_operation(node, space) and _sizes_are_shapes(node)


def _sizes_are_shapes(node: fx.Node) -> bool:
    """Whether sizes of spaces stand for the shape of the result alone: a number of rows means the whole graph's."""
    has_size = False

    def look(tree: object) -> None:
        nonlocal has_size
        if isinstance(tree, Size):
            has_size = True
        elif isinstance(tree, (list, tuple)):
            for leaf in tree:
                look(leaf)

    look(list(node.args))
    return not has_size or node.target in ROW_VIEWS


def row_width(type_: ValueType, wire: torch.dtype | None = None) -> int:
    """Bytes of one row; on the way between parts, where wider floating-point numbers are sent as `wire`."""
    size = type_.dtype.itemsize
    if wire is not None and type_.dtype.is_floating_point:
        size = min(size, wire.itemsize)
    return size * static_length(type_.dims)


def tells_extremes(edges: EdgeProgram) -> bool:
    """Whether a program folds to extremes, or looks for the values that equal one."""
    folds = any(r.fold in ("amax", "amin") for r in edges.results)
    return folds or any(n.target is aten.eq.Tensor for n in edges.body.nodes)


@dataclass(frozen=True)
class Again:
    """Which values may be computed elsewhere.

    Attributes:
        space: whose rows they have.
        products: whether matrix products may be, too; else only what costs little and is exact.
        exact: values whose rows must be equal bit for bit: extremes of them are told by equality.
    """

    space: str
    products: bool
    exact: frozenset[fx.Node]

    def __call__(self, node: fx.Node) -> bool:
        if node.op != "call_function":
            return False
        return (repeats if self.products and node not in self.exact else repeats_exactly)(node, self.space)


def exact_values(values: Iterable[fx.Node], space: str) -> frozenset[fx.Node]:
    """`values` and what they are computed from exactly, up to what they are not."""
    found: dict[fx.Node, None] = {}
    stack = list(values)
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            if node.op == "call_function" and repeats_exactly(node, space):
                stack.extend(node.all_input_nodes)
    return frozenset(found)


@dataclass(frozen=True)
class Frontier:
    """What travels so that some values can be computed.

    Attributes:
        cut: the values that travel, in the program's order.
        known: those, what is asked for, and what is computed in between.
    """

    cut: tuple[fx.Node, ...]
    known: frozenset[fx.Node]


def find_frontier(values: Iterable[fx.Node], again: Again, wire: torch.dtype | None = None) -> Frontier:
    """The values of least bytes a row from which `values` can be computed.

    Where several sets are equal, the one nearest to what is asked for, so that least is computed again.

    Args:
        wire: dtype of wider floating-point numbers on the way.
    """
    wanted = list(dict.fromkeys(values))
    network = nx.DiGraph()
    network.add_nodes_from(("given", "wanted"))
    stack = list(wanted)
    seen: set[fx.Node] = set()
    for value in wanted:
        network.add_edge((value, "known"), "wanted")
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        network.add_edge((node, "made"), (node, "known"), capacity=row_width(node.meta["type"], wire))
        if not again(node):
            network.add_edge("given", (node, "made"))
            continue
        for operand in node.all_input_nodes:
            if operand.meta["type"].spaces:
                network.add_edge((operand, "known"), (node, "made"))
                stack.append(operand)
    # Of several minimum cuts networkx gives the one nearest to its sink.
    _, (made, known) = nx.minimum_cut(network, "given", "wanted")
    there = frozenset(node for node in seen if (node, "known") in known)
    order = {n: k for k, n in enumerate(wanted[0].graph.nodes)} if wanted else {}
    cut = sorted((n for n in there if (n, "made") in made), key=order.__getitem__)
    return Frontier(tuple(cut), there)
