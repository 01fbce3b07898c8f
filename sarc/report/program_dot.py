"""A program as a Graphviz graph: `sarc dump --format dot | dot -Tsvg`."""

from __future__ import annotations

from sarc.ir.program import Program
from sarc.report.describe_program import Value, describe_values

# Fill by what the rows are: nodes of the graph, edges, or a replicated value.
_COLOURS = {"nodes": "#cfe3f5", "edges": "#f7d9b9", "": "#ececec"}


def program_dot(program: Program) -> str:
    """The text of the graph; hovering over a node of the SVG shows its bytes and the user's line."""
    lines = [
        f'digraph "{program.stage}" {{',
        "  rankdir=TB;",
        '  node [shape=box, style=filled, fontname="monospace"];',
    ]
    for value in describe_values(program):
        label = _quoted(f"%{value.name}\n{value.op}\n{', '.join(value.types)}")
        tip = _quoted(f"{value.nbytes} B   {value.loc}".strip())
        colour = _COLOURS[row_kind(program, value)]
        shape = ", peripheries=2" if value.result else ""
        lines.append(f'  "{value.name}" [label={label}, tooltip={tip}, fillcolor="{colour}"{shape}];')
        lines += [f'  "{operand}" -> "{value.name}";' for operand in value.operands]
    return "\n".join([*lines, "}"]) + "\n"


def row_kind(program: Program, value: Value) -> str:
    """ "edges" or "nodes" by the rows a value holds; "" for a replicated one."""
    if not value.spaces:
        return ""
    return "edges" if any(program.spaces[s].on_edges for s in value.spaces) else "nodes"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
