"""Printer: a program as text that `parse_program` reads back.

    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:9
      %message: f32[E, 8] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #1 axis 0 %message: f32[N, 8]
    %x: f32[N, 12] = input arg x
    %mm: f32[N, 8] = aten.mm(%x, %w)   # model.py:7
    %edge_call: (f32[N, 8]) = edge_call(@edges0, [%mm], [%src, %dst])   # model.py:9
    %getitem: f32[N, 8] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %getitem

`|N + E|` is a size, `$0` and `#0` are the call's first value and first column. An `aligned input` is a column that
names the rows its own rows were selected from.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from sarc.ir.call import op_name
from sarc.ir.edge_program import EdgeProgram, Operand, Result, edge_call
from sarc.ir.program import Program
from sarc.ir.space import DTYPE_NAMES


def format_program(program: Program) -> str:
    """The text of a program: its spaces, edge programs, values and results, in order."""
    lines = [f"program {program.stage}"]
    for space in program.spaces:
        lines.append(f"space {space}{' on edges' if space.on_edges else ''}")
    for node in program.graph.nodes:
        if node.target is edge_call:
            lines += format_edge_program(node.args[0])
    inputs = iter(program.inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            aligned = "aligned " if node.meta.get("aligned") else ""
            lines.append(_line(node, f"{aligned}input {next(inputs)}"))
        elif node.op == "call_function":
            lines.append(format_node(node))
    for node, output in zip(program.returned, program.outputs, strict=True):
        lines.append(f"return {output} = %{node.name}")
    return "\n".join(lines) + "\n"


def format_node(node: fx.Node) -> str:
    """One value as a line: `%name: type = op(operands)   # file:line`."""
    if node.op == "placeholder":
        return _line(node, "input")
    operands = [format_operand(a) for a in node.args]
    operands += [f"{key}={format_operand(value)}" for key, value in node.kwargs.items()]
    return _line(node, f"{op_name(node.target)}({', '.join(operands)})")


def _line(node: fx.Node, what: str) -> str:
    types = node.meta.get("type", "?")
    shown = f"({', '.join(map(str, types))})" if isinstance(types, tuple) else str(types)
    return f"%{node.name}: {shown} = {what}{_at(node)}"


def _at(node: fx.Node) -> str:
    """The user's line, and why the value is made again in the backward pass."""
    return _comment("; ".join(filter(None, (node.meta.get("loc", ""), node.meta.get("again", "")))))


def _comment(text: str) -> str:
    return f"   # {text}" if text else ""


def format_edge_program(program: EdgeProgram) -> list[str]:
    """An edge program as an indented block."""
    remote = f" remote #{program.remote}" if program.remote is not None else ""
    lines = [f"edges @{program.name} over {program.space}{remote}{_comment(program.loc)}"]
    inner = [n for n in program.body.nodes if n.op == "placeholder"]
    lines += ["  " + _line(n, _source(operand)) for n, operand in zip(inner, program.operands, strict=True)]
    lines += ["  " + format_node(n) for n in program.body.nodes if n.op == "call_function"]
    returned = next(n for n in reversed(program.body.nodes) if n.op == "output").args[0]
    for node, result in zip(returned, program.results, strict=True):
        lines.append(f"  {_fate(result)} %{node.name}: {result.type}")
    return lines


def _source(operand: Operand) -> str:
    """Where a body's operand comes from."""
    if operand.column is not None:
        return f"gather ${operand.value} by #{operand.column} axis {operand.axis}"
    if operand.axis is not None:
        return f"rows ${operand.value} axis {operand.axis}"
    return f"whole ${operand.value}"


def _fate(result: Result) -> str:
    """What becomes of a body's result."""
    over = "" if result.over is None else f" over ${result.over}"
    if result.kind == "reduce":
        return f"reduce {result.fold} by #{result.column} axis {result.axis}{over}"
    if result.kind == "contract":
        return f"contract {result.fold}"
    if result.kind == "rows":
        return f"rows by #{result.column} axis {result.axis}"
    return f"store axis {result.axis}{over}"


def format_operand(value: Any) -> str:
    """An operand: %value, |size|, @edges, or a literal."""
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(format_operand(v) for v in value)}]"
    if isinstance(value, torch.dtype):
        return DTYPE_NAMES[value]
    return repr(value)
