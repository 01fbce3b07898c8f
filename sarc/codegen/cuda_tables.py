"""Tables in CUDA kernels: how a lane reads operands from memory.

The features of a wide row lie over the lanes, which read neighbours at once; a narrow row of an edge is read at once by
the lane that has the edge, several tables' rows together where one column names them (`pack.py`).
"""

from __future__ import annotations

import math

import torch.fx as fx

from sarc.codegen.body import Body, width
from sarc.codegen.cuda_scope import Code
from sarc.codegen.divide import Scratch
from sarc.codegen.expression import stored_type
from sarc.codegen.pack import find_packs, places

LANE_BYTES = 16  # that a lane reads at once


class Tables(Code):
    """The operands of a kernel.

    Attributes:
        packs, packed: narrow tables side by side, and where an operand is among them.
        canonical: offset of the entry that a lane is at, as readers write it, where it goes over a row's features.
        vector: neighbouring features of a lane there.
        span: number of the features that are gone over.
    """

    def __init__(self, body: Body, scratch: Scratch):
        super().__init__()
        self.body, self.program, self.scratch = body, body.program, scratch
        self.packs = find_packs(body)
        self.packed = places(self.packs)
        self.canonical, self.vector, self.span = "", 1, 0

    def load(self, node: fx.Node, k: int, offset: str) -> str:
        """The entry of an operand at an offset among its features, as C++."""
        if not self.canonical and node not in self.body.in_row and not self.body.is_wide(node):
            table, first = self._few(node, k)
            return f"sarc_load({table}[{f'{first} + {offset}' if first else offset}])"
        pointer = self._pointer(node, k)
        if self.canonical and offset == self.canonical and self.span == width(node):
            strip = self.scope.around("strip")
            name = f"x{k}_strip"
            if name not in strip.names:
                strip.names[name] = name
                strip.lines.append(f"const auto {name} = sarc_read<{self.vector}>({pointer} + f0);")
            return f"sarc_load({name}.at[v])"
        return f"sarc_load({pointer}[{offset}])"

    def _few(self, node: fx.Node, k: int) -> tuple[str, int]:
        """A narrow operand's row of an edge, read at once by the lane that has the edge; its first feature there."""
        edge, size, first = self.scope.around("edge"), max(width(node), 1), 0
        table = f"x{k}"
        if k in self.packed:
            pack, first = self.packed[k]
            table, size = f"pack{pack}", self.packs[pack].width
        name = f"{table}_row"
        if name not in edge.names:
            edge.names[name] = name
            vector = math.gcd(size, LANE_BYTES // self.program.operands[k].type.dtype.itemsize)
            row = f"{table} + int64_t({self._row_of(k)}) * {size}"
            edge.lines.append(f"const auto {name} = sarc_read_few<{vector}, {size // vector}>({row});")
        return name, first

    def _pointer(self, node: fx.Node, k: int) -> str:
        """The row of an operand at hand."""
        operand, size = self.program.operands[k], width(node)
        if operand.axis is None:
            return f"x{k}"
        if node in self.body.in_row:
            return f"x{k}_at"  # made at the start of a row
        edge = self.scope.around("edge")
        name = f"x{k}_at"
        if name not in edge.names:
            edge.names[name] = name
            kind = stored_type(operand.type.dtype)
            edge.lines.append(f"const {kind}* __restrict__ {name} = x{k} + int64_t({self._row_of(k)}) * {size};")
        return name

    def _row_of(self, k: int) -> str:
        """The row of an operand's table that edge k of the traversal reads, as C++."""
        column = self.program.operands[k].column
        return f"c{column}[k]" if column is not None else self.scratch.row_of(k)
