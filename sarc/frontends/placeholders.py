"""Placeholders of a captured program: the spaces that it starts from, names and types."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.fx as fx

from sarc.frontends.capture import Argument, Captured
from sarc.ir.program import Input
from sarc.ir.space import Rows, Space, Spaces, ValueType


def graph_spaces() -> Spaces:
    """The spaces every program starts from: nodes N and edges E of the one relation."""
    spaces = Spaces()
    spaces.add(Space("N", "nodes"))
    spaces.add(Space("E", "edges", on_edges=True))
    return spaces


def input_names(inputs: Sequence[Input]) -> list[str]:
    """Readable, valid and distinct names for placeholders."""
    names: list[str] = []
    for entry in inputs:
        stem = "".join(c if c.isalnum() else "_" for c in entry.name).strip("_") or "value"
        stem = f"rows_{stem}" if entry.kind == "rows" else stem if not stem[0].isdigit() else f"p_{stem}"
        name, k = stem, 1
        while name in names:
            k += 1
            name = f"{stem}_{k}"
        names.append(name)
    return names


def placeholder_types(graph: fx.Graph, captured: Captured, arguments: Sequence[Argument]) -> list[ValueType]:
    """The type of each placeholder of a captured graph, in order."""
    given = {a.path: a.type for a in arguments}
    types = []
    for node, entry in zip((n for n in graph.nodes if n.op == "placeholder"), captured.inputs, strict=False):
        if entry.kind == "arg":
            types.append(given[entry.name])
        elif entry.kind == "rows":
            types.append(ValueType((Rows(entry.name),), torch.uint8))
        else:
            value = node.meta["val"]
            types.append(ValueType(tuple(int(n) for n in value.shape), value.dtype))
    return types
