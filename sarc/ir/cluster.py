"""Cluster: values of a program that become one edge program, and the rewriting that puts it in their place.

The values are the results of edge calls over one space, and operations on rows: those whose every row is made of the
same row of their operands. A cluster must be convex: what depends on it from outside is read by none of its members.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.fx as fx

from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram, Operand, Result, contract_kind, edge_call, fold_to_rows, take_rows
from sarc.ir.program import Program, remove_dead
from sarc.ir.space import Rows, ValueType

aten = torch.ops.aten

ROW_VIEWS = {
    aten.view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims,
    aten.slice.Tensor, aten.select.int,
}  # fmt: skip
FEATURE_FOLDS = {aten.sum.dim_IntList, aten.amax.default, aten.amin.default}


@dataclass
class Cluster:
    """What becomes one edge program.

    Attributes:
        name, space: of the edge program.
        row_space: space of the rows that operations on rows have.
        column: the column by which edge calls fold to those rows; None where the rows are those of `space`.
        members: edge calls, their results, operations on rows and contractions of rows, in the program's order. What
            is folded by another column is read by none of them.
    """

    name: str
    space: str
    row_space: str
    column: fx.Node | None
    members: dict[fx.Node, None] = field(default_factory=dict)

    @property
    def calls(self) -> list[fx.Node]:
        return [n for n in self.members if n.target is edge_call]


def plain_space(type_: object) -> str:
    """The space of the plain rows on the first axis, where there are no others; else ""."""
    if not isinstance(type_, ValueType) or not type_.dims or len(type_.spaces) != 1:
        return ""
    first = type_.dims[0]
    return first.space if isinstance(first, Rows) and first.plain else ""


def behind_views(node: fx.Node) -> fx.Node:
    """The value that a value is a view of."""
    while node.target in ROW_VIEWS:
        node = node.args[0]
    return node


def is_row_operation(node: fx.Node, space: str) -> bool:
    """Whether each row of the result is made of the same row of the operands, rows being those of `space`."""
    type_ = node.meta.get("type")
    if node.op != "call_function" or plain_space(type_) != space or not isinstance(node.target, torch._ops.OpOverload):
        return False
    for operand in node.all_input_nodes:
        given = operand.meta["type"]
        if not isinstance(given, ValueType) or (given.spaces and plain_space(given) != space):
            return False
        if given.spaces and len(given.dims) != len(type_.dims) and node.target not in (ROW_VIEWS | FEATURE_FOLDS):
            return False
    if node.target in FEATURE_FOLDS:
        axes = node.args[1] if len(node.args) > 1 else []
        rank = len(node.args[0].meta["type"].dims)
        return bool(axes) and all(a % rank for a in axes or ())
    if node.target in (aten.slice.Tensor, aten.select.int):
        return bool((node.args[1] if len(node.args) > 1 else 0) % len(node.args[0].meta["type"].dims))
    return node.target in ROW_VIEWS or node.target is UNIFORM or torch.Tag.pointwise in node.target.tags


def is_row_sum(node: fx.Node, space: str) -> bool:
    """Whether the call sums rows of `space` (a contraction)."""
    if node.target not in (aten.sum.dim_IntList, aten.sum.default) or node.meta["type"].spaces:
        return False
    return plain_space(node.args[0].meta["type"]) == space


class Merger:
    """The edge program of a cluster and what it is called with.

    Attributes:
        program: the edge program.
        values, columns: operands of its call.
        outputs: members that are its results; views of them are made again outside.
    """

    def __init__(self, program: Program, cluster: Cluster):
        self.whole, self.cluster = program, cluster
        self.values: list[fx.Node] = []
        self.columns: list[fx.Node] = []
        self.operands: list[Operand] = []
        self.graph = fx.Graph()
        self.made: dict[fx.Node, fx.Node] = {}
        self.placed: dict[tuple, fx.Node] = {}
        self.last: fx.Node | None = None
        self.elsewhere: dict[fx.Node, Result] = {}
        self.views, self.outputs = self._outputs()
        for node in cluster.members:
            if node.target is edge_call:
                self._call(node)
            elif node.target is not operator.getitem:
                self._row_operation(node)
        results = tuple(self._result(n) for n in self.outputs)
        self.graph.output([self.made[n] for n in self.outputs])
        remove_dead(self.graph)
        self._drop_unread()
        loc = next((n.meta["loc"] for n in cluster.members if n.meta.get("loc")), "")
        self.program = EdgeProgram(cluster.name, cluster.space, tuple(self.operands), results, self.graph, loc)

    def _outputs(self) -> tuple[list[fx.Node], list[fx.Node]]:
        """Views that are made again outside, and the members that must be results for that and for other readers."""
        members, returned = self.cluster.members, set(self.whole.returned)
        views: dict[fx.Node, None] = {}
        outputs: dict[fx.Node, None] = {}
        outside = [n for n in members if n in returned or any(u not in members for u in n.users)]
        for node in outside:
            chain = []
            while node in members and node.target in ROW_VIEWS:
                chain.append(node)
                node = node.args[0]
            views.update(dict.fromkeys(reversed(chain)))
            if node in members and node.target is not edge_call:
                outputs[node] = None
        return [n for n in members if n in views], [n for n in members if n in outputs]

    def _result(self, node: fx.Node) -> Result:
        type_ = node.meta["type"]
        if node in self.elsewhere:
            return self.elsewhere[node]
        if not type_.spaces:
            return Result("contract", contract_kind(node), None, None, type_)
        if self.cluster.column is None:
            return Result("store", "", None, 0, type_)
        return Result("rows", "", self._column(self.cluster.column), 0, type_)

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

    def _operand(
        self, name: str, value: fx.Node, column: fx.Node | None, axis: int | None, type_: ValueType
    ) -> fx.Node:
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

    def _call(self, call: fx.Node) -> None:
        edges, values, columns = call.args
        env: dict[fx.Node, fx.Node] = {}
        inner = [n for n in edges.body.nodes if n.op == "placeholder"]
        for node, operand in zip(inner, edges.operands, strict=True):
            value = values[operand.value]
            column = None if operand.column is None else columns[operand.column]
            if value in self.made:
                env[node] = self._add(node.name, take_rows, self.made[value], self._column(column), operand.axis)
                env[node].meta = dict(node.meta)
            else:
                env[node] = self._operand(node.name, value, column, operand.axis, operand.type)
        for node in edges.body.nodes:
            if node.op == "call_function":
                env[node] = self.graph.node_copy(node, env.__getitem__)
                env[node].meta = dict(node.meta)
                if node.target in (fold_to_rows, take_rows):
                    value, column, *rest = env[node].args
                    env[node].args = (value, self._column(columns[column]), *rest)
        returned = next(n for n in reversed(edges.body.nodes) if n.op == "output").args[0]
        for k, (node, result) in enumerate(zip(returned, edges.results, strict=True)):
            made = env[node]
            getters = [u for u in call.users if u.args[1] == k]
            if result.kind == "reduce" and columns[result.column] is not self.cluster.column:
                there = replace(result, column=self._column(columns[result.column]))
                self.elsewhere.update(dict.fromkeys(getters, there))
            elif result.kind == "reduce":
                name = getters[0].name if getters else node.name
                made = self._add(name, fold_to_rows, made, self._column(columns[result.column]), 0, result.fold)
                made.meta = {"type": result.type, "loc": getters[0].meta.get("loc", "") if getters else edges.loc}
            for getter in getters:
                self.made[getter] = made

    def _add(self, name: str, target: Callable, *args) -> fx.Node:
        return self.graph.create_node("call_function", target, args, name=name)

    def _row_operation(self, node: fx.Node) -> None:
        def operand(value: fx.Node) -> fx.Node:
            if value in self.made:
                return self.made[value]
            type_ = value.meta["type"]
            return self._operand(value.name, value, None, 0 if type_.spaces else None, type_)

        self.made[node] = self.graph.node_copy(node, operand)
        self.made[node].meta = dict(node.meta)


def replace_clusters(program: Program, mergers: Sequence[Merger]) -> Program:
    """`program` with each cluster as one edge call; the clusters share no member."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    gone = {n: m for m in mergers for n in m.cluster.members if n not in m.views}

    def emit_cluster(merger: Merger) -> None:
        calls = merger.cluster.calls
        first = next(iter(calls)).name if calls else f"rows_{merger.outputs[0].name}"
        call = graph.create_node(
            "call_function", edge_call,
            (merger.program, [env[v] for v in merger.values], [env[c] for c in merger.columns]), name=first,
        )  # fmt: skip
        call.meta = {"type": tuple(r.type for r in merger.program.results), "loc": merger.program.loc}
        for k, node in enumerate(merger.outputs):
            env[node] = graph.create_node("call_function", operator.getitem, (call, k), name=node.name)
            env[node].meta = dict(node.meta)

    def emit(node: fx.Node) -> None:
        stack = [node]
        while stack:
            top = stack[-1]
            merger = gone.get(top)
            needs = [*merger.values, *merger.columns] if merger else top.all_input_nodes
            missing = [n for n in needs if n not in env]
            if top in env:
                stack.pop()
            elif missing:
                stack.extend(reversed(missing))
            else:
                stack.pop()
                if merger:
                    emit_cluster(merger)
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
