"""A program as Python: the same operators as functions of whole-graph tensors, for reading and for running.

Sizes become keyword arguments named after the spaces, an edge program becomes a function of its operands' rows. Random
draws come out as those of plain `sarc.uniform`, keyed by position.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch.utils._sympy.printers import PythonPrinter

from sarc.ir.call import op_name
from sarc.ir.collective import all_reduce, fetch, give_back, tuple_of
from sarc.ir.edge_program import EdgeProgram, Result, edge_call
from sarc.ir.program import Program
from sarc.ir.space import Rows, Size

_HEAD = """import operator

import torch

aten, prims, sarc = torch.ops.aten, torch.ops.prims, torch.ops.sarc
"""


def format_python(program: Program) -> str:
    """The text of a Python module that defines `STAGE(inputs, sizes)`, and one function an edge program."""
    given = [s for s in program.spaces if s.kind != "reach"]
    sizes = sorted({str(s) for space in given for s in program.spaces.sizes[space.name].free_symbols})
    sums = [f"    {s.name} = {program.spaces.sizes[s.name]}" for s in program.spaces if s.kind == "concat"]
    reaches = [f"    {s.name} = {s.parents[0]}" for s in program.spaces if s.kind == "reach"]
    sums += reaches
    sections = [_HEAD]
    for node in program.graph.nodes:
        if node.target is edge_call:
            sections.append("\n".join(_edge_function(node.args[0], sizes, sums)) + "\n")
    names = [node.name for node in program.placeholders]
    lines = [f"def {_name(program.stage)}({', '.join([*names, *(['*', *sizes] if sizes else [])])}):"]
    for node, entry in zip(program.placeholders, program.inputs, strict=False):
        lines.append(f"    # {node.name}: {node.meta.get('type', '?')} = {entry}")
    lines += reaches
    for node in program.graph.nodes:
        if node.op == "call_function":
            lines.append(f"    {_statement(node, sizes)}")
    returned = [
        f"        {node.name},  # {output}" for node, output in zip(program.returned, program.outputs, strict=True)
    ]
    lines += ["    return (", *returned, "    )"]
    sections.append("\n".join(lines) + "\n")
    return "\n\n".join(sections)


def _statement(node: fx.Node, sizes: list[str]) -> str:
    types = node.meta.get("type", "?")
    shown = f"({', '.join(map(str, types))})" if isinstance(types, tuple) else str(types)
    where = node.meta.get("loc", "")
    return f"{node.name} = {_call(node, sizes)}  # {shown}{f'   {where}' if where else ''}"


def _call(node: fx.Node, sizes: list[str]) -> str:
    if node.target is edge_call:
        edges, values, columns = node.args
        given = [f"[{', '.join(v.name for v in values)}]", f"[{', '.join(c.name for c in columns)}]"]
        return f"{edges.name}({', '.join([*given, *(f'{s}={s}' for s in sizes)])})"
    # one process holds the whole graph: nothing to complete
    if node.target in (all_reduce, fetch, give_back, tuple_of):
        return _operand(node.args[0])
    args = [*map(_operand, node.args), *(f"{k}={_operand(v)}" for k, v in node.kwargs.items())]
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{op_name(target)}{'' if str(target) == op_name(target) else '.default'}({', '.join(args)})"
    return f"operator.{target.__name__}({', '.join(args)})"


def _edge_function(edges: EdgeProgram, sizes: list[str], sums: list[str]) -> list[str]:
    heading = f"def {edges.name}(values, columns{', *, ' + ', '.join(sizes) if sizes else ''}):"
    lines = [heading, f'    """One traversal of {edges.space}.{f"   {edges.loc}" if edges.loc else ""}"""', *sums]
    inner = [n for n in edges.body.nodes if n.op == "placeholder"]
    for node, operand in zip(inner, edges.operands, strict=True):
        rows = f"values[{operand.value}]"
        if operand.column is not None:
            rows += f".index_select({operand.axis}, columns[{operand.column}])"
        lines.append(f"    {node.name} = {rows}  # {node.meta['type']}")
    lines += [f"    {_statement(n, sizes)}" for n in edges.body.nodes if n.op == "call_function"]
    returned = next(n for n in reversed(edges.body.nodes) if n.op == "output").args[0]
    results = [_result(node, result) for node, result in zip(returned, edges.results, strict=True)]
    return [*lines, "    return (", *(f"        {r}," for r in results), "    )"]


def _result(node: fx.Node, result: Result) -> str:
    if result.kind != "reduce":
        return node.name
    dim = result.type.dims[result.axis or 0]
    size = _size(dim) if isinstance(dim, Rows) else str(dim)
    return f"sarc.reduce.default({node.name}, columns[{result.column}], {result.axis}, {size}, '{result.fold}')"


def _size(dim: Rows) -> str:
    factor = dim.before * dim.after
    return dim.space if factor == 1 else f"{factor}*{dim.space}"


def _operand(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_operand, value))}]"
    if isinstance(value, Size):
        return PythonPrinter().doprint(value.expr)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f"float('{value}')"
    return str(value) if isinstance(value, torch.dtype) else repr(value)


def _name(stage: str) -> str:
    return stage.replace(" ", "_").replace("-", "_")
