"""repeat-rows: what is cheap to make of rows that stay is made twice instead of kept through an edge program.

A value read before an edge program (an activation, by the product whose rows are gathered) and behind it (by the same
product's derivative) is there at the edge program's peak. Where it takes exact operations on rows alone, and what it is
made of is there behind the edge program anyway, the readers behind it read a second copy, made right before them.

Before:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E
      %m: f32[E, 4] = gather $0 by #0 axis 0
      reduce sum by #0 axis 0 %m: f32[N, 4]
    %x: f32[N, 4] = input arg x
    %src: i64[E] = input bound src
    %h: f32[N, 4] = aten.relu(%x)   # model.py:8
    %edge_call: (f32[N, 4]) = edge_call(@edges0, [%h], [%src])
    %g: f32[N, 4] = getitem(%edge_call, 0)
    %a: f32[N, 4] = aten.mul.Tensor(%g, %h)   # model.py:8
    return result 0 = %a
After:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E
      %m: f32[E, 4] = gather $0 by #0 axis 0
      reduce sum by #0 axis 0 %m: f32[N, 4]
    %x: f32[N, 4] = input arg x
    %src: i64[E] = input bound src
    %h: f32[N, 4] = aten.relu(%x)   # model.py:8
    %edge_call: (f32[N, 4]) = edge_call(@edges0, [%h], [%src])
    %g: f32[N, 4] = getitem(%edge_call, 0)
    %relu_default: f32[N, 4] = aten.relu(%x)   # model.py:8; again behind @edges0: 16 B a row of N less there
    %a: f32[N, 4] = aten.mul.Tensor(%g, %relu_default)   # model.py:8
    return result 0 = %a
Needs a partitioned program; gives one that computes the same bits.
It does nothing where no value is read on both sides of an edge program, or its operands go before: the same object
comes back.
"""

from __future__ import annotations

import torch.fx as fx

from sarc.ir.cluster import ROW_VIEWS, plain_space
from sarc.ir.edge_program import edge_call
from sarc.ir.frontier import repeats_exactly, row_width
from sarc.ir.program import Program

# Inputs that are there to the end of a program.
_HELD = ("param", "buffer", "arg", "bound", "constant", "rows", "rng", "data")


class RepeatRows:
    """Makes cheap values again behind edge programs."""

    name = "repeat-rows"

    def run(self, program: Program) -> Program:
        own = program.copy()
        calls = [n for n in own.graph.nodes if n.target is edge_call]
        changed = [_Behind(own, call).repeat() for call in calls]
        return own if any(changed) else program


class _Behind:
    """The readers behind one edge call."""

    def __init__(self, program: Program, call: fx.Node):
        self.program, self.call = program, call
        self.returned = set(program.returned)
        entries = zip(program.placeholders, program.inputs, strict=True)
        self.held = {n for n, e in entries if e.kind in _HELD} | self.returned
        self.before = _closure(call, lambda n: n.all_input_nodes)
        self.late = self._late()
        self.copies: dict[fx.Node, fx.Node] = {}

    def _late(self) -> set[fx.Node]:
        """What depends on the call, and what only such values read."""
        late = _closure(self.call, lambda n: [u for u in n.users if u.op == "call_function"]) - {self.call}
        for node in reversed(list(self.program.graph.nodes)):
            readers = list(node.users)
            if node.op == "call_function" and node not in self.before and node is not self.call and readers:
                if all(u in late for u in readers):
                    late.add(node)
        return late

    def repeat(self) -> bool:
        """Let late readers of early values read copies; returns whether there are any."""
        changed = False
        for node in list(self.program.graph.nodes):
            if node not in self.before or node in self.returned or not self._repeats(node):
                continue
            if node.target in ROW_VIEWS or not self._can_make(node):
                continue
            readers = [u for u in self.program.graph.nodes if u in node.users and u in self.late]
            if readers:
                copy = self._copy(node, readers[0])
                for reader in readers:
                    reader.replace_input_with(node, copy)
                changed = True
        return changed

    def _repeats(self, node: fx.Node) -> bool:
        space = plain_space(node.meta["type"])
        return node.op == "call_function" and bool(space) and repeats_exactly(node, space)

    def _stays(self, node: fx.Node) -> bool:
        """Whether a value is there behind the call anyway."""
        return not node.meta["type"].spaces or node in self.held or any(u in self.late for u in node.users)

    def _can_make(self, node: fx.Node) -> bool:
        return all(
            self._stays(n) or (n in self.before and self._repeats(n) and self._can_make(n))
            for n in node.all_input_nodes
        )

    def _copy(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """`node` again, and what it is made of and does not stay, before `reader`."""
        graph = self.program.graph
        given = {n: n if self._stays(n) else self._copy(n, reader) for n in node.all_input_nodes}
        with graph.inserting_before(reader):
            made = graph.create_node(
                "call_function", node.target, fx.map_arg(node.args, given.__getitem__),
                fx.map_arg(node.kwargs, given.__getitem__),
            )  # fmt: skip
        space, row = plain_space(node.meta["type"]), row_width(node.meta["type"])
        made.meta = dict(node.meta)
        made.meta["again"] = f"again behind @{self.call.args[0].name}: {row} B a row of {space} less there"
        self.late.add(made)
        return made


def _closure(start: fx.Node, neighbours) -> set[fx.Node]:
    found = {start}
    stack = [start]
    while stack:
        for node in neighbours(stack.pop()):
            if node not in found:
                found.add(node)
                stack.append(node)
    return found
