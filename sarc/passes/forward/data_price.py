"""The price of what is kept of data: bytes against the budget, and work on halo rows against what is not sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy
import torch.fx as fx

from sarc.cost import call_cost
from sarc.ir.exchange import BYTES_PER_SECOND, FLOPS_PER_SECOND, ExchangeOptions
from sarc.ir.space import Rows, Spaces, ValueType
from sarc.passes.forward.compute_halos import Halo

# Beside the rows of the forward pass, those fetched again and those returned in the backward pass.
_TIMES_SENT = {False: 1, True: 3}
# Beside the work of the forward pass, that of the weights' gradients.
_TIMES_WORKED = {False: 1, True: 2}


@dataclass
class DataPrice:
    """Decides what is kept, from numbers that are the same on all parts.

    Attributes:
        options: the budget.
        objective: what is least: "time", "bytes" sent, or "memory".
        spaces: of the program.
        halos: most halo rows through each column.
        rows: most rows of each space on a part.
        trains: whether gradients are asked for.
    """

    options: ExchangeOptions
    objective: str
    spaces: Spaces
    halos: Mapping[str, int]
    rows: Mapping[str, int]
    trains: bool

    def __post_init__(self) -> None:
        self.left = self.options.halo_budget

    def halo(self, halo: Halo) -> bool:
        """Whether what is made of data shall be made on the halo as well, from data that are kept."""
        if self.objective == "memory":
            return False
        rows = self.halos[halo.column.name]
        held = (rows + self.rows[halo.parent]) * sum(row_bytes(n.meta["type"]) for n in halo.leaves)
        gathered = dict.fromkeys(g.args[0] for g in halo.gathers)
        sent = rows * sum(row_bytes(n.meta["type"]) for n in gathered) * _TIMES_SENT[self.trains]
        flops = sum((call_cost(n, self.spaces).flops for n in halo.cone), sympy.Integer(0))
        work = float(flops.subs({sympy.Symbol(halo.parent): rows})) * _TIMES_WORKED[self.trains]
        pays = self.objective == "bytes" or sent / BYTES_PER_SECOND > work / FLOPS_PER_SECOND
        return pays and self._take(held)

    def keep(self, node: fx.Node) -> bool:
        """Whether a value of data alone shall be kept."""
        type_ = node.meta["type"]
        if any(self.spaces_kind(s) == "reach" for s in type_.spaces):
            return True  # decided by `halo`
        if self.objective == "memory":
            return False
        rows = 1
        for space in type_.spaces:
            rows *= self.rows.get(space, 0)
        return self._take(rows * row_bytes(type_))

    def spaces_kind(self, name: str) -> str:
        """The kind of a space; reaches are not in the program that the price was made for."""
        return self.spaces[name].kind if name in self.spaces else "reach"

    def _take(self, nbytes: int) -> bool:
        """Take bytes of the budget, if they are left."""
        if nbytes > self.left:
            return False
        self.left -= nbytes
        return True


def row_bytes(type_: ValueType) -> int:
    """Bytes of one row."""
    size = type_.dtype.itemsize
    for dim in type_.dims:
        size *= dim.before * dim.after if isinstance(dim, Rows) else dim
    return size
