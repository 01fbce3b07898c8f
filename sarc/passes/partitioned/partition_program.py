"""partition-program: the program of one part, for given column maps.

Contractions are completed by all-reduces. An edge program that reads or folds through a column with rows of other
parts names it as its `remote` column: its rows are fetched and returned chunk by chunk. An edge program has one
traversal order, so it has one remote column; a second one is read beforehand into a stored edge tensor, or folded
afterwards from one (the base lowering, which `plan()` names).

Before:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:9
      %m: f32[E] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #0 axis 0 %m: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %edge_call: (f32[N]) = edge_call(@edges0, [%z], [%src])   # model.py:9
    %out: f32[N] = getitem(%edge_call, 0)   # model.py:9
    %total: f32[] = aten.sum(%out)   # model.py:10
    return result 0 = %total
After:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E remote #0   # model.py:9
      %m: f32[E] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #0 axis 0 %m: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %edge_call: (f32[N]) = edge_call(@edges0, [%z], [%src])   # model.py:9
    %out: f32[N] = getitem(%edge_call, 0)   # model.py:9
    %total: f32[] = aten.sum(%out)   # model.py:10
    %all_reduce: f32[] = all_reduce(%total, 'sum')   # model.py:10
    return result 0 = %all_reduce
Needs a fused program and the names of the columns that reach other parts; gives the program of one part.
It does nothing to a program without such columns and contractions: the same object comes back.
"""

from __future__ import annotations

import operator
from dataclasses import replace

import torch.fx as fx

from sarc.ir.collective import all_reduce, tuple_of
from sarc.ir.edge_program import EdgeProgram, Operand, Result, contract_kind, edge_call
from sarc.ir.ops import contracted
from sarc.ir.program import Program, remove_dead
from sarc.ir.space import Rows, ValueType


class PartitionProgram:
    """Rewrites a fused program for parts.

    Args:
        remote: names of the column values through which some part reaches rows of another.
    """

    name = "partition-program"

    def __init__(self, remote: frozenset[str]):
        self.remote = remote

    def run(self, program: Program) -> Program:
        self.spaces = program.spaces
        if not any(self._is_open(node) for node in program.graph.nodes):
            return program
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        self.graph, self.extra = graph, 0
        for node in program.graph.nodes:
            if node.op == "output":
                graph.output(fx.map_arg(node.args[0], env.__getitem__))
                continue
            if node.op == "call_function" and node.target is edge_call:
                env[node] = self._edge_call(node, env)
                continue
            made = graph.node_copy(node, env.__getitem__)
            made.meta = dict(node.meta)
            env[node] = made
            op = self._contraction(node)
            if op:
                env[node] = self._all_reduce(made, op)
        remove_dead(graph)
        return replace(program, graph=graph, spaces=program.spaces.copy())

    def _is_open(self, node: fx.Node) -> bool:
        """Whether a contraction is not completed yet, or an edge call does not name the remote column it has."""
        if self._contraction(node):
            return True
        if node.target is not edge_call:
            return False
        edges, values, columns = node.args
        remote = self._crossing(edges, values, columns)
        return remote != ([] if edges.remote is None else [edges.remote])

    def _crossing(self, edges: EdgeProgram, values, columns) -> list[int]:
        """Columns through which rows of other parts are read or folded; those of a reach are at hand."""
        ends = [(o.column, values[o.value].meta["type"], o.axis) for o in edges.operands if o.column is not None]
        ends += [(r.column, r.type, r.axis) for r in edges.results if r.column is not None]
        named = ((k, type_.dims[axis]) for k, type_, axis in ends if columns[k].name in self.remote)
        return sorted({k for k, d in named if not (isinstance(d, Rows) and self.spaces[d.space].kind == "reach")})

    def _contraction(self, node: fx.Node) -> str:
        """The all-reduce that `node`, a share of a contraction, still needs; "" for any other value."""
        if node.op != "call_function" or any(user.target in (all_reduce, tuple_of) for user in node.users):
            return ""
        if node.target is operator.getitem and node.args[0].target is edge_call:
            result = node.args[0].args[0].results[node.args[1]]
            return result.fold if result.kind == "contract" else ""
        type_ = node.meta["type"]
        if isinstance(type_, ValueType) and node.target is not operator.getitem and contracted(node, type_):
            return contract_kind(node)
        return ""

    def _all_reduce(self, share: fx.Node, op: str) -> fx.Node:
        made = self.graph.call_function(all_reduce, (share, op))
        made.meta = dict(share.meta)
        return made

    def _edge_call(self, node: fx.Node, env) -> fx.Node:
        program, values, columns = node.args
        values, columns = [env[v] for v in values], [env[c] for c in columns]
        used = self._crossing(program, values, columns)
        if len(used) <= 1:
            program = replace(program, remote=used[0] if used else None)
            return self._call(program, values, columns, node)
        keep = used[0]
        for column in used[1:]:
            program, values = self._read_first(program, values, columns, column)
        return self._fold_later(replace(program, remote=keep), values, columns, set(used[1:]), node)

    def _call(self, program: EdgeProgram, values, columns, node: fx.Node) -> fx.Node:
        made = self.graph.call_function(edge_call, (program, values, columns))
        made.meta = {"type": tuple(r.type for r in program.results), "loc": node.meta.get("loc", "")}
        return made

    def _read_first(self, program: EdgeProgram, values, columns, column: int):
        """Operands gathered through `column` become edge tensors stored by programs of their own."""
        operands, values = [], list(values)
        for operand in program.operands:
            if operand.column != column:
                operands.append(operand)
                continue
            stored = self._store(program, operand, values[operand.value], columns[column])
            values.append(stored)
            axis = operand.type.axis_of(program.space)
            operands.append(Operand(len(values) - 1, None, axis, operand.type))
        return replace(program, operands=tuple(operands)), values

    def _store(self, program: EdgeProgram, operand: Operand, value: fx.Node, column: fx.Node) -> fx.Node:
        body = fx.Graph()
        inner = body.placeholder("rows")
        inner.meta = {"type": operand.type, "loc": program.loc}
        body.output([inner])
        axis = operand.type.axis_of(program.space)
        reader = EdgeProgram(
            f"{program.name}_read{self.extra}",
            program.space,
            (replace(operand, value=0, column=0),),
            (Result("store", "", None, axis, operand.type),),
            body,
            program.loc,
            remote=0,
        )
        self.extra += 1
        return self._get(self._call(reader, [value], [column], value), 0, operand.type)

    def _get(self, call: fx.Node, index: int, type_: ValueType) -> fx.Node:
        made = self.graph.call_function(operator.getitem, (call, index))
        made.meta = {"type": type_, "loc": call.meta.get("loc", "")}
        return made

    def _fold_later(self, program: EdgeProgram, values, columns, late: set[int], node: fx.Node) -> fx.Node:
        """Reduces through the columns `late` become stores, folded by programs of their own."""
        if not any(r.column in late for r in program.results):
            return self._call(program, values, columns, node)
        returned = next(n for n in reversed(program.body.nodes) if n.op == "output").args[0]
        results = []
        for result, value in zip(program.results, returned, strict=True):
            if result.column not in late:
                results.append(result)
                continue
            type_ = value.meta["type"]
            results.append(Result("store", "", None, type_.axis_of(program.space), type_))
        call = self._call(replace(program, results=tuple(results)), values, columns, node)
        finished = []
        for k, (old, new) in enumerate(zip(program.results, results, strict=True)):
            got = self._get(call, k, new.type)
            finished.append(got if old is new else self._fold(program, old, got, columns[old.column]))
        # Readers of the call take its results through getitem; a tuple node keeps that shape.
        made = self.graph.call_function(tuple_of, (finished,))
        made.meta = {"type": tuple(r.type for r in program.results), "loc": node.meta.get("loc", "")}
        return made

    def _fold(self, program: EdgeProgram, result: Result, rows: fx.Node, column: fx.Node) -> fx.Node:
        body = fx.Graph()
        inner = body.placeholder("rows")
        inner.meta = {"type": rows.meta["type"], "loc": program.loc}
        body.output([inner])
        folder = EdgeProgram(
            f"{program.name}_fold{self.extra}",
            program.space,
            (Operand(0, None, rows.meta["type"].axis_of(program.space), rows.meta["type"]),),
            (replace(result, column=0),),
            body,
            program.loc,
            remote=0,
        )
        self.extra += 1
        return self._get(self._call(folder, [rows], [column], rows), 0, result.type)
