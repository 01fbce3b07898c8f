"""Which values over edges are functions of one row of nodes: gathered by one column, then computed row by row.

What is computed row by row from rows that one column names may as well be computed on the nodes and gathered after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from sarc.ir.dialect import GATHER
from sarc.ir.finite_rows import infinite_on_empty
from sarc.ir.layout_rules import reduced_axes, static_length
from sarc.ir.program import Program, type_of
from sarc.ir.space import Rows, ValueType

aten = torch.ops.aten

# Operators that keep rows apart, and whose values and derivatives are finite wherever their operands are: rows that no
# edge reads are computed as well and must not turn a gradient of zero into NaN. (Quotients of rows, exp, log, roots and
# powers stay on the edges.)
CONTRACTIONS = {aten.mm.default, aten.bmm.default, aten.sum.dim_IntList}
TRANSCENDENTAL = {
    aten.tanh.default, aten.sigmoid.default, aten.gelu.default, aten.elu.default, aten.silu.default, aten.sin.default,
    aten.cos.default, aten.erf.default, aten.atan.default, aten.softplus.default, aten._softmax.default,
    aten._log_softmax.default,
}  # fmt: skip
VIEWS = {
    aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims, aten.permute.default,
    aten.t.default, aten.transpose.int, aten.select.int, aten.slice.Tensor, aten.detach.default,
}  # fmt: skip
CHEAP = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.relu.default,
    aten.leaky_relu.default, aten.abs.default, aten.clamp.default, aten.where.self, aten.maximum.default,
    aten.minimum.default, aten.cat.default, aten.stack.default, aten._to_copy.default, aten.gt.Scalar, aten.lt.Scalar,
    aten.ge.Scalar, aten.le.Scalar,
}  # fmt: skip
ROWWISE = CONTRACTIONS | TRANSCENDENTAL | VIEWS | CHEAP


@dataclass(frozen=True)
class OneColumn:
    """The column that a value over edges comes through, and the rows that it names."""

    column: fx.Node
    rows: Rows

    @property
    def space(self) -> str:
        """The edges."""
        return type_of(self.column).spaces[0]


def one_column(program: Program) -> dict[fx.Node, OneColumn]:
    """Every value over edges that is computed row by row from node rows gathered by one column, with that column."""
    unsafe = infinite_on_empty(program)
    found: dict[fx.Node, OneColumn] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta["type"], ValueType):
            continue
        origin = _gathered(node, program, unsafe) if node.target is GATHER else _computed(node, found, unsafe)
        if origin is not None:
            found[node] = origin
    return found


def _gathered(node: fx.Node, program: Program, unsafe: set[fx.Node]) -> OneColumn | None:
    x, column, axis = node.args
    (edges,), rows = type_of(column).dims, type_of(x).dims[axis]
    if not isinstance(edges, Rows) or not isinstance(rows, Rows) or x in unsafe:
        return None
    onto_edges = program.spaces[edges.space].on_edges and not program.spaces[rows.space].on_edges
    return OneColumn(column, rows) if onto_edges and edges.plain and rows.plain else None


def _computed(node: fx.Node, found: dict[fx.Node, OneColumn], unsafe: set[fx.Node]) -> OneColumn | None:
    """The one column of a call's operands; None where there are several, or the call does not keep rows apart."""
    if node.target not in ROWWISE or any(n in unsafe for n in node.all_input_nodes):
        return None
    with_rows = [n for n in node.all_input_nodes if type_of(n).spaces and n.target is not aten.full.default]
    origins = {found.get(n) for n in with_rows}
    if len(origins) != 1:
        return None
    (origin,) = origins
    if origin is None or Rows(origin.space) not in type_of(node).dims or _divides_by_rows(node) or _mixes(node, origin):
        return None
    return origin


def _divides_by_rows(node: fx.Node) -> bool:
    divisor = node.args[1] if node.target is aten.div.Tensor else None
    return isinstance(divisor, fx.Node) and bool(type_of(divisor).spaces)


def _mixes(node: fx.Node, origin: OneColumn) -> bool:
    """Whether an axis that the call works along is that of the rows."""
    edges = Rows(origin.space)
    if node.target in (aten.cat.default, aten.slice.Tensor):
        dims = type_of(node).dims
        return isinstance(dims[(node.args[1] if len(node.args) > 1 else 0) % len(dims)], Rows)
    if node.target is aten.sum.dim_IntList:
        dims = type_of(node.args[0]).dims
        return any(dims[a] == edges for a in reduced_axes({"dim": node.args[1]}, dims))
    return False


def width(node: fx.Node) -> int:
    """Numbers in a row."""
    return static_length(type_of(node).dims)


def with_rows(dims: tuple[Any, ...], old: Rows, new: Rows) -> tuple[Any, ...]:
    """`dims` with one row dimension exchanged for another."""
    return tuple(new if d == old else d for d in dims)
