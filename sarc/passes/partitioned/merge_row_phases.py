"""merge-row-phases: edge programs over the rows of one column become one, with the row operations between them.

A softmax is three folds over the same rows: a maximum, a sum of exponentials shifted by it, a weighted sum divided by
that. Where a part holds every edge of a row, one visit of the row does all of it, and what follows row by row (a
division, a bias, an activation) as well: a fold read back by its own rows never leaves the kernel.

Before:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:8
      %s: f32[E] = gather $0 by #0 axis 0
      reduce amax by #1 axis 0 %s: f32[N]
    edges @edges1 over E   # model.py:9
      %s: f32[E] = gather $0 by #0 axis 0
      %m: f32[E] = gather $1 by #1 axis 0
      %d: f32[E] = aten.sub.Tensor(%s, %m)   # model.py:9
      reduce sum by #1 axis 0 %d: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N]) = edge_call(@edges0, [%z], [%src, %dst])   # model.py:8
    %top: f32[N] = getitem(%edge_call, 0)   # model.py:8
    %edge_call_1: (f32[N]) = edge_call(@edges1, [%z, %top], [%src, %dst])   # model.py:9
    %sum: f32[N] = getitem(%edge_call_1, 0)   # model.py:9
    %out: f32[N] = aten.relu(%sum)   # model.py:10
    return result 0 = %out
After:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:8
      %s: f32[E] = gather $0 by #0 axis 0
      %top: f32[N] = fold_to_rows(%s, 1, 0, 'amax')   # model.py:8
      %m: f32[E] = take_rows(%top, 1, 0)
      %d: f32[E] = aten.sub.Tensor(%s, %m)   # model.py:9
      %sum: f32[N] = fold_to_rows(%d, 1, 0, 'sum')   # model.py:9
      %out: f32[N] = aten.relu(%sum)   # model.py:10
      rows by #1 axis 0 %out: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N]) = edge_call(@edges0, [%z], [%src, %dst])   # model.py:8
    %out: f32[N] = getitem(%edge_call, 0)   # model.py:10
    return result 0 = %out
Needs a partitioned program and whether an edge program has a kernel; gives one with fewer edge programs.
It does nothing to programs that exchange rows, that fold to several columns, or whose merger has no kernel: the same
object comes back when nothing merges.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.fx as fx

from sarc.ir.edge_program import EdgeProgram, Operand, Result, edge_call, fold_to_rows, take_rows
from sarc.ir.program import Program, remove_dead
from sarc.ir.space import Rows, ValueType
from sarc.passes.base import merge_common

aten = torch.ops.aten

_ROW_VIEWS = {
    aten.view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims,
    aten.slice.Tensor, aten.select.int,
}  # fmt: skip
_FEATURE_FOLDS = {aten.sum.dim_IntList, aten.amax.default, aten.amin.default}


class MergeRowPhases:
    """Merges edge programs of one program, as far as the merged ones have kernels.

    Args:
        has_kernel: whether an edge program has a compiled form.
    """

    name = "merge-row-phases"

    def __init__(self, has_kernel: Callable[[EdgeProgram], bool]):
        self.has_kernel = has_kernel

    def run(self, program: Program) -> Program:
        tried: set[str] = set()
        while True:
            calls = [n for n in program.graph.nodes if n.target is edge_call and n.name not in tried]
            if not calls:
                return program
            tried.add(calls[0].name)
            program = self._grow(program, calls[0])

    def _grow(self, program: Program, call: fx.Node) -> Program:
        """`program` with what can be merged into `call` merged, or as it is."""
        for with_rows in (True, False):
            cluster = find_cluster(program, call, with_rows)
            if cluster is None:
                return program
            body = _Body(cluster)
            if self.has_kernel(body.program):
                return _rewrite(program, cluster, body)
        return program


@dataclass
class Cluster:
    """What becomes one edge program.

    Attributes:
        column: the column whose rows all of it visits.
        space: of those rows.
        calls: the edge calls.
        inside: every value made inside: the calls' results and the operations on rows, in order.
        outputs: those of them that are read outside.
    """

    column: fx.Node
    space: str
    calls: list[fx.Node]
    inside: dict[fx.Node, None] = field(default_factory=dict)
    outputs: list[fx.Node] = field(default_factory=list)


def find_cluster(program: Program, first: fx.Node, with_rows: bool) -> Cluster | None:
    """The largest cluster that starts with the edge call `first`; None when nothing joins it.

    Args:
        with_rows: whether operations on rows behind the last edge call belong to it.
    """
    start = _row_column(first)
    if start is None:
        return None
    cluster = Cluster(*start, [first])
    after: set[fx.Node] = set()  # values that depend on the cluster from outside
    members = {first}
    passed = False
    for node in program.graph.nodes:
        if node is first:
            passed = True
        elif passed and node.op == "call_function":
            made = [n for n in node.all_input_nodes if n in members]
            if not made and not any(n in after for n in node.all_input_nodes):
                continue
            if not any(n in after for n in node.all_input_nodes) and _joins(node, cluster, members):
                members.add(node)
                if node.target is edge_call:
                    cluster.calls.append(node)
                else:
                    cluster.inside[node] = None
            else:
                after.add(node)
    if not with_rows:
        _drop_rows_behind(cluster)
    if len(cluster.calls) == 1 and all(n.target is operator.getitem for n in cluster.inside):
        return None
    returned = set(program.returned)
    members = {*cluster.inside, *cluster.calls}
    cluster.outputs = [n for n in cluster.inside if n in returned or any(u not in members for u in n.users)]
    return cluster


def _drop_rows_behind(cluster: Cluster) -> None:
    """Keep of the operations on rows only those that an edge call of the cluster reads."""
    needed: set[fx.Node] = set()
    stack = list(cluster.calls)
    while stack:
        for node in stack.pop().all_input_nodes:
            if node in cluster.inside and node not in needed:
                needed.add(node)
                stack.append(node)
    for node in list(cluster.inside):
        if node not in needed and node.target is not operator.getitem:
            del cluster.inside[node]


def _row_column(call: fx.Node) -> tuple[fx.Node, str] | None:
    """The column, and the space, to whose rows all results of a local edge call are folded."""
    edges, _, columns = call.args
    found = {(r.column, _space(r.type)) if r.kind in ("reduce", "rows") and r.axis == 0 else None for r in edges.results}
    if edges.remote is not None or len(found) != 1 or None in found:
        return None
    ((column, space),) = found  # type: ignore[misc]
    return (columns[column], space) if column is not None and space else None


def _space(type_: ValueType) -> str:
    """The space of the plain rows on the first axis, where there are no others; else ""."""
    first = type_.dims[0] if type_.dims else None
    alone = isinstance(first, Rows) and first.plain and len(type_.spaces) == 1
    return first.space if alone and isinstance(first, Rows) else ""


def _joins(node: fx.Node, cluster: Cluster, members: set[fx.Node]) -> bool:
    """Whether a value that depends on the cluster can be made inside it."""
    if node.target is operator.getitem:
        return True
    if node.target is edge_call:
        edges, values, columns = node.args
        if edges.space != cluster.calls[0].args[0].space or _row_column(node) != (cluster.column, cluster.space):
            return False
        read = [o for o in edges.operands if values[o.value] in members]
        return all(o.column is not None and columns[o.column] is cluster.column and o.axis == 0 for o in read)
    return _is_row_operation(node, cluster.space)


def _is_row_operation(node: fx.Node, space: str) -> bool:
    """Whether each row of the result is made of the same row of the operands, rows being those of `space`."""
    type_ = node.meta["type"]
    if not isinstance(type_, ValueType) or _space(type_) != space or not isinstance(node.target, torch._ops.OpOverload):
        return False
    for operand in node.all_input_nodes:
        given = operand.meta["type"]
        if not isinstance(given, ValueType) or (given.spaces and _space(given) != space):
            return False
        if given.spaces and len(given.dims) != len(type_.dims) and node.target not in (_ROW_VIEWS | _FEATURE_FOLDS):
            return False
    if node.target in _FEATURE_FOLDS:
        axes = node.args[1] if len(node.args) > 1 else None
        rank = len(node.args[0].meta["type"].dims)
        return bool(axes) and all(a % rank for a in axes)
    return node.target in _ROW_VIEWS or torch.Tag.pointwise in node.target.tags


class _Body:
    """The merged edge program and what it is called with."""

    def __init__(self, cluster: Cluster):
        self.values: list[fx.Node] = []
        self.columns: list[fx.Node] = []
        self.operands: list[Operand] = []
        self.graph = fx.Graph()
        self.made: dict[fx.Node, fx.Node] = {}
        self.placed: dict[tuple, fx.Node] = {}
        self.last: fx.Node | None = None
        first: EdgeProgram = cluster.calls[0].args[0]
        for node in [n for n in cluster.calls[0].graph.nodes if n in cluster.inside or n in cluster.calls]:
            if node.target is edge_call:
                self._call(node, cluster)
            elif node.target is not operator.getitem:
                self._row_operation(node, cluster)
        column = self._column(cluster.column)
        results = tuple(Result("rows", "", column, 0, n.meta["type"]) for n in cluster.outputs)
        self.graph.output([self.made[n] for n in cluster.outputs])
        while merge_common(self.graph) or remove_dead(self.graph):
            pass
        self._drop_unread()
        self.program = EdgeProgram(first.name, first.space, tuple(self.operands), results, self.graph, first.loc)

    def _drop_unread(self) -> None:
        inner = [n for n in self.graph.nodes if n.op == "placeholder"]
        kept = [(n, o) for n, o in zip(inner, self.operands, strict=True) if n.users]
        for node in inner:
            if not node.users:
                self.graph.erase_node(node)
        self.operands = [o for _, o in kept]

    def _column(self, column: fx.Node) -> int:
        if column not in self.columns:
            self.columns.append(column)
        return self.columns.index(column)

    def _operand(self, name: str, value: fx.Node, column: fx.Node | None, axis: int | None, type_: ValueType) -> fx.Node:
        key = (value, column, axis, type_)
        if key not in self.placed:
            if value not in self.values:
                self.values.append(value)
            with self.graph.inserting_after(self.last) if self.last else self.graph.inserting_before():
                made = self.graph.placeholder(name)
            self.last = made
            made.meta = {"type": type_, "loc": ""}
            at = None if column is None else self._column(column)
            self.operands.append(Operand(self.values.index(value), at, axis, type_))
            self.placed[key] = made
        return self.placed[key]

    def _call(self, call: fx.Node, cluster: Cluster) -> None:
        edges, values, columns = call.args
        env: dict[fx.Node, fx.Node] = {}
        inner = [n for n in edges.body.nodes if n.op == "placeholder"]
        for node, operand in zip(inner, edges.operands, strict=True):
            value = values[operand.value]
            column = None if operand.column is None else columns[operand.column]
            if value in cluster.inside:
                env[node] = self._add(node.name, take_rows, self.made[value], self._column(column), operand.axis)
                env[node].meta = dict(node.meta)
            else:
                env[node] = self._operand(node.name, value, column, operand.axis, operand.type)
        for node in edges.body.nodes:
            if node.op == "call_function":
                env[node] = self.graph.node_copy(node, env.__getitem__)
                env[node].meta = dict(node.meta)
        returned = next(n for n in reversed(edges.body.nodes) if n.op == "output").args[0]
        for k, (node, result) in enumerate(zip(returned, edges.results, strict=True)):
            made = env[node]
            getters = [u for u in call.users if u.args[1] == k]
            if result.kind == "reduce":
                name = getters[0].name if getters else node.name
                made = self._add(name, fold_to_rows, made, self._column(columns[result.column]), 0, result.fold)
                made.meta = {"type": result.type, "loc": getters[0].meta.get("loc", "") if getters else edges.loc}
            for getter in getters:
                self.made[getter] = made

    def _add(self, name: str, target: Callable, *args) -> fx.Node:
        return self.graph.create_node("call_function", target, args, name=name)

    def _row_operation(self, node: fx.Node, cluster: Cluster) -> None:
        def operand(value: fx.Node) -> fx.Node:
            if value in self.made:
                return self.made[value]
            type_ = value.meta["type"]
            return self._operand(value.name, value, None, 0 if type_.spaces else None, type_)

        self.made[node] = self.graph.node_copy(node, operand)
        self.made[node].meta = dict(node.meta)


def _rewrite(program: Program, cluster: Cluster, body: _Body) -> Program:
    """`program` with the cluster as one edge call."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    gone = {*cluster.inside, *cluster.calls}

    def emit_cluster() -> None:
        call = graph.create_node(
            "call_function", edge_call,
            (body.program, [env[v] for v in body.values], [env[c] for c in body.columns]), name=cluster.calls[0].name,
        )  # fmt: skip
        call.meta = {"type": tuple(r.type for r in body.program.results), "loc": body.program.loc}
        for k, node in enumerate(cluster.outputs):
            env[node] = graph.create_node("call_function", operator.getitem, (call, k), name=node.name)
            env[node].meta = dict(node.meta)

    def emit(node: fx.Node) -> None:
        stack = [node]
        while stack:
            top = stack[-1]
            needs = [*body.values, *body.columns] if top in gone else top.all_input_nodes
            missing = [n for n in needs if n not in env]
            if top in env:
                stack.pop()
            elif missing:
                stack.extend(reversed(missing))
            else:
                stack.pop()
                if top in gone:
                    emit_cluster()
                else:
                    env[top] = graph.node_copy(top, env.__getitem__)
                    env[top].meta = dict(top.meta)

    for node in program.placeholders:
        emit(node)
    for node in program.graph.nodes:
        if node.op == "call_function" and node not in gone:
            emit(node)
    for node in program.returned:
        emit(node)
    graph.output([env[n] for n in program.returned])
    return replace(program, graph=graph, spaces=program.spaces.copy())
