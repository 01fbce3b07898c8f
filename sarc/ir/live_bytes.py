"""Bytes of values alive while a body runs: what one row of a block costs in memory."""

from __future__ import annotations

import math
import operator

import torch
import torch.fx as fx

from sarc.ir.dialect import UNIFORM
from sarc.ir.space import Rows, ValueType

aten = torch.ops.aten

# Philox works on int64 words: the four words, their interleaving and a shifted copy, each 8 bytes a draw.
DRAW_BYTES = 24


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The values that nobody reads after a call, by that call; returned values are in no list."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for operand in node.all_input_nodes:
            last[operand] = node
    dying: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        if user.op == "call_function":
            dying.setdefault(user, []).append(node)
    return dying


def live_bytes_per_row(graph: fx.Graph) -> int:
    """Most bytes that values of one row take at any time, when each is freed after its last use.

    Operands and results count, whole (replicated) values do not; a view takes nothing and keeps what it looks at.
    """
    holder: dict[fx.Node, fx.Node] = {}
    views: dict[fx.Node, int] = {}
    dying = last_uses(graph)
    alive = most = 0
    for node in graph.nodes:
        if node.op == "output":
            break
        holder[node] = holder[node.args[0]] if _is_view(node) else node
        views[holder[node]] = views.get(holder[node], 0) + 1
        if holder[node] is node:
            alive += _row_bytes(node)
        extra = DRAW_BYTES * _row_entries(node) if node.target is UNIFORM else 0
        most = max(most, alive + extra)
        for dead in dying.get(node, []):
            views[holder[dead]] -= 1
            if not views[holder[dead]]:
                alive -= _row_bytes(holder[dead])
    return most


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    # A reshape of strided rows copies.
    if not isinstance(node.target, torch._ops.OpOverload) or node.target is aten.reshape.default:
        return False
    returns = node.target._schema.returns
    return len(returns) == 1 and returns[0].alias_info is not None and not returns[0].alias_info.is_write


def _types(node: fx.Node) -> tuple[ValueType, ...]:
    found = node.meta["type"]
    return found if isinstance(found, tuple) else (found,)


def _entries(type_: ValueType) -> int:
    """Entries of one row; 0 of a value without rows."""
    if type_.row_axis is None:
        return 0
    return math.prod(d.before * d.after if isinstance(d, Rows) else d for d in type_.dims)


def _row_entries(node: fx.Node) -> int:
    return sum(map(_entries, _types(node)))


def _row_bytes(node: fx.Node) -> int:
    return sum(t.dtype.itemsize * _entries(t) for t in _types(node))
