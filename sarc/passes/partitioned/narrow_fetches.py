"""narrow-fetches: rows travel as the narrowest values from which what is read of them can be computed.

What a fetch brings is computed row by row from other values of its rows. Where those are narrower, they are fetched in
its stead, and it is computed for the rows of the reach: a gradient travels before it is spread over heads, an
attention score as the features it is a product of, when these travel anyway.

Before:
    program backward
    space N = nodes
    space E = edges on edges
    space R_src = reach(N, %src)
    edges @edges0 over E   # model.py:9
      %m: f32[E, 4, 8] = gather $0 by #0 axis 0   # model.py:8
      contract sum %m: f32[4, 8]
    %g: f32[N, 1, 8] = input tangent 0
    %src: i64[E] = input bound src
    %h: f32[N, 4, 8] = aten.expand(%g, [|N|, 4, 8])   # model.py:8
    %fetch: (f32[R_src, 4, 8]) = fetch([%h], %src)   # model.py:9
    %getitem: f32[R_src, 4, 8] = getitem(%fetch, 0)   # model.py:9
    %edge_call: (f32[4, 8]) = edge_call(@edges0, [%getitem], [%src])   # model.py:9
    %out: f32[4, 8] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
After:
    program backward
    space N = nodes
    space E = edges on edges
    space R_src = reach(N, %src)
    edges @edges0 over E   # model.py:9
      %m: f32[E, 4, 8] = gather $0 by #0 axis 0   # model.py:8
      contract sum %m: f32[4, 8]
    %g: f32[N, 1, 8] = input tangent 0
    %src: i64[E] = input bound src
    %fetch: (f32[R_src, 1, 8]) = fetch([%g], %src)   # model.py:9
    %getitem: f32[R_src, 1, 8] = getitem(%fetch, 0)   # model.py:9
    %expand_default: f32[R_src, 4, 8] = aten.expand(%getitem, [|R_src|, 4, 8])   # model.py:8
    %edge_call: (f32[4, 8]) = edge_call(@edges0, [%expand_default], [%src])   # model.py:9
    %out: f32[4, 8] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
Needs a partitioned program with fetches; gives one whose fetches bring no wider rows.
It does nothing to fetches of values that nothing narrower gives: the same object comes back when all are such.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import sympy
import torch
import torch.fx as fx

from sarc.ir.collective import fetch, with_space
from sarc.ir.edge_program import edge_call
from sarc.ir.frontier import Again, exact_values, find_frontier, tells_extremes
from sarc.ir.program import Program, map_sizes, remove_dead
from sarc.ir.space import Size, Space


@dataclass(frozen=True)
class Reached:
    """What is fetched through one column.

    Attributes:
        space: the reach.
        cut: values that travel, in place of those that do now.
    """

    space: Space
    cut: tuple[fx.Node, ...]


class NarrowFetches:
    """Rewrites a partitioned program's fetches.

    Args:
        products: whether matrix products may be computed again for the rows of others, where that sends fewer bytes.
        wire: dtype of wider floating-point numbers on the way.
        together: by name of an edge program, a number of those whose operands were planned together; values that
            others read are narrowed by themselves.
    """

    name = "narrow-fetches"

    def __init__(
        self, products: bool = False, wire: torch.dtype | None = None, together: Mapping[str, int] | None = None
    ):
        self.products, self.wire, self.together = products, wire, together or {}

    def run(self, program: Program) -> Program:
        narrowed = {}
        for column, fetches in _by_column(program).items():
            space = next(s for s in program.spaces if s.kind == "reach" and s.mask == column.name)
            extremes = exact_values(_extremes(fetches), space.parents[0])
            again = Again(space.parents[0], self.products, extremes)
            groups: dict[int | fx.Node, list[fx.Node]] = {}
            for value, readers in _read(fetches).items():
                key = next((self.together[name] for name in readers if name in self.together), value)
                groups.setdefault(key, []).append(value)
            cut = [v for wanted in groups.values() for v in find_frontier(wanted, again, self.wire).cut]
            if set(cut) != {v for wanted in groups.values() for v in wanted}:
                narrowed[column] = Reached(space, tuple(dict.fromkeys(cut)))
        return _Rewrite(program, narrowed).run() if narrowed else program


def _by_column(program: Program) -> dict[fx.Node, list[fx.Node]]:
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.target is fetch:
            found.setdefault(node.args[1], []).append(node)
    return found


def _read(fetches: Iterable[fx.Node]) -> dict[fx.Node, list[str]]:
    """Every fetched value, with the names of the edge programs that read it."""
    found: dict[fx.Node, list[str]] = {}
    for node in fetches:
        for k, value in enumerate(node.args[0]):
            readers = [r for got in node.users if got.args[1] == k for r in got.users if r.target is edge_call]
            found[value] = [r.args[0].name for r in readers]
    return found


def _extremes(fetches: Iterable[fx.Node]) -> list[fx.Node]:
    """The fetched values that programs read which tell extremes by equality."""
    found = []
    for node in fetches:
        for got in node.users:
            readers = [u.args[0] for u in got.users if u.target is edge_call]
            if any(map(tells_extremes, readers)):
                found.append(node.args[0][got.args[1]])
    return found


@dataclass
class _Rewrite:
    """One program being rewritten."""

    program: Program
    narrowed: dict[fx.Node, Reached]
    graph: fx.Graph = field(default_factory=fx.Graph)
    env: dict[fx.Node, fx.Node] = field(default_factory=dict)
    reached: dict[tuple[fx.Node, fx.Node], fx.Node] = field(default_factory=dict)

    def run(self) -> Program:
        for node in self.program.graph.nodes:
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self.env.__getitem__))
            elif node.target is fetch and node.args[1] in self.narrowed:
                self._fetch(node)
            elif node.target is operator.getitem and node.args[0].target is fetch and self._is_narrowed(node.args[0]):
                column = node.args[0].args[1]
                self.env[node] = self._compute(node.args[0].args[0][node.args[1]], column)
            else:
                self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
                self.env[node].meta = dict(node.meta)
        remove_dead(self.graph)
        return replace(self.program, graph=self.graph, spaces=self.program.spaces.copy())

    def _is_narrowed(self, node: fx.Node) -> bool:
        return node.args[1] in self.narrowed

    def _fetch(self, node: fx.Node) -> None:
        """What a fetch's values are computed from, unless an earlier fetch has brought it."""
        values, column = node.args
        reach = self.narrowed[column]
        missing = [v for v in self._needed(values, reach) if (v, column) not in self.reached]
        if not missing:
            return
        types = tuple(with_space(v.meta["type"], reach.space.parents[0], reach.space.name) for v in missing)
        call = self.graph.call_function(fetch, ([self.env[v] for v in missing], self.env[column]))
        call.meta = {**node.meta, "type": types}
        for k, value in enumerate(missing):
            got = self.graph.call_function(operator.getitem, (call, k))
            got.meta = {"type": types[k], "loc": node.meta.get("loc", "")}
            self.reached[value, column] = got

    def _needed(self, values: Iterable[fx.Node], reach: Reached) -> list[fx.Node]:
        """The values of the cut that `values` are computed from, in the program's order."""
        found, seen, stack = set(), set(), list(values)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in reach.cut:
                found.add(node)
            else:
                stack.extend(n for n in node.all_input_nodes if n.meta["type"].spaces)
        return [v for v in reach.cut if v in found]

    def _compute(self, value: fx.Node, column: fx.Node) -> fx.Node:
        """A value for the rows of a reach."""
        if (value, column) in self.reached:
            return self.reached[value, column]
        space = self.narrowed[column].space
        given = {n: self._compute(n, column) if n.meta["type"].spaces else self.env[n] for n in value.all_input_nodes}

        def sized(size: Size) -> Size:
            return Size(size.expr.subs(sympy.Symbol(space.parents[0]), sympy.Symbol(space.name)))

        args, kwargs = map_sizes(fx.map_arg((value.args, dict(value.kwargs)), given.__getitem__), sized)
        made = self.graph.create_node("call_function", value.target, args, kwargs)
        made.meta = {**value.meta, "type": with_space(value.meta["type"], space.parents[0], space.name)}
        self.reached[value, column] = made
        return made
