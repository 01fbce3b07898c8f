"""hoist-rowwise: what is computed on edges from rows that one column names is computed on the nodes and gathered then.

f(x[src]) = f(x)[src]: once a node instead of once an edge. A contraction of features or a transcendental function
always moves; any other operator where the row that is then gathered is no wider than the rows it read, and nothing else
reads these. Operators on rows of several columns stay, and so do random draws: they are an edge's own.

Rows that no edge reads are computed as well. Their gradient is zero, so only operators move whose derivatives are
finite there, and none that reads a maximum of nothing or a quotient by a sum of nothing.

Before:
    program raised
    space N = nodes
    space E = edges on edges
    %x: f32[N, 8] = input arg x
    %w: f32[8, 2] = input param w
    %b: f32[2] = input param b
    %src: i64[E] = input arg src
    %dst: i64[E] = input arg dst
    %g: f32[E, 8] = sarc.gather(%x, %src, 0)   # model.py:8
    %m: f32[E, 2] = aten.mm(%g, %w)   # model.py:8
    %a: f32[E, 2] = aten.add.Tensor(%m, %b)   # model.py:8
    %out: f32[N, 2] = sarc.reduce(%a, %dst, 0, |N|, 'sum')   # model.py:9
    return result 0 = %out
After:
    program raised
    space N = nodes
    space E = edges on edges
    %x: f32[N, 8] = input arg x
    %w: f32[8, 2] = input param w
    %b: f32[2] = input param b
    %src: i64[E] = input arg src
    %dst: i64[E] = input arg dst
    %mm_default: f32[N, 2] = aten.mm(%x, %w)   # model.py:8
    %add_tensor: f32[N, 2] = aten.add.Tensor(%mm_default, %b)   # model.py:8
    %gather_default: f32[E, 2] = sarc.gather(%add_tensor, %src, 0)   # model.py:8
    %out: f32[N, 2] = sarc.reduce(%gather_default, %dst, 0, |N|, 'sum')   # model.py:9
    return result 0 = %out
Needs a raised program; gives one in which edges compute what depends on more than one row of nodes.
It does nothing to operators that read rows of several columns, or of edges: such a program comes back as it is.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from sarc.ir.dialect import GATHER
from sarc.ir.one_column import CONTRACTIONS, TRANSCENDENTAL, OneColumn, one_column, width, with_rows
from sarc.ir.program import Program, type_of
from sarc.ir.space import Rows
from sarc.passes.base import Builder, tidy

aten = torch.ops.aten

_SHAPED = (aten.reshape.default, aten.expand.default)


class HoistRowwise:
    """Rewrites a raised program."""

    name = "hoist-rowwise"

    def run(self, program: Program) -> Program:
        own = program.copy()
        changed = False
        # A move may leave a gathered row to one reader, which can follow it.
        while moves := find_moves(own):
            move(own, moves)
            changed = True
        return own if changed else program


def find_moves(program: Program) -> dict[fx.Node, OneColumn]:
    """The values to compute on the nodes, in order, with the column that gathers them."""
    origins = one_column(program)
    wanted: set[fx.Node] = set()
    for node in origins:
        if any(user not in origins for user in node.users):
            wanted.update(_gathered_for(node, origins))
    return {n: origin for n, origin in origins.items() if n in wanted and n.target is not GATHER}


def _gathered_for(node: fx.Node, origins: dict[fx.Node, OneColumn]) -> list[fx.Node]:
    """What is gathered so that edges can have `node`: the value itself, or values that they compute it from."""
    if node.target is GATHER:
        return [node]
    below = [n for operand in node.all_input_nodes if operand in origins for n in _gathered_for(operand, origins)]
    below = list(dict.fromkeys(below))
    type_ = type_of(node)
    if type_.rows is None or not type_.rows[1].plain or not type_.dtype.is_floating_point:
        return below
    freed = sum(width(n) for n in below if len(n.users) == 1)
    always = node.target in CONTRACTIONS or node.target in TRANSCENDENTAL
    return [node] if always or width(node) <= freed else below


def move(program: Program, moves: dict[fx.Node, OneColumn]) -> None:
    """Compute each value on the nodes and gather it; alters the program's own graph."""
    builder = Builder(program.graph, program.spaces)
    for node, origin in moves.items():
        with program.graph.inserting_before(node):
            on_nodes = _on_nodes(node, origin, builder, {})
            builder.loc = node.meta.get("loc", "")
            made = builder.call(GATHER, on_nodes, origin.column, type_of(node).axis_of(origin.space))
        assert made.meta["type"] == node.meta["type"], f"{node.name}: {made.meta['type']}"
        node.replace_all_uses_with(made)
    tidy(program.graph, program.spaces)


def _on_nodes(node: fx.Node, origin: OneColumn, builder: Builder, made: dict[fx.Node, fx.Node]) -> fx.Node:
    """The value over edges `node` as one over nodes."""
    if node in made or Rows(origin.space) not in type_of(node).dims:
        return made.get(node, node)
    if node.target is GATHER:
        return node.args[0]  # type: ignore[return-value]
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda operand: _on_nodes(operand, origin, builder, made))
    builder.loc = node.meta.get("loc", "")
    dims = with_rows(type_of(node).dims, Rows(origin.space), origin.rows)
    if node.target in _SHAPED:
        args = (args[0], builder.shape(dims))
    elif node.target is aten.full.default:
        args = (builder.shape(dims), *args[1:])
    made[node] = builder.call(node.target, *args, **kwargs)
    return made[node]
