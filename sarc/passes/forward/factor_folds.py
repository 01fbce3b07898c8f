"""factor-folds: a factor that all rows of a target share is multiplied after the fold, not before it.

sum_j a_j t_i = t_i sum_j a_j. A softmax over a target's rows then divides after the aggregation: the sum of
exponentials and the weighted sum share a traversal, and the derivative of the division is one of nodes.

An empty row is 0 before and after: 0 * inf and 0 / 0 are kept out by `where(the row has rows, t, 1)`, which structure
alone decides. No guard where t is seen to be finite (and not zero, for a divisor) on an empty row, as a sum plus an
epsilon is.

Before:
    program raised
    space N = nodes
    space E = edges on edges
    %e: f32[E] = input arg e
    %v: f32[E] = input arg v
    %dst: i64[E] = input arg dst
    %s: f32[N] = sarc.reduce(%e, %dst, 0, |N|, 'sum')   # model.py:8
    %t: f32[N] = aten.add.Tensor(%s, 1e-16)   # model.py:8
    %g: f32[E] = sarc.gather(%t, %dst, 0)   # model.py:8
    %a: f32[E] = aten.div.Tensor(%e, %g)   # model.py:8
    %m: f32[E] = aten.mul.Tensor(%a, %v)   # model.py:9
    %out: f32[N] = sarc.reduce(%m, %dst, 0, |N|, 'sum')   # model.py:9
    return result 0 = %out
After:
    program raised
    space N = nodes
    space E = edges on edges
    %e: f32[E] = input arg e
    %v: f32[E] = input arg v
    %dst: i64[E] = input arg dst
    %s: f32[N] = sarc.reduce(%e, %dst, 0, |N|, 'sum')   # model.py:8
    %t: f32[N] = aten.add.Tensor(%s, 1e-16)   # model.py:8
    %mul_tensor: f32[E] = aten.mul.Tensor(%e, %v)   # model.py:9
    %reduce_default: f32[N] = sarc.reduce(%mul_tensor, %dst, 0, |N|, 'sum')   # model.py:9
    %div_tensor: f32[N] = aten.div.Tensor(%reduce_default, %t)   # model.py:9
    return result 0 = %div_tensor
Needs a raised program; gives one in which a sum over edges reads no factor that is constant on its targets, when that
factor comes from an earlier fold over the same edges in the same step.
It does nothing to factors that are known from the graph (degrees) or from node features alone: they cost no traversal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.fx as fx

from sarc.ir.binding_times import STEP, binding_times
from sarc.ir.dialect import GATHER, REDUCE
from sarc.ir.empty_rows import value_on_empty
from sarc.ir.ops import size_of
from sarc.ir.program import Program, type_of
from sarc.ir.space import Dim, Rows
from sarc.passes.base import Builder, tidy

aten = torch.ops.aten

_VIEWS = {aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims}


@dataclass(frozen=True)
class Factorable:
    """A sum over edges and what can leave it.

    Attributes:
        fold: the reduce.
        gathers: factors of its rows that are gathered by its own column, each with whether it divides anywhere.
        path: the calls between them and the fold.
    """

    fold: fx.Node
    gathers: Mapping[fx.Node, bool]
    path: frozenset[fx.Node]

    @property
    def column(self) -> fx.Node:
        return self.fold.args[1]  # type: ignore[return-value]

    @property
    def space(self) -> str:
        return type_of(self.column).spaces[0]


@dataclass(frozen=True)
class Product:
    """A value taken apart; the parts broadcast to it.

    Attributes:
        rest: over edges; None for one.
        factors: over nodes, each with whether it divides.
    """

    rest: fx.Node | None
    factors: tuple[tuple[fx.Node, bool], ...] = ()


class FactorFolds:
    """Rewrites a raised program."""

    name = "factor-folds"

    def run(self, program: Program) -> Program:
        own = program.copy()
        found = find_factorable(own)
        return factor(own, found) if found else program


def find_factorable(program: Program) -> list[Factorable]:
    """The sums over edges that have a factor to pull out, in order."""
    times = binding_times(program)
    folded = _folded_before(program, times)
    found = []
    for fold in program.graph.nodes:
        if fold.target is not REDUCE or fold.args[4] != "sum" or times[fold] != STEP:
            continue
        (dim,) = type_of(fold.args[1]).dims
        if not isinstance(dim, Rows) or not program.spaces[dim.space].on_edges:
            continue
        if not isinstance(_target(fold), Rows) or not type_of(fold).dtype.is_floating_point:
            continue

        def is_factor(node: fx.Node, fold: fx.Node = fold, dim: Rows = dim) -> bool:
            value, column, axis = node.args
            same_rows = column is fold.args[1] and type_of(value).dims[axis] == _target(fold)
            return same_rows and dim.space in folded[value]

        walk = _Walk(dim, is_factor)
        if walk.visit(fold.args[0]):
            found.append(Factorable(fold, walk.found, frozenset(walk.path)))
    return found


def _target(fold: fx.Node) -> Dim:
    """The rows that are folded to."""
    return type_of(fold).dims[fold.args[2]]


def _folded_before(program: Program, times: dict[fx.Node, int]) -> dict[fx.Node, frozenset[str]]:
    """For each value the spaces that were folded, in this step, to make it."""
    found: dict[fx.Node, frozenset[str]] = {}
    for node in program.graph.nodes:
        found[node] = frozenset().union(*(found[n] for n in node.all_input_nodes))
        if node.target is REDUCE and times[node] == STEP:
            found[node] |= frozenset(type_of(node.args[1]).spaces)
    return found


class _Walk:
    """Finds the factors of a value over the rows `dim`.

    Attributes:
        found: each factor, with whether it divides anywhere.
        path: the calls between the factors and the value.
    """

    def __init__(self, dim: Rows, is_factor: Callable[[fx.Node], bool]):
        self.dim, self.is_factor = dim, is_factor
        self.found: dict[fx.Node, bool] = {}
        self.path: set[fx.Node] = set()
        self._seen: dict[tuple[fx.Node, bool], bool] = {}

    def visit(self, node: fx.Node, divides: bool = False) -> bool:
        """Whether `node` is, or has, a factor."""
        if (node, divides) not in self._seen:
            self._seen[node, divides] = self._visit(node, divides)
        return self._seen[node, divides]

    def _visit(self, node: fx.Node, divides: bool) -> bool:
        if node.target is GATHER and self.is_factor(node):
            self.found[node] = self.found.get(node, False) or divides
            return True
        below = [self.visit(n, divides != inverts) for n, inverts in _multiplied(node, self.dim)]
        if any(below):
            self.path.add(node)
        return any(below)


def _multiplied(node: fx.Node, dim: Rows) -> list[tuple[fx.Node, bool]]:
    """The operands whose factors are factors of the value itself, each with whether they divide it."""
    if node.target in (aten.mul.Tensor, aten.div.Tensor, aten.neg.default):
        inverts = node.target is aten.div.Tensor
        return [(a, inverts and k == 1) for k, a in enumerate(node.args) if isinstance(a, fx.Node)]
    if node.target not in _VIEWS:
        return []
    before, after = type_of(node.args[0]).dims, type_of(node).dims
    keeps_rows = dim in before and dim in after
    # A squeeze leaves axes longer than one; a factor that is broadcast along such an axis would lose it.
    drops_ones = node.target is not aten.squeeze.dims or all(before[a] == 1 for a in node.args[1])
    return [(node.args[0], False)] if keeps_rows and drops_ones else []


def factor(program: Program, found: list[Factorable]) -> Program:
    """Rebuild each fold without its factors; alters the program's own graph."""
    graph, spaces = program.graph, program.spaces
    for entry in found:
        with graph.inserting_before(entry.fold):
            made = _Rewrite(entry, Builder(graph, spaces), program).emit()
        entry.fold.replace_all_uses_with(made)
    tidy(graph, spaces)
    return program


class _Rewrite:
    """Emits one fold with its factors after it."""

    def __init__(self, entry: Factorable, builder: Builder, program: Program):
        self.entry, self.builder, self.program = entry, builder, program
        self.made: dict[fx.Node, Product] = {}

    def emit(self) -> fx.Node:
        fold, call = self.entry.fold, self.builder.call
        rows, column, _, size, _ = fold.args
        product = self._product(rows)
        self.builder.loc = fold.meta.get("loc", "")
        rest = self._edge_rows(product.rest, rows)
        out = call(REDUCE, rest, column, type_of(rest).axis_of(self.entry.space), size, "sum")
        for value, divides in product.factors:
            out = call(aten.div.Tensor if divides else aten.mul.Tensor, out, value)
        return self.builder.expand(out, type_of(fold).dims)

    def _edge_rows(self, rest: fx.Node | None, rows: fx.Node) -> fx.Node:
        """What is left of the rows: with rows of the edges, in the fold's dtype."""
        call, type_ = self.builder.call, type_of(rows)
        if rest is None:
            dim = Rows(self.entry.space)
            shape = [size_of(d, self.program.spaces) if d == dim else 1 for d in type_.dims]
            return call(aten.full.default, shape, 1, dtype=type_.dtype)
        if self.entry.space not in type_of(rest).spaces:
            rest = self.builder.expand(rest, type_.dims)
        return rest if type_of(rest).dtype == type_.dtype else call(aten._to_copy.default, rest, dtype=type_.dtype)

    def _product(self, node: fx.Node) -> Product:
        if node not in self.made:
            self.made[node] = self._take_apart(node)
        return self.made[node]

    def _take_apart(self, node: fx.Node) -> Product:
        call, self.builder.loc = self.builder.call, node.meta.get("loc", "")
        if node in self.entry.gathers:
            return Product(None, ((self._guarded(node), False),))
        if node not in self.entry.path:
            return Product(node)
        if node.target is aten.neg.default:
            inner = self._product(node.args[0])
            return Product(call(aten.neg.default, self._edge_rows(inner.rest, node)), inner.factors)
        if node.target not in (aten.mul.Tensor, aten.div.Tensor):
            return self._view(node)
        a, b = (self._product(n) if isinstance(n, fx.Node) else n for n in node.args)
        self.builder.loc = node.meta.get("loc", "")
        if not isinstance(b, Product):
            return Product(call(node.target, self._edge_rows(a.rest, node), b), a.factors)
        if node.target is aten.mul.Tensor:
            rest = a.rest or b.rest if None in (a.rest, b.rest) else call(aten.mul.Tensor, a.rest, b.rest)
            return Product(rest, (*a.factors, *b.factors))
        rest = a.rest if b.rest is None else call(aten.div.Tensor, self._edge_rows(a.rest, node), b.rest)
        return Product(rest, (*a.factors, *((value, not divides) for value, divides in b.factors)))

    def _view(self, node: fx.Node) -> Product:
        """A view of the product is the product of the same views."""
        inner, target = self._product(node.args[0]), _target(self.entry.fold)
        before, after = type_of(node.args[0]).dims, type_of(node).dims

        def view(value: fx.Node, dim: Dim) -> fx.Node:
            value = self.builder.align(value, len(before))
            if node.target is aten.expand.default:
                return value
            if node.target is aten.reshape.default:
                old, new = (tuple(dim if d == Rows(self.entry.space) else d for d in dims) for dims in (before, after))
                return self.builder.reshape(self.builder.expand(value, old), new)
            return self.builder.call(node.target, value, *node.args[1:])

        rest = None if inner.rest is None else view(inner.rest, Rows(self.entry.space))
        return Product(rest, tuple((view(value, target), divides) for value, divides in inner.factors))

    def _guarded(self, gather: fx.Node) -> fx.Node:
        """The gathered value, with one where a row is empty, unless 0 times it and 0 by it are 0 there."""
        value, column, axis = gather.args
        empty = value_on_empty(value, column)
        if empty is not None and empty.isfinite() and (empty != 0 or not self.entry.gathers[gather]):
            return value
        call, type_ = self.builder.call, type_of(value)
        edges = size_of(Rows(self.entry.space), self.program.spaces)
        size = size_of(type_.dims[axis], self.program.spaces)
        ones = call(aten.full.default, [edges], 1, dtype=type_.dtype)
        count = call(REDUCE, ones, column, 0, size, "sum")
        if len(type_.dims) > 1:
            count = call(aten.reshape.default, count, [size if a == axis else 1 for a in range(len(type_.dims))])
        hit = call(aten.gt.Scalar, count, 0)
        return call(aten.where.self, hit, value, call(aten.full.default, [], 1, dtype=type_.dtype))
