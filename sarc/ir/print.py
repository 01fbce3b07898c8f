"""Printer: a program as text that `parse` reads back.

    program forward
    space N = nodes
    space E = edges on edges
    %x: f32[N, 12] = input arg x
    %mm: f32[N, 8] = aten.mm(%x, %t)   # model.py:12
    return result 0 = %mm
"""

from __future__ import annotations

import torch
import torch.fx as fx

from sarc.ir.call import op_name
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.program import Program
from sarc.ir.space import DTYPE_NAMES, Size, ValueType


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
            aligned = " aligned" if node.meta.get("aligned") else ""
            lines.append(f"%{node.name}: {node.meta['type']} = input {next(inputs)}{aligned}")
        elif node.op == "call_function":
            lines.append(format_node(node))
    for node, output in zip(program.returned, program.outputs, strict=True):
        lines.append(f"return {output} = %{node.name}")
    return "\n".join(lines) + "\n"


def format_node(node: fx.Node) -> str:
    """One value as a line: `%name: type = op(operands)   # file:line`."""
    types = node.meta.get("type", "?")
    shown = f"({', '.join(map(str, types))})" if isinstance(types, tuple) else str(types)
    if node.op == "placeholder":
        return f"%{node.name}: {shown} = input"
    operands = [format_operand(a) for a in node.args]
    operands += [f"{key}={format_operand(value)}" for key, value in node.kwargs.items()]
    loc = f"   # {node.meta['loc']}" if node.meta.get("loc") else ""
    return f"%{node.name}: {shown} = {op_name(node.target)}({', '.join(operands)}){loc}"


def format_edge_program(program: EdgeProgram) -> list[str]:
    """An edge program as an indented block."""
    remote = f" remote #{program.remote}" if program.remote is not None else ""
    loc = f"   # {program.loc}" if program.loc else ""
    lines = [f"edges @{program.name} over {program.space}{remote}{loc}"]
    inner = [n for n in program.body.nodes if n.op == "placeholder"]
    for node, operand in zip(inner, program.operands, strict=True):
        if operand.column is not None:
            source = f"gather ${operand.value} by #{operand.column} axis {operand.axis}"
        elif operand.axis is not None:
            source = f"rows ${operand.value} axis {operand.axis}"
        else:
            source = f"whole ${operand.value}"
        lines.append(f"  %{node.name}: {operand.type} = {source}")
    lines += ["  " + format_node(n) for n in program.body.nodes if n.op == "call_function"]
    returned = next(n for n in reversed(program.body.nodes) if n.op == "output").args[0]
    for node, result in zip(returned, program.results, strict=True):
        if result.kind == "reduce":
            how = f"reduce {result.fold} by #{result.column} axis {result.axis}"
        elif result.kind == "contract":
            how = f"contract {result.fold}"
        else:
            how = f"store axis {result.axis}"
        lines.append(f"  {how} %{node.name}: {result.type}")
    return lines


def format_operand(value) -> str:
    """An operand: %value, |size|, @edges, or a literal."""
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(format_operand(v) for v in value)}]"
    if isinstance(value, torch.dtype):
        return DTYPE_NAMES[value]
    if isinstance(value, (Size, EdgeProgram)):
        return str(value)
    if isinstance(value, ValueType):
        return str(value)
    return repr(value)
