"""factor-gradients: a gradient of a row is made of sums of the forward pass, so that no part returns a share of it.

The gradient of a destination's attention score is a sum over its edges of <dO_i, z_j> p_ij and of D_i p_ij, with
factors of the edge. What belongs to the destination comes before the sums: <dO_i, sum_j p_ij z_j> + D_i sum_j p_ij. The
sums are the forward pass's to make, and nothing is left to fold backward: a boundary row of an attention layer then
costs F + 3H numbers instead of F + 4H, for one more table of features that is kept.

Before:
    program joint
    space N = nodes
    space E = edges on edges
    %zj: f32[E, 4] = input arg zj
    %p: f32[E] = input arg p
    %g: f32[N, 4] = input tangent 0
    %dst: i64[E] = input bound dst
    %gi: f32[E, 4] = sarc.gather(%g, %dst, 0)   # model.py:9
    %both: f32[E, 4] = aten.mul.Tensor(%gi, %zj)   # model.py:9
    %dot: f32[E] = aten.sum.dim_IntList(%both, [1])   # model.py:9
    %d: f32[E] = aten.mul.Tensor(%dot, %p)   # model.py:9
    %out: f32[N] = sarc.reduce(%d, %dst, 0, |N|, 'sum')   # model.py:9
    return grad arg e = %out
After:
    program joint
    space N = nodes
    space E = edges on edges
    %zj: f32[E, 4] = input arg zj
    %p: f32[E] = input arg p
    %g: f32[N, 4] = input tangent 0
    %dst: i64[E] = input bound dst
    %unsqueeze_default: f32[E, 1] = aten.unsqueeze(%p, -1)   # model.py:9
    %mul_tensor: f32[E, 4] = aten.mul.Tensor(%zj, %unsqueeze_default)   # model.py:9
    %reduce_default: f32[N, 4] = sarc.reduce(%mul_tensor, %dst, 0, |N|, 'sum')   # model.py:9
    %mul_tensor_1: f32[N, 4] = aten.mul.Tensor(%g, %reduce_default)   # model.py:9
    %sum_dim_int_list: f32[N] = aten.sum.dim_IntList(%mul_tensor_1, [1])   # model.py:9
    return grad arg e = %sum_dim_int_list
Needs a simplified joint program; gives one whose sums over a row's edges read nothing of that row's backward pass. It
does nothing to sums that are not linear in gathers of their own row, or read no features: the same object comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.fx as fx

from sarc.ir.dialect import GATHER, REDUCE
from sarc.ir.program import Program, remove_dead, type_of
from sarc.passes.base import Builder, merge_common
from sarc.passes.joint.split import depends_on_tangents

aten = torch.ops.aten


@dataclass(frozen=True)
class _Term:
    """A share of an edge's value: `row` of its own row, times `edge`, of the forward pass.

    Attributes:
        row: f[N, *S] or, summed over features, f[N, *S, F].
        edge: f[E, *S]; None: one.
        features: f[E, *S, F] that the row meets, or None.
    """

    row: fx.Node
    edge: fx.Node | None = None
    features: fx.Node | None = None


class FactorGradients:
    """Rewrites a joint program."""

    name = "factor-gradients"

    def run(self, program: Program) -> Program:
        own = program.copy()
        rewrite = _Rewrite(own)
        changed = False
        for node in [n for n in own.graph.nodes if n.target is REDUCE and n in rewrite.backward]:
            changed |= rewrite.factor(node)
        if not changed:
            return program
        merge_common(own.graph)
        remove_dead(own.graph)
        return own


class _Rewrite:
    """One program being rewritten in place.

    Attributes:
        backward: what depends on tangents.
    """

    def __init__(self, program: Program):
        self.builder = Builder(program.graph, program.spaces)
        self.backward = depends_on_tangents(program)

    def factor(self, fold: fx.Node) -> bool:
        """Replace a fold of the backward pass by folds of the forward pass; whether it is one of those."""
        value, column, axis, size, kind = fold.args
        if kind != "sum" or axis != 0:
            return False
        with fold.graph.inserting_before(fold):
            self.builder.loc = fold.meta.get("loc", "")
            terms = self._terms(value, column)
            if not terms or not any(t.features for t in terms) or any(t.edge is None for t in terms):
                return False
            if any(type_of(t.row).dims[0] != type_of(fold).dims[0] for t in terms):
                return False
            factors = [n for t in terms for n in (t.edge, t.features) if n is not None]
            if any(type_of(n).dtype != type_of(fold).dtype for n in factors):  # a mask would not be counted
                return False
            shares = [self._share(t, column, size) for t in terms]
            total = shares[0]
            for share in shares[1:]:
                total = self.builder.call(aten.add.Tensor, total, share)
        if type_of(total) != type_of(fold):
            return False
        fold.replace_all_uses_with(total)
        return True

    def _share(self, term: _Term, column: fx.Node, size: object) -> fx.Node:
        call = self.builder.call
        assert term.edge is not None
        summed = term.edge
        if term.features is not None:
            summed = call(aten.mul.Tensor, term.features, call(aten.unsqueeze.default, term.edge, -1))
        total = call(REDUCE, summed, column, 0, size, "sum")
        total.meta["keep"] = True  # made again it would be folded backward after all
        met = call(aten.mul.Tensor, term.row, total)
        if term.features is None:
            return met
        return call(aten.sum.dim_IntList, met, [len(type_of(met).dims) - 1])

    def _terms(self, value: fx.Node, column: fx.Node) -> list[_Term] | None:
        """What adds up to an edge's value of the backward pass; None where it is not linear in its own row alone."""
        args = value.args
        if value.target is GATHER:
            return [_Term(args[0])] if args[1] is column and args[2] == 0 else None
        if value.target is aten.sum.dim_IntList:
            return self._product_of_features(value, column)
        if value.target is aten.add.Tensor and not value.kwargs:
            both = [self._terms(n, column) if n in self.backward else None for n in args]
            same = all(isinstance(n, fx.Node) and type_of(n) == type_of(value) for n in args)
            return None if None in both or not same else [t for each in both for t in each or ()]
        if value.target is aten.neg.default:
            return self._times(args[0], -1, value, column)
        if value.target is aten.mul.Tensor:
            inner, factor = args if args[0] in self.backward else args[::-1]
            return self._times(inner, factor, value, column)
        if value.target is aten.where.self and args[0] not in self.backward and _is_multiple(args[2], args[1]):
            # Of a number and a multiple of it, as the derivative of a leaky_relu has it.
            one = self.builder.call(aten.full.default, [], 1, dtype=type_of(value).dtype)
            slope = self.builder.call(aten.full.default, [], args[2].args[1], dtype=type_of(value).dtype)
            return self._times(args[1], self.builder.call(aten.where.self, args[0], one, slope), value, column)
        return None

    def _times(self, inner: object, factor: object, value: fx.Node, column: fx.Node) -> list[_Term] | None:
        """Terms of a product with an edge's number of the forward pass, or a constant."""
        if not isinstance(inner, fx.Node) or inner not in self.backward or type_of(inner) != type_of(value):
            return None
        if isinstance(factor, fx.Node) and (factor in self.backward or type_of(factor).dims != type_of(value).dims):
            return None
        terms = self._terms(inner, column)
        return None if terms is None else [self._scaled(t, factor) for t in terms]

    def _scaled(self, term: _Term, factor: object) -> _Term:
        if term.edge is not None:
            return replace(term, edge=self.builder.call(aten.mul.Tensor, term.edge, factor))
        if isinstance(factor, fx.Node):
            return replace(term, edge=factor)
        return replace(term, row=self.builder.call(aten.mul.Tensor, term.row, factor))

    def _product_of_features(self, value: fx.Node, column: fx.Node) -> list[_Term] | None:
        """sum_f row[i, .., f] features[e, .., f] of one row's gather and the forward pass's features."""
        product, axes = value.args[0], value.args[1]
        rank = len(type_of(product).dims)
        if product.target is not aten.mul.Tensor or [d % rank for d in axes] != [rank - 1] or len(value.args) > 2:
            return None
        row, features = product.args if product.args[0] in self.backward else product.args[::-1]
        if not isinstance(features, fx.Node) or features in self.backward or type_of(features) != type_of(product):
            return None
        if row.target is not GATHER or row.args[1] is not column or row.args[2] != 0:
            return None
        return [_Term(row.args[0], features=features)]


def _is_multiple(value: object, of: object) -> bool:
    """Whether a value is another one times a constant."""
    if not isinstance(value, fx.Node) or value.target is not aten.mul.Tensor:
        return False
    return value.args[0] is of and isinstance(value.args[1], (int, float))
