"""narrow-products: the products of an edge program take their narrow factors first, and sums over features last of all.

An edge's row, scaled by one number a head for several readers, is a wide product for each edge. Here the numbers are
multiplied with one another instead, and what is summed over features is scaled behind it: sum_f (s z_f) is s sum_f z_f.
Sums that differ in their narrow factors alone are then equal, and made once.

Before:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:8
      %g: f32[E, 4, 8] = rows $0 axis 0
      %s: f32[E, 4, 1] = rows $1 axis 0
      %m: f32[E, 4, 8] = aten.mul.Tensor(%g, %s)   # model.py:8
      %d: f32[E, 4, 1] = aten.sum.dim_IntList(%m, [2], True)   # model.py:8
      store axis 0 %d: f32[E, 4, 1]
    %a: f32[E, 4, 8] = input tangent 0
    %b: f32[E, 4, 1] = input saved b
    %edge_call: (f32[E, 4, 1]) = edge_call(@edges0, [%a, %b], [])   # model.py:8
    %out: f32[E, 4, 1] = getitem(%edge_call, 0)   # model.py:8
    return result 0 = %out
After:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:8
      %g: f32[E, 4, 8] = rows $0 axis 0
      %s: f32[E, 4, 1] = rows $1 axis 0
      %sum_dim_int_list: f32[E, 4, 1] = aten.sum.dim_IntList(%g, [2], True)   # model.py:8
      %mul_tensor: f32[E, 4, 1] = aten.mul.Tensor(%sum_dim_int_list, %s)   # model.py:8
      store axis 0 %mul_tensor: f32[E, 4, 1]
    %a: f32[E, 4, 8] = input tangent 0
    %b: f32[E, 4, 1] = input saved b
    %edge_call: (f32[E, 4, 1]) = edge_call(@edges0, [%a, %b], [])   # model.py:8
    %out: f32[E, 4, 1] = getitem(%edge_call, 0)   # model.py:8
    return result 0 = %out
Needs a program with edge programs; gives one whose edge programs multiply fewer wide values. It does nothing to values
of less than four bytes, whose scales may overflow apart, and where extremes are told by equality, which rounding would
change: the same object comes back when no product is narrowed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.fx as fx

from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.frontier import tells_extremes
from sarc.ir.layout_rules import static_length
from sarc.ir.program import Program, remove_dead
from sarc.ir.space import Rows, Spaces
from sarc.passes.base import Builder, merge_common

aten = torch.ops.aten


class NarrowProducts:
    """Rewrites the edge programs of a program."""

    name = "narrow-products"

    def run(self, program: Program) -> Program:
        own = program.copy()
        changed = False
        for call in [n for n in own.graph.nodes if n.target is edge_call]:
            narrowed = narrow_products(call.args[0], own.spaces)
            if narrowed is not call.args[0]:
                call.args = (narrowed, *call.args[1:])
                changed = True
        return own if changed else program


def narrow_products(edges: EdgeProgram, spaces: Spaces) -> EdgeProgram:
    """An edge program with narrow factors apart from wide ones; the same object where it has none to take apart."""
    taken = set() if tells_extremes(edges) else _taken_apart(edges.body)
    if not taken:
        return edges
    return replace(edges, body=_Rewrite(edges.body, taken, spaces).graph)


def _is_product(node: fx.Node) -> bool:
    """Whether a value is the product of two of its rank, in a precision that holds a scale."""
    if node.target is not aten.mul.Tensor or not all(isinstance(n, fx.Node) for n in node.args):
        return False
    types = [n.meta["type"] for n in (node, *node.args)]
    return all(t.dtype.is_floating_point and t.dtype.itemsize >= 4 and len(t.dims) == len(types[0].dims) for t in types)


def _summed(node: fx.Node) -> tuple[int, ...]:
    """The axes of features that a sum reduces; () for anything else."""
    if node.target is not aten.sum.dim_IntList or node.kwargs:
        return ()
    dims = node.args[0].meta["type"].dims
    axes = tuple(a % len(dims) for a in node.args[1])
    return () if any(isinstance(dims[a], Rows) for a in axes) else axes


def _taken_apart(body: fx.Graph) -> set[fx.Node]:
    """The products whose every reader is better off with their factors."""
    taken = {n for n in body.nodes if _is_product(n) and all(_is_product(u) or _summed(u) for u in n.users)}
    while True:  # a factor that stays may leave a reader none to gain by
        kept = set()
        for node in taken:
            factors = _factors(node, taken)
            narrow = min(map(_width, factors)) < _width(node)
            if not narrow or not all(_gains(user, node, factors, taken) for user in node.users):
                kept.add(node)
        if not kept:
            return taken
        taken -= kept


def _factors(product: fx.Node, taken: set[fx.Node]) -> list[fx.Node]:
    """What a product is made of, through those that are taken apart."""
    found = []
    for node in product.args:
        found += _factors(node, taken) if node in taken else [node]
    return found


def _gains(reader: fx.Node, product: fx.Node, factors: list[fx.Node], taken: set[fx.Node]) -> bool:
    """Whether a reader has less to multiply where it has the factors of a product."""
    axes = _summed(reader)
    if axes:
        return any(_is_one(n, axes) for n in factors) and not _is_one(product, axes)
    if not _is_product(reader):
        return False
    if reader in taken:
        return True
    others = [n for n in reader.args if n is not product]
    return len(others) == 1 and _width_of([min(factors, key=_width), *others]) < _width(reader)


def _is_one(node: fx.Node, axes: tuple[int, ...]) -> bool:
    """Whether a value has one entry along each of the axes."""
    return all(node.meta["type"].dims[a] == 1 for a in axes)


def _width(node: fx.Node) -> int:
    return static_length(node.meta["type"].dims)


def _width_of(factors: list[fx.Node]) -> int:
    """Entries of one row of a product."""
    width = 1
    for dims in zip(*(n.meta["type"].dims for n in factors), strict=True):
        width *= max((d for d in dims if not isinstance(d, Rows)), default=1)
    return width


class _Rewrite:
    """The body with some products taken apart."""

    def __init__(self, body: fx.Graph, taken: set[fx.Node], spaces: Spaces):
        self.graph, self.taken = fx.Graph(), taken
        self.builder = Builder(self.graph, spaces)
        self.place = {n: k for k, n in enumerate(body.nodes)}
        self.made: dict[fx.Node, fx.Node] = {}
        for node in body.nodes:
            if node in taken:
                continue
            self.builder.loc = node.meta.get("loc", "")
            if any(n in taken for n in node.all_input_nodes):
                self.made[node] = self._sum(node) if _summed(node) else self._product(self._sorted_factors(node))
            elif node.op == "output":
                self.graph.output([self.made[n] for n in node.args[0]])
            else:
                self.made[node] = self.graph.node_copy(node, self.made.__getitem__)
                self.made[node].meta = dict(node.meta)
        merge_common(self.graph)
        remove_dead(self.graph)

    def _sorted_factors(self, node: fx.Node) -> list[fx.Node]:
        return sorted(_factors(node, self.taken), key=lambda n: (_width(n), self.place[n]))

    def _product(self, factors: list[fx.Node]) -> fx.Node:
        """The narrowest factors first: what several products share is then equal."""
        made = self.made[factors[0]]
        for factor in factors[1:]:
            made = self.builder.call(aten.mul.Tensor, made, self.made[factor])
        return made

    def _sum(self, node: fx.Node) -> fx.Node:
        axes, factors = _summed(node), self._sorted_factors(node.args[0])
        outside = [n for n in factors if _is_one(n, axes)]
        total = self.builder.call(node.target, self._product([n for n in factors if n not in outside]), *node.args[1:])
        scale = self._product(outside)
        if len(total.meta["type"].dims) != len(scale.meta["type"].dims):
            scale = self.builder.call(aten.squeeze.dims, scale, list(axes))
        return self.builder.call(aten.mul.Tensor, total, scale)
