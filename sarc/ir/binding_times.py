"""Binding times: what a value is known from: nothing, the graph, or the features and parameters of a step."""

from __future__ import annotations

import torch.fx as fx

from sarc.ir.dialect import GATHER, REDUCE, ROW_IDS, SEGMENT_IDS
from sarc.ir.program import Program

CONSTANT, STRUCTURE, STEP = range(3)


def binding_times(program: Program) -> dict[fx.Node, int]:
    """CONSTANT, STRUCTURE or STEP for every value."""
    times: dict[fx.Node, int] = {}
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        whole_numbers = not node.meta["type"].dtype.is_floating_point
        structural = entry.kind in ("constant", "rows") or (entry.kind == "arg" and whole_numbers)
        times[node] = STRUCTURE if structural else STEP
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        times[node] = max((times[n] for n in node.all_input_nodes), default=CONSTANT)
        if node.target in (ROW_IDS, SEGMENT_IDS):
            times[node] = max(times[node], STRUCTURE)
        if node.target in (GATHER, REDUCE):
            # A column is bound even when it is constant: its map is made from its values.
            times[node.args[1]] = max(times[node.args[1]], STRUCTURE)
    return times
