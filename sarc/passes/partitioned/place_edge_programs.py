"""place-edge-programs: edge programs run over row sets whose edges are at the parts chosen for them.

An edge program whose edges run at their far rows' owners visits these edges as rows of another space, each with the
owner of its far row. Where a vertex cover divides the edges, one program becomes two, over those that stay and those
that move, and their folds are combined. Columns and edge rows of a row set are made once a graph.

Before:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:9
      %m: f32[E] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #1 axis 0 %m: f32[N]
    %g: f32[N] = input tangent 0
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N]) = edge_call(@edges0, [%g], [%dst, %src])   # model.py:9
    %out: f32[N] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
After:
    program backward
    space N = nodes
    space E = edges on edges
    space E_src = placed(E) on edges
    edges @edges0_src over E_src   # model.py:9
      %m: f32[E_src] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #1 axis 0 %m: f32[N]
    %g: f32[N] = input tangent 0
    %dst_e_src: i64[E_src] = input bound dst@E_src
    %src_e_src: i64[E_src] = input bound src@E_src
    %edge_call: (f32[N]) = edge_call(@edges0_src, [%g], [%dst_e_src, %src_e_src])   # model.py:9
    %out: f32[N] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
Needs a fused program and the row sets of its edge calls; gives one in which these calls visit them.
It does nothing to edge programs that run at home: the same object comes back when all do.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy
import torch
import torch.fx as fx

from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.placement import RowSet
from sarc.ir.program import Input, Program, map_sizes, select_inputs
from sarc.ir.space import Rows, Size, Space, ValueType
from sarc.passes.base import Builder

aten = torch.ops.aten

# How shares of a fold, of two row sets, are combined.
_COMBINE = {
    "sum": aten.add.Tensor, "amax": aten.maximum.default, "amin": aten.minimum.default, "max": aten.maximum.default,
    "min": aten.minimum.default,
}  # fmt: skip


class PlaceEdgePrograms:
    """Rewrites a fused program for given row sets.

    Args:
        row_sets: by edge call, the row sets that it visits instead of its edges at home.
    """

    name = "place-edge-programs"

    def __init__(self, row_sets: Mapping[str, Sequence[RowSet]]):
        self.row_sets = row_sets

    def run(self, program: Program) -> Program:
        placed = {n.name: self.row_sets[n.name] for n in program.graph.nodes if self._moves(n)}
        return _Rewrite(program, placed).run() if placed else program

    def _moves(self, node: fx.Node) -> bool:
        """Whether a call shall visit other rows than it does."""
        sets = self.row_sets.get(node.name, ()) if node.target is edge_call else ()
        return bool(sets) and sets[0].site.ends.space == node.args[0].space


def moved_input(entry: Input, row_set: str) -> Input:
    """The input that holds the rows of a row set of what `entry` holds for the edges at home."""
    return Input("bound", f"{entry.name}@{row_set}")


@dataclass
class _Rewrite:
    """One program being rewritten."""

    program: Program
    row_sets: Mapping[str, Sequence[RowSet]]
    graph: fx.Graph = field(default_factory=fx.Graph)
    env: dict[fx.Node, fx.Node] = field(default_factory=dict)
    placed: dict[tuple[fx.Node, str], fx.Node] = field(default_factory=dict)

    def run(self) -> Program:
        self.spaces = self.program.spaces.copy()
        self.builder = Builder(self.graph, self.spaces)
        for node in self.program.placeholders:
            self.env[node] = self.graph.node_copy(node)
            self.env[node].meta = dict(node.meta)
        inputs = list(self.program.inputs)
        self._add_inputs(inputs)
        for node in self.program.graph.nodes:
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self.env.__getitem__))
            elif node in self.env:
                continue
            elif node.target is operator.getitem and node.args[0].name in self.row_sets:
                self.env[node] = self._result(node)
            elif node.target is edge_call and node.name in self.row_sets:
                self._calls(node)
            else:
                self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
                self.env[node].meta = dict(node.meta)
        made = replace(self.program, graph=self.graph, spaces=self.spaces, inputs=tuple(inputs))
        kept = [n for n in made.placeholders if n.users or n in self._unused()]
        return select_inputs(made, kept)

    def _unused(self) -> set[fx.Node]:
        """Inputs that nothing read before: they stay."""
        return {self.env[n] for n in self.program.placeholders if not n.users}

    def _add_inputs(self, inputs: list[Input]) -> None:
        entries = dict(zip(self.program.placeholders, self.program.inputs, strict=True))
        self.made: dict[fx.Node, list[fx.Node]] = {}
        for node in self.program.graph.nodes:
            if node.target is not edge_call:
                continue
            for row_set in self.row_sets.get(node.name, ()):
                space = row_set.site.ends.space
                if row_set.name not in self.spaces:
                    self.spaces.add(Space(row_set.name, "placed", (space,), on_edges=True))
                for value in (*node.args[1], *node.args[2]):
                    if (value, row_set.name) in self.placed or space not in value.meta["type"].spaces:
                        continue
                    made = self.graph.placeholder(f"{value.name}_{row_set.name}")
                    made.meta = {**value.meta, "type": renamed(value.meta["type"], space, row_set.name)}
                    self.placed[value, row_set.name] = made
                    inputs.append(moved_input(entries[value], row_set.name))

    def _calls(self, node: fx.Node) -> None:
        """The call over each of its row sets."""
        edges, values, columns = node.args
        calls: list[fx.Node] = []
        for row_set in self.row_sets[node.name]:
            site = row_set.site.name
            given = [self.placed.get((v, row_set.name), self.env.get(v)) for v in values]
            through = [self.placed.get((c, row_set.name), self.env.get(c)) for c in columns]
            program = over_row_set(edges, row_set.name, f"{edges.name}_{site}")
            call = self.graph.create_node(
                "call_function", edge_call, (program, given, through), name=node.name if not calls else None
            )
            call.meta = {"type": node.meta["type"], "loc": node.meta.get("loc", "")}
            calls.append(call)
        self.made[node] = calls
        self.env[node] = calls[0]

    def _result(self, node: fx.Node) -> fx.Node:
        """One result: of one call, or of both together."""
        call, k = node.args
        shares: list[fx.Node] = []
        for place, made in enumerate(self.made[call]):
            last = place + 1 == len(self.made[call])
            name = node.name if last and not shares else None
            share = self.graph.create_node("call_function", operator.getitem, (made, k), name=name)
            share.meta = dict(node.meta)
            shares.append(share)
        if len(shares) == 1:
            return shares[0]
        self.builder.loc = node.meta.get("loc", "")
        return self.builder.call(_COMBINE[call.args[0].results[k].fold], *shares)


def over_row_set(edges: EdgeProgram, row_set: str, name: str) -> EdgeProgram:
    """The edge program over the rows of another space."""
    space = edges.space
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in edges.body.nodes:
        env[node] = body.node_copy(node, env.__getitem__)
        env[node].meta = dict(node.meta)
        if node.op != "output":
            env[node].meta["type"] = renamed(node.meta["type"], space, row_set)
            env[node].args = map_sizes(env[node].args, lambda size: _renamed_size(size, space, row_set))
    return replace(
        edges,
        name=name,
        space=row_set,
        operands=tuple(replace(o, type=renamed(o.type, space, row_set)) for o in edges.operands),
        body=body,
    )


def renamed(type_: ValueType, space: str, instead: str) -> ValueType:
    """A type with rows of `instead` where it has rows of `space`."""
    dims = (replace(d, space=instead) if isinstance(d, Rows) and d.space == space else d for d in type_.dims)
    return ValueType(tuple(dims), type_.dtype)


def _renamed_size(size: Size, space: str, instead: str) -> Size:
    return Size(size.expr.subs(sympy.Symbol(space), sympy.Symbol(instead)))
