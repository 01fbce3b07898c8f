"""Which values may hold infinities or NaN on rows that a fold left empty.

A pass that computes on all rows what a program computes on the rows that edges read must not meet such a row: its
gradient is zero there, and zero times infinity is NaN.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from sarc.ir.binding_times import STEP, binding_times
from sarc.ir.dialect import REDUCE
from sarc.ir.empty_rows import value_on_empty
from sarc.ir.program import Program
from sarc.ir.space import Size, Spaces

aten = torch.ops.aten


def infinite_on_empty(program: Program) -> set[fx.Node]:
    """The values that may be infinite or NaN on a row which some fold left empty.

    They are maxima and minima of nothing, quotients by a sum of nothing, means over edges, of which there may be none,
    and what is computed from these, but for a `where` that chooses by structure.
    """
    times = binding_times(program)
    columns = list(dict.fromkeys(n.args[1] for n in program.graph.nodes if n.target is REDUCE))
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.target is aten.where.self and times[node.args[0]] != STEP:
            infinite = all(n in found for n in node.args[1:])
        else:
            infinite = any(n in found for n in node.all_input_nodes) or _becomes_infinite(node, columns, program.spaces)
        if infinite:
            found.add(node)
    return found


def _becomes_infinite(node: fx.Node, columns: list[fx.Node], spaces: Spaces) -> bool:
    if node.target is aten.div.Tensor and isinstance(node.args[1], Size):
        return any(spaces[str(symbol)].on_edges for symbol in node.args[1].expr.free_symbols)
    for column in columns:
        value = value_on_empty(node, column)
        if value is not None and not value.isfinite():
            return True
        if node.target is aten.div.Tensor and isinstance(node.args[1], fx.Node):
            divisor = value_on_empty(node.args[1], column)
            if divisor is not None and divisor == 0:
                return True
    return False
