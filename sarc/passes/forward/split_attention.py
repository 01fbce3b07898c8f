"""split-attention: a linear map of several gathered rows becomes a sum of linear maps of one row each.

a^T [z_i || z_j] = a_1^T z_i + a_2^T z_j, and [x_i || x_j - x_i] W = x_i (W_1 - W_2) + x_j W_2. Contractions of features
(a matrix product, a sum of products with weights) are split over concatenations, sums, differences and negations;
pieces of one row share a product of the sum of their weights, pieces of one column are added up first. hoist-rowwise
then computes them on the nodes. A bias is added after the contraction, once, and stays there.

Before:
    program raised
    space N = nodes
    space E = edges on edges
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %src: i64[E] = input arg src
    %dst: i64[E] = input arg dst
    %xi: f32[E, 4] = sarc.gather(%x, %dst, 0)   # model.py:8
    %xj: f32[E, 4] = sarc.gather(%x, %src, 0)   # model.py:8
    %d: f32[E, 4] = aten.sub.Tensor(%xi, %xj)   # model.py:8
    %m: f32[E, 2] = aten.mm(%d, %w)   # model.py:9
    return result 0 = %m
After:
    program raised
    space N = nodes
    space E = edges on edges
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %src: i64[E] = input arg src
    %dst: i64[E] = input arg dst
    %xi: f32[E, 4] = sarc.gather(%x, %dst, 0)   # model.py:8
    %xj: f32[E, 4] = sarc.gather(%x, %src, 0)   # model.py:8
    %mm_default: f32[E, 2] = aten.mm(%xi, %w)   # model.py:9
    %mm_default_1: f32[E, 2] = aten.mm(%xj, %w)   # model.py:9
    %sub_tensor: f32[E, 2] = aten.sub.Tensor(%mm_default, %mm_default_1)   # model.py:9
    return result 0 = %sub_tensor
Needs a raised program; gives one in which a contraction of features reads rows of several columns apart where it can.
It does nothing to contractions of one column's rows, or of products of rows: a dot product of two nodes stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.fx as fx

from sarc.ir.layout_rules import reduced_axes
from sarc.ir.one_column import OneColumn, one_column
from sarc.ir.program import Program, type_of
from sarc.passes.base import Builder, tidy

aten = torch.ops.aten

_VIEWS = {aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dims}


@dataclass(frozen=True)
class Piece:
    """One summand of what is contracted.

    Attributes:
        value: over edges, with the features `start` to `stop` of the contraction.
        views: of the summand to the shape of the contracted value, innermost first.
        negative: whether it is subtracted.
        origin: the one column it comes through, if there is one.
    """

    value: fx.Node
    start: int
    stop: int
    views: tuple[fx.Node, ...] = ()
    negative: bool = False
    origin: OneColumn | None = None


@dataclass(frozen=True)
class Contraction:
    """A matrix product or a sum of products over the last axis.

    Attributes:
        node: the mm or sum.
        weights: without rows; the contracted axis is its last one for a sum, its first for a product.
        pieces: at least two, of more than one origin.
    """

    node: fx.Node
    weights: fx.Node
    pieces: tuple[Piece, ...]


class SplitAttention:
    """Rewrites a raised program."""

    name = "split-attention"

    def run(self, program: Program) -> Program:
        own = program.copy()
        found = find_contractions(own)
        return split_contractions(own, found) if found else program


def find_contractions(program: Program) -> list[Contraction]:
    """The contractions to split, in order."""
    origins = one_column(program)
    found = []
    for node in program.graph.nodes:
        operands = _contracted(node)
        if operands is None or type_of(operands[1]).spaces or not type_of(operands[0]).spaces:
            continue
        pieces = _pieces(operands[0], origins)
        if len({p.origin for p in pieces}) > 1:
            found.append(Contraction(node, operands[1], tuple(pieces)))
    return found


def _contracted(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The value whose last axis a call contracts, and the weights of that axis."""
    if node.target is aten.mm.default:
        return node.args  # type: ignore[return-value]
    if node.target is not aten.sum.dim_IntList or node.args[0].target is not aten.mul.Tensor or node.kwargs:
        return None
    product = node.args[0]
    dims = type_of(product).dims
    if reduced_axes({"dim": node.args[1]}, dims) != {len(dims) - 1}:
        return None
    for value, weights in (product.args, product.args[::-1]):
        if not isinstance(value, fx.Node) or not isinstance(weights, fx.Node) or type_of(value).dims != dims:
            continue
        if type_of(weights).dims and type_of(weights).dims[-1] == dims[-1] and not type_of(weights).spaces:
            return value, weights
    return None


def _pieces(value: fx.Node, origins: dict[fx.Node, OneColumn]) -> list[Piece]:
    """`value` as a sum of pieces; itself where no part of it comes through one column."""
    width = type_of(value).dims[-1]
    whole = [Piece(value, 0, width, origin=origins.get(value))]  # type: ignore[arg-type]
    if value in origins:
        return whole
    found: list[Piece] = []
    dims = type_of(value).dims
    if value.target is aten.cat.default and _axis(value) == len(dims) - 1:
        at = 0
        for part in value.args[0]:
            found += [replace(p, start=p.start + at, stop=p.stop + at) for p in _pieces(part, origins)]
            at += type_of(part).dims[-1]  # type: ignore[operator]
    elif value.target in (aten.add.Tensor, aten.sub.Tensor) and not value.kwargs:
        if all(isinstance(a, fx.Node) and type_of(a).dims == dims for a in value.args):
            a, b = (_pieces(n, origins) for n in value.args)
            minus = value.target is aten.sub.Tensor
            found = [*a, *(replace(p, negative=p.negative != minus) for p in b)]
    elif value.target is aten.neg.default:
        found = [replace(p, negative=not p.negative) for p in _pieces(value.args[0], origins)]
    elif _is_view(value) and type_of(value.args[0]).dims[-1:] == dims[-1:]:
        found = [replace(p, views=(*p.views, value)) for p in _pieces(value.args[0], origins)]
    return found if any(p.origin is not None for p in found) else whole


def _is_view(value: fx.Node) -> bool:
    """Whether a call only names axes of length one differently."""
    if value.target is aten.select.int:
        return type_of(value.args[0]).dims[value.args[1]] == 1
    return value.target in _VIEWS


def _axis(cat: fx.Node) -> int:
    return (cat.args[1] if len(cat.args) > 1 else 0) % len(type_of(cat).dims)  # type: ignore[operator]


def split_contractions(program: Program, found: list[Contraction]) -> Program:
    """Rebuild each contraction as a sum over its pieces; alters the program's own graph."""
    builder = Builder(program.graph, program.spaces)
    for entry in found:
        with program.graph.inserting_before(entry.node):
            builder.loc = entry.node.meta.get("loc", "")
            made = _sum_of_pieces(entry, builder)
        entry.node.replace_all_uses_with(made)
    tidy(program.graph, program.spaces)
    return program


def _sum_of_pieces(entry: Contraction, builder: Builder) -> fx.Node:
    by_origin: dict[object, dict[object, list[Piece]]] = {}
    for piece in entry.pieces:
        rows = (piece.value, piece.views)
        by_origin.setdefault(piece.origin or rows, {}).setdefault(rows, []).append(piece)
    groups = []
    for group in by_origin.values():
        terms = [_product(entry, pieces, builder) for pieces in group.values()]
        groups.append(_total(terms, builder))
    made, negative = _total(groups, builder)
    return builder.call(aten.neg.default, made) if negative else made


def _total(terms: Sequence[tuple[fx.Node, bool]], builder: Builder) -> tuple[fx.Node, bool]:
    """The sum of signed terms, with whether it is the negated sum."""
    first, *rest = sorted(terms, key=lambda term: term[1])
    made, negative = first
    for value, minus in rest:
        made = builder.call(aten.add.Tensor if minus == negative else aten.sub.Tensor, made, value)
    return made, negative


def _product(entry: Contraction, pieces: list[Piece], builder: Builder) -> tuple[fx.Node, bool]:
    """The contraction of one row value: its pieces differ in the weights only."""
    product = entry.node.target is aten.mm.default
    axis = 0 if product else len(type_of(entry.weights).dims) - 1
    weights, negative = _total([(_slice(entry.weights, axis, p, builder), p.negative) for p in pieces], builder)
    value = pieces[0].value
    for view in pieces[0].views:
        value = builder.reshape(value, (*type_of(view).dims[:-1], type_of(value).dims[-1]))
    if product:
        return builder.call(aten.mm.default, value, weights), negative
    return builder.call(
        entry.node.target, builder.call(aten.mul.Tensor, value, weights), *entry.node.args[1:]
    ), negative


def _slice(weights: fx.Node, axis: int, piece: Piece, builder: Builder) -> fx.Node:
    if type_of(weights).dims[axis] == piece.stop - piece.start:
        return weights
    return builder.call(aten.slice.Tensor, weights, axis, piece.start, piece.stop)
