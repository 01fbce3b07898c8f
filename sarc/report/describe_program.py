"""A program as plain data: what `sarc dump --format json` prints and what the report's graphs are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from sarc.cost import nbytes
from sarc.ir.call import op_name
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.print import format_edge_program, format_operand
from sarc.ir.program import Program
from sarc.ir.space import Spaces, ValueType


@dataclass(frozen=True)
class Value:
    """One value of a program.

    Attributes:
        name: without its %.
        op: "aten.mm", "edge_call", or "input param w" for a placeholder.
        operands: names of the values it reads, once each.
        call: its operands as printed.
        types: one for each tensor.
        spaces: the spaces whose rows it holds.
        nbytes: formula in the sizes of the spaces, "" when it has no type.
        loc: the user's "file:line" or "".
        result: "result 0", "grad param w", ..., or "".
    """

    name: str
    op: str
    operands: tuple[str, ...]
    call: str
    types: tuple[str, ...]
    spaces: tuple[str, ...]
    nbytes: str
    loc: str
    result: str = ""


def describe_values(program: Program) -> list[Value]:
    """Every value, in order."""
    entries = dict(zip(program.placeholders, program.inputs, strict=False))
    fates: dict[fx.Node, list[str]] = {}
    for node, output in zip(program.returned, program.outputs, strict=True):
        fates.setdefault(node, []).append(str(output))
    made = []
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        types = _types(node)
        call = ", ".join(
            [*map(format_operand, node.args), *(f"{k}={format_operand(v)}" for k, v in node.kwargs.items())]
        )
        made.append(
            Value(
                node.name,
                f"input {entries[node]}"
                if node in entries
                else op_name(node.target)
                if node.args or node.kwargs
                else node.op,
                tuple(n.name for n in node.all_input_nodes),
                call,
                tuple(map(str, types)),
                tuple(dict.fromkeys(s for t in types for s in t.spaces)),
                bytes_formula(types, program.spaces),
                node.meta.get("loc", ""),
                ", ".join(fates.get(node, [])),
            )
        )
    return made


def _types(node: fx.Node) -> tuple[ValueType, ...]:
    found = node.meta.get("type", ())
    return found if isinstance(found, tuple) else (found,)


def bytes_formula(types: tuple[ValueType, ...], spaces: Spaces) -> str:
    """Bytes of a value as a formula in the sizes of the spaces."""
    return str(sum(nbytes(t, spaces) for t in types)) if types else ""


def program_json(program: Program) -> dict[str, Any]:
    """The program as one JSON document."""
    values = [
        {
            "name": v.name, "op": v.op, "operands": v.call, "reads": list(v.operands), "type": list(v.types),
            "bytes": v.nbytes, "line": v.loc, **({"result": v.result} if v.result else {}),
        }
        for v in describe_values(program)
    ]  # fmt: skip
    return {
        "stage": program.stage,
        "spaces": [{"name": s.name, "is": str(s).split(" = ", 1)[1], "on_edges": s.on_edges} for s in program.spaces],
        "edge_programs": [edge_program_json(n.args[0]) for n in program.graph.nodes if n.target is edge_call],
        "values": values,
    }


def edge_program_json(edges: EdgeProgram) -> dict[str, Any]:
    """An edge program as JSON: what it visits, and its text."""
    return {
        "name": edges.name,
        "over": edges.space,
        "remote_column": edges.remote,
        "line": edges.loc,
        "text": "\n".join(format_edge_program(edges)),
    }
