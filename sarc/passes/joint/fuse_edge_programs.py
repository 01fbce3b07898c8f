"""fuse-edge-programs: connected regions over edges become EdgePrograms.

A region starts at gathers from nodes and at edge tensors, runs row-wise, and ends in folds: reduces to nodes,
contractions over the edges, and stores of edge rows that something else reads. Folds over one space that do not depend
on each other and use the same columns share a traversal.

Before:
    program forward
    space N = nodes
    space E = edges on edges
    %z: f32[N, 4] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %m: f32[E, 4] = sarc.gather(%z, %src, 0)   # model.py:8
    %out: f32[N, 4] = sarc.reduce(%m, %dst, 0, |N|, 'sum')   # model.py:9
    return result 0 = %out
After:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:9
      %m: f32[E, 4] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #1 axis 0 %m: f32[N, 4]
    %z: f32[N, 4] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N, 4]) = edge_call(@edges0, [%z], [%src, %dst])   # model.py:9
    %getitem: f32[N, 4] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %getitem
Needs a forward or backward program; gives one in which every value over edges is inside an edge program or stored.
It does nothing to a program without folds over edges: the same object comes back.
"""

from __future__ import annotations

import operator

import sympy
import torch.fx as fx

from sarc.ir.edge_program import EdgeProgram, Operand, Result, contract_kind, edge_call
from sarc.ir.program import Program, map_sizes, remove_dead
from sarc.ir.space import Size, Spaces
from sarc.passes.joint.group_folds import Fold, body_space, find_folds, gathers_rows, group_folds, leaves_of, region_of


class FuseEdgePrograms:
    """Rewrites a typed program so that everything over edges happens in `edge_call`s and in local row operations."""

    name = "fuse-edge-programs"

    def run(self, program: Program) -> Program:
        folds = find_folds(program)
        return fuse(program, folds) if folds else program


def fuse(program: Program, folds: list[Fold]) -> Program:
    """Replace `folds` and the regions that feed them by edge programs."""
    groups = group_folds(program, folds)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    fold_nodes = {f.node for f in folds}
    group_of = {f.node: k for k, group in enumerate(groups) for f in group}

    def emit(node: fx.Node) -> fx.Node:
        """Emit `node` and what it needs, depth first: groups are placed when their first result is needed."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in env:
                stack.pop()
                continue
            if top in fold_nodes:
                needs = _group_inputs(groups[group_of[top]], program, fold_nodes)
            else:
                needs = top.all_input_nodes
            missing = [n for n in needs if n not in env]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if top in fold_nodes:
                _emit_group(graph, env, group_of[top], groups[group_of[top]], program, fold_nodes)
            else:
                env[top] = graph.node_copy(top, env.__getitem__)
                env[top].meta = dict(top.meta)
        return env[node]

    for node in program.placeholders:
        env[node] = graph.node_copy(node)
        env[node].meta = dict(node.meta)
    for node in program.graph.nodes:
        if node in fold_nodes or (node.op == "call_function" and _stays(node, program, fold_nodes)):
            emit(node)
    graph.output([emit(n) for n in program.returned])
    remove_dead(graph)
    return Program(graph, program.spaces.copy(), program.inputs, program.outputs, program.stage, program.constants)


def _stays(node: fx.Node, program: Program, folds: set[fx.Node]) -> bool:
    """Whether a call is emitted for itself: everything that is no body call."""
    return body_space(node, program.spaces) is None


def _group_inputs(group: list[Fold], program: Program, folds: set[fx.Node]) -> list[fx.Node]:
    needs: list[fx.Node] = []
    for fold in group:
        region = region_of(fold, program, folds)
        needs += leaves_of(region)
        for node in region:
            if gathers_rows(node):
                needs += [node.args[0], node.args[1]]
        if fold.kind == "reduce":
            needs.append(fold.node.args[1])
            if fold.node.args[0] not in set(region):
                needs.append(fold.node.args[0])
    return list(dict.fromkeys(needs))


def _in_blocks(size: Size, space: str, spaces: Spaces) -> Size:
    """`size` with the rows of `space` as one symbol: a block of a concat has a length, but no parts."""
    factor = sympy.cancel(size.expr / spaces.sizes[space])
    return Size(factor * sympy.Symbol(space)) if factor.is_Integer else size


def _emit_group(graph, env, number: int, group: list[Fold], program: Program, folds: set[fx.Node]) -> None:
    body = fx.Graph()
    values: list[fx.Node] = []
    columns: list[fx.Node] = []
    operands: list[Operand] = []
    inner: dict[fx.Node, fx.Node] = {}
    space = group[0].space
    regions = [region_of(f, program, folds) for f in group]
    wanted = {n for region in regions for n in region}
    ordered = [n for n in program.graph.nodes if n in wanted]

    def place(items: list[fx.Node], node: fx.Node) -> int:
        if node not in items:
            items.append(node)
        return items.index(node)

    def add_operand(key: fx.Node, value: fx.Node, column: fx.Node | None, axis: int | None) -> None:
        made = body.placeholder(key.name)
        made.meta = {"type": key.meta["type"], "loc": key.meta.get("loc", "")}
        inner[key] = made
        at = None if column is None else place(columns, column)
        operands.append(Operand(place(values, value), at, axis, key.meta["type"]))

    for node in ordered:
        if gathers_rows(node):
            add_operand(node, node.args[0], node.args[1], node.args[2])
    direct = [f.node.args[0] for f in group if f.kind == "reduce"]
    for leaf in dict.fromkeys([*leaves_of(ordered), *(n for n in direct if n not in wanted)]):
        type_ = leaf.meta["type"]
        add_operand(leaf, leaf, None, type_.axis_of(space) if space in type_.spaces else None)
    for node in ordered:
        if node not in inner:
            inner[node] = body.node_copy(node, inner.__getitem__)
            inner[node].meta = dict(node.meta)
            inner[node].args = map_sizes(inner[node].args, lambda size: _in_blocks(size, space, program.spaces))
    results, returned = [], []
    for fold in group:
        node, type_ = fold.node, fold.node.meta["type"]
        if fold.kind == "reduce":
            rows, column, axis, _, kind = node.args
            results.append(Result("reduce", kind, place(columns, column), axis, type_))
            returned.append(inner[rows])
        elif fold.kind == "contract":
            results.append(Result("contract", contract_kind(node), None, None, type_))
            returned.append(inner[node])
        else:
            results.append(Result("store", "", None, type_.axis_of(space), type_))
            returned.append(inner[node])
    body.output(returned)
    loc = next((f.node.meta.get("loc", "") for f in group if f.node.meta.get("loc")), "")
    program_ = EdgeProgram(f"edges{number}", space, tuple(operands), tuple(results), body, loc)
    call = graph.call_function(edge_call, (program_, [env[v] for v in values], [env[c] for c in columns]))
    call.meta = {"type": tuple(r.type for r in results), "loc": loc}
    for k, fold in enumerate(group):
        env[fold.node] = graph.call_function(operator.getitem, (call, k))
        env[fold.node].meta = {"type": fold.node.meta["type"], "loc": fold.node.meta.get("loc", "")}
