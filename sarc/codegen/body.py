"""Body: the values of an edge program's body as one kernel computes them: once a row, or edge by edge, and in which
order.

A kernel visits the edges of a row in blocks. Narrow edge values (few features, such as one a head) are computed for the
whole block in loops over its edges; wide ones edge by edge in loops over features. Where the two alternate (a dot
product of wide rows gives a narrow score that weighs wide rows) the block is swept once a *phase*: even phases are
narrow, odd ones wide. Where an edge value needs a finished fold of its own row (an exponential shifted by the row's
maximum) the row is swept once a *pass*.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
import torch.fx as fx

from sarc.codegen.expression import EXACT
from sarc.codegen.views import NoKernel
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram, fold_to_rows, take_rows
from sarc.ir.space import Rows, ValueType

aten = torch.ops.aten

NARROW = 8


def features(dims: tuple) -> list[int]:
    return [d for d in dims if not isinstance(d, Rows)]


def width(node: fx.Node) -> int:
    """Entries of one row of a value."""
    return math.prod(features(node.meta["type"].dims))


class Body:
    """What each value of a body is for the kernel that makes `results` in the order of one column.

    Attributes:
        nodes: the calls and operands that the results need, in order.
        roots: for each result, the value that is folded or stored.
        uses: how often each value is read.
        in_row: values that depend on the row alone (or on nothing): computed once a row.
        passes: for each value, the sweep of the row in which it is known.
        phases: for each edge value, the phase in which it is computed (narrow), or after which it can be (wide).
    """

    def __init__(self, program: EdgeProgram, order: int | None, results: tuple[int, ...]):
        self.program, self.order, self.results = program, order, results
        everything = list(program.body.nodes)
        returned = next(n for n in reversed(everything) if n.op == "output").args[0]
        self.placeholders = [n for n in everything if n.op == "placeholder"]
        self.roots = {k: self._root(k, returned[k]) for k in results}
        needed = self._needed()
        self.nodes = [n for n in everything if n in needed]
        self.uses = Counter([o for n in self.nodes for o in n.all_input_nodes] + list(self.roots.values()))
        self.in_row: set[fx.Node] = set()
        self.passes: dict[fx.Node, int] = {}
        self.phases: dict[fx.Node, int] = {}
        for node in self.nodes:
            self._place(node)

    def _root(self, k: int, node: fx.Node) -> fx.Node:
        """The value to fold: a contraction's operand; views that only regroup features are looked through."""
        if self.program.results[k].kind == "contract":
            if node.target is not aten.sum.dim_IntList:
                raise NoKernel(f"contraction by {node.target}")
            dims = node.args[0].meta["type"].dims
            if [a % len(dims) for a in node.args[1]] != [_row_axis(dims)]:
                raise NoKernel("contraction of rows and features")
            node = node.args[0]
        while node.target in _REGROUPS and {_row_axis(n.meta["type"].dims) for n in (node, node.args[0])} == {0}:
            node = node.args[0]
        return node

    def _needed(self) -> set[fx.Node]:
        stack = list(self.roots.values())
        found: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return found

    # --- one value

    def _place(self, node: fx.Node) -> None:
        type_ = node.meta["type"]
        if not isinstance(type_, ValueType):
            raise NoKernel("a body value of several tensors")
        _row_axis(type_.dims)
        operands = node.all_input_nodes
        if node.op == "placeholder":
            operand = self.program.operands[self.placeholders.index(node)]
            of_edge = operand.axis is not None and self.program.space in type_.spaces
            self.passes[node] = self.phases[node] = 0
            if not of_edge or (operand.column is not None and operand.column == self.order):
                self.in_row.add(node)
            return
        self.passes[node] = max((self.passes[n] for n in operands), default=0)
        if node.target is fold_to_rows:
            self.passes[node] += 1
        draws = node.target is UNIFORM and self.program.space in type_.spaces
        if draws:
            self.phases[node] = 1 if self.is_wide(node) else 0
            return
        if node.target in (fold_to_rows, take_rows) or all(n in self.in_row for n in operands):
            self.in_row.add(node)
            self.phases[node] = 0
            return
        ready = max(self.available(n) for n in operands if n not in self.in_row)
        if self.sinks(node):
            self.phases[node] = ready | 1
        else:
            self.phases[node] = ready if self.is_wide(node) else ready + ready % 2

    def available(self, node: fx.Node) -> int:
        """First phase in which an edge value can be read."""
        return self.phases[node] + 1 if self.sinks(node) else self.phases[node]

    def is_wide(self, node: fx.Node) -> bool:
        return node not in self.in_row and width(node) > NARROW

    def in_block(self, node: fx.Node) -> bool:
        """Whether the value is computed for a whole block, in loops over its edges."""
        return node not in self.in_row and not self.is_wide(node) and not self.sinks(node)

    def sinks(self, node: fx.Node) -> bool:
        """Whether the value is a narrow one made in a wide phase: a fold over features of a wide one, or a part."""
        if node in self.in_row or self.is_wide(node):
            return False
        return any(self.is_wide(n) for n in node.all_input_nodes)

    def fold_phase(self, root: fx.Node) -> int:
        """The phase in which an edge value is folded or stored."""
        if root in self.in_row:
            return 0
        ready = self.available(root)
        return ready | 1 if self.is_wide(root) else ready + ready % 2

    def is_exact(self, node: fx.Node) -> bool:
        """Whether every kernel that computes the value finds the same bits."""
        if node.op == "placeholder":
            return True
        packet = getattr(node.target, "overloadpacket", node.target)
        return packet.__name__ in EXACT and all(self.is_exact(n) for n in node.all_input_nodes)

    def compares(self) -> bool:
        """Whether a kernel must compute to the bit: it folds extremes of computed values, or looks for where they are.

        The derivative of a maximum is spread over the values that equal it, and these are computed again. And float32
        inside float64, and what is made of draws (float32 whatever the model's dtype), must round as it does in torch.

        Raises:
            NoKernel: values are compared that rounding decides.
        """
        found, wide = False, any(n.meta["type"].dtype == torch.float64 for n in self.nodes)
        for node in self.nodes:
            name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
            if name in ("eq", "ne"):
                for operand in node.all_input_nodes:
                    if operand.op != "placeholder" and operand.meta["type"].dtype.is_floating_point:
                        if not self.is_exact(operand):
                            raise NoKernel("equality of numbers that rounding decides")
                        found |= _may_contract(operand)
            if node.op == "call_function" and node.meta["type"].dtype == torch.float32 and (wide or self._draws(node)):
                if not self.is_exact(node):
                    raise NoKernel("float32 numbers of draws, or inside float64, that rounding decides")
                found |= wide
            found |= node.target is fold_to_rows and node.args[3] != "sum" and _may_contract(node.args[0])
        extremes = [k for k in self.results if self.program.results[k].fold in ("amax", "amin")]
        return found or any(_may_contract(self.roots[k]) for k in extremes)

    def _draws(self, node: fx.Node) -> bool:
        """Whether a value is made of random draws alone."""
        if node.target is UNIFORM:
            return True
        operands = node.all_input_nodes
        return node.op == "call_function" and bool(operands) and all(self._draws(n) for n in operands)

    def readers(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in self.nodes if node in n.all_input_nodes]


def _may_contract(node: fx.Node) -> bool:
    """Whether a compiler may fuse a product and a sum of a value's expression, and so round once instead of twice."""
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    operands = node.all_input_nodes
    if name in ("add", "sub", "rsub") and any(n.op == "call_function" for n in operands):
        return True
    return any(_may_contract(n) for n in operands)


_REGROUPS = {aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dims}


def _row_axis(dims: tuple) -> int | None:
    for axis, dim in enumerate(dims):
        if isinstance(dim, Rows):
            if not dim.plain:
                raise NoKernel(f"flattened rows {dim}")
            return axis
    return None
