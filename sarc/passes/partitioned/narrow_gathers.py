"""narrow-gathers: an edge program gathers the narrowest values from which what it reads of a row can be computed.

The gradient of averaged heads is one row for all of them, divided by each head's sum: wide on the nodes, and narrow
where it comes from. What takes exact operations on rows is done for the edges instead: the wide table is never made,
and a fraction of its bytes is gathered. The same is done where a table is saved and no byte: what is gathered is there
anyway, scaled by a narrow value, which takes narrow products alone (`narrow_products.py`). A division by a narrow
value becomes a product with its inverse, made on the nodes: dividing takes a processor many times as long, and
there are more edges than nodes.

In edge programs that reach other parts it is done before the program is divided, for both ends of an edge: then the
narrow values are what travels, wherever the edges run, and what sites and messages are priced by.

Before:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:9
      %m: f32[E, 4, 8] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #0 axis 0 %m: f32[N, 4, 8]
    %g: f32[N, 1, 8] = input tangent 0
    %s: f32[N, 4, 1] = input saved s
    %src: i64[E] = input bound src
    %h: f32[N, 4, 8] = aten.mul.Tensor(%g, %s)   # model.py:8
    %edge_call: (f32[N, 4, 8]) = edge_call(@edges0, [%h], [%src])   # model.py:9
    %out: f32[N, 4, 8] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
After:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:9
      %g: f32[E, 1, 8] = gather $0 by #0 axis 0
      %s: f32[E, 4, 1] = gather $1 by #0 axis 0
      %h: f32[E, 4, 8] = aten.mul.Tensor(%g, %s)   # model.py:8
      reduce sum by #0 axis 0 %h: f32[N, 4, 8]
    %g: f32[N, 1, 8] = input tangent 0
    %s: f32[N, 4, 1] = input saved s
    %src: i64[E] = input bound src
    %edge_call: (f32[N, 4, 8]) = edge_call(@edges0, [%g, %s], [%src])   # model.py:9
    %out: f32[N, 4, 8] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
Needs whether an edge program has a kernel, and a partitioned program, or a fused one and the columns that reach other
parts; gives one whose edge programs gather fewer bytes. It does nothing where that saves neither half of what a column
gathers nor a table, through a column that fetches rows, and where the wider body has no kernel: the same object comes
back when no gather is narrowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import sympy
import torch
import torch.fx as fx

from sarc.ir.cluster import ROW_VIEWS, plain_space
from sarc.ir.collective import with_space
from sarc.ir.edge_program import EdgeProgram, Operand, edge_call
from sarc.ir.frontier import Again, Frontier, find_frontier, repeats_exactly, row_width, tells_extremes
from sarc.ir.program import Program, map_sizes, remove_dead
from sarc.ir.space import Size
from sarc.passes.base import Builder

aten = torch.ops.aten

# What is gathered instead is at most this share of the bytes.
_MOST = 0.5


class NarrowGathers:
    """Rewrites the edge programs of a program.

    Args:
        has_kernel: whether an edge program has a compiled form.
        remote: names of the column values that reach other parts, of a program that is not divided yet, whose edge
            programs that read or fold through these are rewritten; None: the program is a part's, and all are.
    """

    name = "narrow-gathers"

    def __init__(self, has_kernel: Callable[[EdgeProgram], bool], remote: frozenset[str] | None = None):
        self.has_kernel, self.remote = has_kernel, remote

    def run(self, program: Program) -> Program:
        own = program.copy()
        builder = Builder(own.graph, own.spaces)
        changed = False
        for call in [n for n in own.graph.nodes if n.target is edge_call]:
            for column in self._columns(call):
                frontier = find_narrower(call, column)
                if frontier is None and self.remote is None:
                    frontier = find_scaled_tables(call, column, own.returned)
                if frontier is None:
                    continue
                with own.graph.inserting_before(call):
                    body = _Body(builder, call, column, frontier)
                if self.has_kernel(body.edges):
                    call.args = (body.edges, body.values, call.args[2])
                    changed = True
        if not changed:
            return program
        remove_dead(own.graph)
        return own

    def _columns(self, call: fx.Node) -> list[int]:
        """The columns through which an edge program's gathers may be narrowed."""
        edges, _, columns = call.args
        if self.remote is not None and not any(c.name in self.remote for c in columns):
            return []
        return sorted(edges.columns_used("gather") - {edges.remote})


def find_narrower(call: fx.Node, column: int) -> Frontier | None:
    """What gives the values that an edge program gathers through a column, at half of their bytes a row, if any."""
    wanted = _gathered_rows(call, column)
    if wanted is None:
        return None
    space = plain_space(wanted[0].meta["type"])
    frontier = find_frontier(wanted, Again(space, False, frozenset()))
    before, after = (sum(map(_width, found)) for found in (wanted, frontier.cut))
    return frontier if after <= _MOST * before else None


def _gathered_rows(call: fx.Node, column: int) -> list[fx.Node] | None:
    """The values that an edge program gathers through a column, or None where it must gather these."""
    edges, values, _ = call.args
    gathered = [o for o in edges.operands if o.column == column]
    spaces = {plain_space(values[o.value].meta["type"]) for o in gathered}
    if len(spaces) != 1 or "" in spaces or any(o.axis != 0 for o in gathered) or tells_extremes(edges):
        return None
    return list(dict.fromkeys(values[o.value] for o in gathered))


def find_scaled_tables(call: fx.Node, column: int, returned: Sequence[fx.Node]) -> Frontier | None:
    """Tables that something else reads, and the values that scale them, in place of ones made for this edge program."""
    wanted = _gathered_rows(call, column)
    cut: dict[fx.Node, None] = {}
    for node in wanted or ():
        factors = _factors_of_table(node) if list(node.users) == [call] and node not in returned else None
        cut.update(dict.fromkeys(factors or (node,)))
    if set(cut) == set(wanted or ()):
        return None
    return Frontier(tuple(n for n in call.graph.nodes if n in cut), frozenset(cut))


def _factors_of_table(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """A table that is there anyway, and the value of a fraction of its width, whose product or quotient a value is."""
    space = plain_space(node.meta["type"])
    if node.target not in (aten.mul.Tensor, aten.div.Tensor) or not repeats_exactly(node, space):
        return None
    if not all(isinstance(n, fx.Node) and plain_space(n.meta["type"]) == space for n in node.args):
        return None
    wide, narrow = node.args if node.target is aten.div.Tensor else sorted(node.args, key=_width, reverse=True)
    while wide.target in ROW_VIEWS and repeats_exactly(wide, space):
        wide = wide.args[0]
    there = wide.op == "placeholder" or len(wide.users) > 1
    fits = there and _width(wide) == _width(node) and _width(narrow) <= _MOST * _width(node)
    return (wide, narrow) if fits else None


def _width(node: fx.Node) -> int:
    return row_width(node.meta["type"])


class _Body:
    """An edge program that gathers a frontier in place of what it gathered through a column.

    Attributes:
        edges, values: the program and what it is called with.
    """

    def __init__(self, builder: Builder, call: fx.Node, column: int, frontier: Frontier):
        old, values, _ = call.args
        self.builder = builder
        self.old, self.column, self.cut = old, column, frontier.cut
        self.values: list[fx.Node] = []
        self.operands: list[Operand] = []
        self.body = fx.Graph()
        self.made: dict[fx.Node, fx.Node] = {}
        inner = [n for n in old.body.nodes if n.op == "placeholder"]
        env: dict[fx.Node, fx.Node] = {}
        wanted = {values[o.value] for o in old.operands if o.column == column}
        needed = self._between(wanted)
        between = [n for n in call.graph.nodes if n in needed]
        divisors = {n: self._divisor(n) for n in between}
        for node, operand in zip(inner, old.operands, strict=True):
            if operand.column != column:
                env[node] = self._operand(node.name, values[operand.value], operand)
        inverted = {d: self._inverse(d) for d in dict.fromkeys(divisors.values()) if d is not None}
        for node in self.cut:
            divides = [n for n in between if node in n.all_input_nodes and divisors[n] is not node]
            if node not in inverted or divides or node in wanted:
                self.made[node] = self._gathered(node)
        inverses = {divisor: self._gathered(inverse) for divisor, inverse in inverted.items()}
        for value in [v for n in between for v in n.all_input_nodes]:
            if not value.meta["type"].spaces and value not in self.made:
                self.made[value] = self._operand(value.name, value, Operand(0, None, None, value.meta["type"]))
        for node in between:
            self._compute(node, inverses)
        for node, operand in zip(inner, old.operands, strict=True):
            if operand.column == column:
                env[node] = self.made[values[operand.value]]
        for node in old.body.nodes:
            if node.op == "call_function":
                env[node] = self.body.node_copy(node, env.__getitem__)
                env[node].meta = dict(node.meta)
        returned = next(n for n in reversed(old.body.nodes) if n.op == "output").args[0]
        self.body.output([env[n] for n in returned])
        self.edges = replace(old, operands=tuple(self.operands), body=self.body)

    def _between(self, wanted: set[fx.Node]) -> set[fx.Node]:
        """What is computed of the cut."""
        found: set[fx.Node] = set()
        stack = [n for n in wanted if n not in self.cut]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(n for n in node.all_input_nodes if n.meta["type"].spaces and n not in self.cut)
        return found

    def _operand(self, name: str, value: fx.Node, like: Operand) -> fx.Node:
        if value not in self.values:
            self.values.append(value)
        self.operands.append(replace(like, value=self.values.index(value)))
        made = self.body.placeholder(name)
        made.meta = {"type": like.type, "loc": value.meta.get("loc", "")}
        return made

    def _gathered(self, node: fx.Node) -> fx.Node:
        type_ = with_space(node.meta["type"], plain_space(node.meta["type"]), self.old.space)
        return self._operand(node.name, node, Operand(0, self.column, 0, type_))

    def _divisor(self, node: fx.Node) -> fx.Node | None:
        """What a division divides by, where that is gathered and narrower than the result."""
        if node.target is not aten.div.Tensor or node.kwargs or not isinstance(node.args[1], fx.Node):
            return None
        divisor = node.args[1]
        if divisor not in self.cut or not divisor.meta["type"].dtype.is_floating_point or divisor is node.args[0]:
            return None
        return divisor if row_width(divisor.meta["type"]) < row_width(node.meta["type"]) else None

    def _inverse(self, node: fx.Node) -> fx.Node:
        self.builder.loc = next((u.meta["loc"] for u in node.users if u.target is aten.div.Tensor), "")
        return self.builder.call(aten.reciprocal.default, node)

    def _compute(self, node: fx.Node, inverses: Mapping[fx.Node, fx.Node]) -> None:
        """A value of a row, for an edge."""
        space = plain_space(node.meta["type"])

        def sized(size: Size) -> Size:
            return Size(size.expr.subs(sympy.Symbol(space), sympy.Symbol(self.old.space)))

        divisor = self._divisor(node)
        if divisor in inverses:
            target, args, kwargs = aten.mul.Tensor, (self.made[node.args[0]], inverses[divisor]), {}
        else:
            given = fx.map_arg((node.args, dict(node.kwargs)), self.made.__getitem__)
            target, (args, kwargs) = node.target, map_sizes(given, sized)
        made = self.body.create_node("call_function", target, args, kwargs, name=node.name)
        made.meta = {**node.meta, "type": with_space(node.meta["type"], space, self.old.space)}
        made.meta.pop("again", None)
        self.made[node] = made
