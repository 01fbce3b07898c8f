"""Lifetimes: bytes alive along an order of a program's calls, when each value is freed after its last use."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import torch
import torch.fx as fx

from sarc.ir.collective import give_back, tuple_of
from sarc.ir.dialect import MM_OVER, OWN_ROWS
from sarc.ir.space import Rows, ValueType

aten = torch.ops.aten

Storage = tuple[fx.Node, int]

_IN_ITS_OPERAND = (aten.reshape.default, OWN_ROWS, aten.addmm_.default, MM_OVER)


class Lifetimes:
    """The storages of a program's values.

    A view holds its operand's storage; a reshape counts as one, and so do the owned rows of a reach. Inputs that others
    hold take no bytes here, saved values and tangents do.

    Args:
        nodes: inputs and calls.
        held: inputs that others hold.
        returned: values that stay to the end.
        rows: of each space.
    """

    def __init__(
        self, nodes: Sequence[fx.Node], held: set[fx.Node], returned: Sequence[fx.Node], rows: Mapping[str, int]
    ):
        self.returned = set(returned)
        self.size: dict[Storage, int] = {}
        self.holds: dict[fx.Node, tuple[Storage, ...]] = {}
        for node in nodes:
            self.holds[node] = self._storages(node)
            types = node.meta["type"] if isinstance(node.meta["type"], tuple) else (node.meta["type"],)
            for owner, k in self.holds[node]:
                if owner is node:
                    self.size[owner, k] = 0 if node in held else _nbytes(types[k], rows)

    def _storages(self, node: fx.Node) -> tuple[Storage, ...]:
        if node.target is operator.getitem:
            source, types = self.holds[node.args[0]], node.args[0].meta["type"]
            return (source[node.args[1]],) if len(source) == len(types) else source
        if node.target in (tuple_of, give_back):  # folds come back in the memory of their tables
            return tuple(s for value in node.args[0] for s in self.holds[value])
        if node.op == "call_function" and (_is_view(node) or node.target in _IN_ITS_OPERAND):
            return self.holds[node.args[0]]
        types = node.meta["type"]
        return tuple((node, k) for k in range(len(types) if isinstance(types, tuple) else 1))

    def live(self, order: Sequence[fx.Node]) -> list[int]:
        """Bytes alive while each call of `order` runs."""
        last: dict[fx.Node, fx.Node] = {}
        for node in order:
            last[node] = node
            for operand in node.all_input_nodes:
                last[operand] = node
        dying: dict[fx.Node, list[fx.Node]] = {}
        for value, user in last.items():
            if value not in self.returned:
                dying.setdefault(user, []).append(value)
        holders: dict[Storage, int] = {}
        total = 0
        inputs = [n for n in last if n.op == "placeholder"]
        found = []

        def hold(node: fx.Node) -> int:
            gained = 0
            for storage in self.holds[node]:
                holders[storage] = holders.get(storage, 0) + 1
                if holders[storage] == 1:
                    gained += self.size[storage]
            return gained

        for node in inputs:
            total += hold(node)
        for node in order:
            total += hold(node)
            found.append(total)
            for value in dying.get(node, ()):
                for storage in self.holds[value]:
                    holders[storage] -= 1
                    if not holders[storage]:
                        total -= self.size[storage]
        return found


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return len(returns) == 1 and returns[0].alias_info is not None and not returns[0].alias_info.is_write


def _nbytes(type_: ValueType, rows: Mapping[str, int]) -> int:
    lengths = (rows[d.space] * d.before * d.after if isinstance(d, Rows) else d for d in type_.dims)
    return math.prod(lengths) * type_.dtype.itemsize
