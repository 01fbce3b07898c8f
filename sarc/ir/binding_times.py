"""Binding times: what a value is known from: nothing, the graph, data, or the parameters of a step."""

from __future__ import annotations

import torch.fx as fx

from sarc.ir.collective import fetch
from sarc.ir.dialect import GATHER, REDUCE, ROW_IDS, SEGMENT_IDS
from sarc.ir.program import Input, Program

CONSTANT, STRUCTURE, DATA, STEP = range(4)


def binding_times(program: Program, wrt: frozenset[Input] | None = None) -> dict[fx.Node, int]:
    """CONSTANT, STRUCTURE, DATA or STEP for every value.

    Args:
        wrt: inputs that need gradients; the other arguments are data. None: it is not known, every argument may.
    """
    times: dict[fx.Node, int] = {}
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        times[node] = _of_input(entry, node.meta["type"].dtype.is_floating_point, wrt)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        times[node] = max((times[n] for n in node.all_input_nodes), default=CONSTANT)
        if node.target in (ROW_IDS, SEGMENT_IDS):
            times[node] = max(times[node], STRUCTURE)
        if node.target is fetch:
            # Rows of others, even of a bound value, are fetched where halos are: once for the data.
            times[node] = max(times[node], DATA)
        if node.target in (GATHER, REDUCE):
            # A column is bound even when it is constant: its map is made from its values.
            times[node.args[1]] = max(times[node.args[1]], STRUCTURE)
    return times


def _of_input(entry: Input, is_float: bool, wrt: frozenset[Input] | None) -> int:
    if entry.kind in ("constant", "rows", "bound") or (entry.kind == "arg" and not is_float):
        return STRUCTURE
    if entry.kind == "data" or (entry.kind == "arg" and wrt is not None and entry not in wrt):
        return DATA
    return STEP
