"""exchange-whole: where it pays, rows of all peers are exchanged at once, and an edge program is local again.

A value read through a column that reaches other parts is fetched whole: its own rows, followed by the halo's, are rows
of a *reach* of that column, and the edge program gathers from those. Folds to the column's rows are folds to the reach,
whose halo's share is given back to the owners. Values that are ready when the first of them is needed travel in one
message: what several traversals read is fetched once.

Before:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E remote #0   # model.py:9
      %m: f32[E] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #1 axis 0 %m: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N]) = edge_call(@edges0, [%z], [%src, %dst])   # model.py:9
    %out: f32[N] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
After:
    program forward
    space N = nodes
    space E = edges on edges
    space R_src = reach(N, %src)
    edges @edges0 over E   # model.py:9
      %m: f32[E] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #1 axis 0 %m: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %fetch: (f32[R_src]) = fetch([%z], %src)   # model.py:9
    %getitem: f32[R_src] = getitem(%fetch, 0)   # model.py:9
    %edge_call: (f32[N]) = edge_call(@edges0, [%getitem], [%src, %dst])   # model.py:9
    %out: f32[N] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
Needs a partitioned program, whose remote columns are named, and a choice for each; gives one with fetches and
give-backs in their place.
It does nothing to a program without remote columns, or where every exchange goes in a ring: the same object comes back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch.fx as fx

from sarc.ir.collective import fetch, give_back, with_space
from sarc.ir.edge_program import EdgeProgram, edge_call, fetch_layout, return_layout
from sarc.ir.exchange import ExchangeOptions, ring_seconds, whole_seconds
from sarc.ir.program import Program, remove_dead
from sarc.ir.space import Rows, Spaces, ValueType
from sarc.partition.columns import ColumnMap


@dataclass(frozen=True)
class Crossing:
    """What one edge call exchanges through its remote column.

    Attributes:
        call: the edge call.
        column: the column.
        parent: the space whose rows it names.
        fetched: values whose rows it reads through the column.
        shared: those of them that another call of the program reads through it as well.
        returned: indices of the results that it folds to the column's rows.
    """

    call: fx.Node
    column: fx.Node
    parent: str
    fetched: tuple[fx.Node, ...]
    shared: tuple[fx.Node, ...]
    returned: tuple[int, ...]

    def row_bytes(self, spaces: Spaces) -> int:
        """Bytes of one row of all that is fetched and returned."""
        edges, values, _ = self.call.args
        fetched = fetch_layout(edges, [v.meta["type"] for v in values], spaces)
        return fetched.row_bytes + return_layout(edges, spaces).row_bytes


def all_whole(crossing: Crossing) -> tuple[tuple[fx.Node, ...], bool]:
    """Everything whole."""
    return crossing.fetched, True


class ExchangeWhole:
    """Turns exchanges of a partitioned program into whole ones.

    Args:
        choose: for a crossing, the values to fetch whole, and whether folds are given back whole (then all values must
            be fetched whole too).
    """

    name = "exchange-whole"

    def __init__(self, choose: Callable[[Crossing], tuple[tuple[fx.Node, ...], bool]] = all_whole):
        self.choose = choose

    def run(self, program: Program) -> Program:
        chosen = {c.call: (c, *self.choose(c)) for c in find_crossings(program)}
        if not any(fetched or back for _, fetched, back in chosen.values()):
            return program
        return _Rewrite(program, chosen).run()


def choose_exchange(
    options: ExchangeOptions,
    spaces: Spaces,
    columns: Mapping[tuple[str, str | int], ColumnMap],
    decided: Mapping[str, bool],
    crossing: Crossing,
) -> tuple[tuple[fx.Node, ...], bool]:
    """What of a crossing is exchanged whole; the same on all parts.

    Args:
        decided: by name of an edge program, what was decided with its site.
    """
    if options.exchange == "sar":
        return crossing.shared, False
    whole = decided.get(crossing.call.args[0].name)
    if whole is None:
        whole = is_whole(options, columns[crossing.column.name, crossing.parent], crossing.row_bytes(spaces))
    return (crossing.fetched, True) if whole else ((), False)


def is_whole(options: ExchangeOptions, column: ColumnMap, row_bytes: int) -> bool:
    """Whether rows of so many bytes, named by a column, travel from all peers at once."""
    if options.exchange != "auto":
        return options.exchange == "whole"
    held = column.most_halo_rows * row_bytes
    return held <= options.halo_budget and whole_seconds(held) <= ring_seconds(held, sum(column.round_chunks))


def find_crossings(program: Program) -> list[Crossing]:
    """The crossings of a program, in order."""
    readers: dict[tuple[fx.Node, fx.Node], int] = {}
    found = []
    for node in program.graph.nodes:
        if node.target is not edge_call or node.args[0].remote is None:
            continue
        edges, values, columns = node.args
        column = columns[edges.remote]
        ends = [(o, values[o.value].meta["type"]) for o in edges.operands] + [(r, r.type) for r in edges.results]
        spaces = [_space(type_, end.axis) for end, type_ in ends if end.column == edges.remote]
        parent = next(s for s in spaces if program.spaces[s].kind != "reach")
        crossing = [end.column == edges.remote and _space(type_, end.axis) == parent for end, type_ in ends]
        count = len(edges.operands)
        fetched = dict.fromkeys(values[o.value] for o, far in zip(edges.operands, crossing, strict=False) if far)
        returned = tuple(k for k, far in enumerate(crossing[count:]) if far)
        for value in fetched:
            readers[value, column] = readers.get((value, column), 0) + 1
        found.append(Crossing(node, column, parent, tuple(fetched), (), returned))
    return [replace(c, shared=tuple(v for v in c.fetched if readers[v, c.column] > 1)) for c in found]


def _space(type_: ValueType, axis: int | None) -> str:
    assert axis is not None
    dim = type_.dims[axis]
    assert isinstance(dim, Rows)
    return dim.space


@dataclass
class _Rewrite:
    """One program being rewritten."""

    program: Program
    chosen: dict[fx.Node, tuple[Crossing, tuple[fx.Node, ...], bool]]
    graph: fx.Graph = field(default_factory=fx.Graph)
    env: dict[fx.Node, fx.Node] = field(default_factory=dict)
    reached: dict[tuple[fx.Node, fx.Node], fx.Node] = field(default_factory=dict)
    given: dict[fx.Node, tuple[fx.Node, int]] = field(default_factory=dict)

    def run(self) -> Program:
        self.spaces = self.program.spaces.copy()
        fetches = self._fetches()
        for node in self.program.graph.nodes:
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self.env.__getitem__))
                continue
            if node in self.chosen:
                self.env[node] = self._edge_call(node)
            elif node in self.given:
                self.env[node] = self._get(*self.given[node], node.meta["type"])
            else:
                self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
                self.env[node].meta = dict(node.meta)
            for crossing, values in fetches.get(node, ()):
                self._fetch(crossing, values)
        remove_dead(self.graph)
        return replace(self.program, graph=self.graph, spaces=self.spaces)

    def _fetches(self) -> dict[fx.Node, list[tuple[Crossing, list[fx.Node]]]]:
        """The values of each message, behind the value after which all of them are there."""
        place = {node: k for k, node in enumerate(self.program.graph.nodes)}
        wanted = [(c, v) for c, values, _ in self.chosen.values() for v in values]
        found: dict[fx.Node, list[tuple[Crossing, list[fx.Node]]]] = {}
        done: set[tuple[fx.Node, fx.Node]] = set()
        for crossing, values, _ in self.chosen.values():
            if all((v, crossing.column) in done for v in values):
                continue
            same = [v for c, v in wanted if c.column is crossing.column and (v, c.column) not in done]
            ready = [v for v in dict.fromkeys(same) if place[v] < place[crossing.call]]
            done.update((v, crossing.column) for v in ready)
            behind = max((*ready, crossing.column), key=place.__getitem__)
            if behind.op == "placeholder":  # inputs stand together
                behind = self.program.placeholders[-1]
            found.setdefault(behind, []).append((crossing, ready))
        return found

    def _fetch(self, crossing: Crossing, values: list[fx.Node]) -> None:
        reach = self.spaces.reach(crossing.parent, crossing.column.name).name
        types = tuple(with_space(v.meta["type"], crossing.parent, reach) for v in values)
        call = self.graph.call_function(fetch, ([self.env[v] for v in values], self.env[crossing.column]))
        call.meta = {"type": types, "loc": crossing.call.meta.get("loc", "")}
        for k, value in enumerate(values):
            self.reached[value, crossing.column] = self._get(call, k, types[k])

    def _get(self, call: fx.Node, index: int, type_: ValueType) -> fx.Node:
        made = self.graph.call_function(operator.getitem, (call, index))
        made.meta = {"type": type_, "loc": call.meta.get("loc", "")}
        return made

    def _edge_call(self, node: fx.Node) -> fx.Node:
        """The call on rows that were fetched whole."""
        crossing, whole, back = self.chosen[node]
        edges, values, columns = node.args
        given: list[fx.Node] = []
        operands = []
        for operand in edges.operands:
            value = values[operand.value]
            taken = self.env[value]
            if operand.column == edges.remote and value in whole:
                taken = self.reached[value, crossing.column]
            if taken not in given:
                given.append(taken)
            operands.append(replace(operand, value=given.index(taken)))
        local = back or not crossing.returned
        local = local and len(whole) == len(crossing.fetched)
        results = list(edges.results)
        if local and crossing.returned:
            reach = self.spaces.reach(crossing.parent, crossing.column.name).name
            for k in crossing.returned:
                results[k] = replace(results[k], type=with_space(results[k].type, crossing.parent, reach))
        made = replace(
            edges, operands=tuple(operands), results=tuple(results), remote=None if local else edges.remote
        )
        call = self.graph.call_function(edge_call, (made, given, [self.env[c] for c in columns]))
        call.meta = {"type": tuple(r.type for r in results), "loc": node.meta.get("loc", "")}
        if local and crossing.returned:
            self._give_back(node, call, crossing, made)
        return call

    def _give_back(self, node: fx.Node, call: fx.Node, crossing: Crossing, edges: EdgeProgram) -> None:
        """What is folded to the reach goes to its owners; readers of those results read it there."""
        shares = [self._get(call, k, edges.results[k].type) for k in crossing.returned]
        folds = [edges.results[k].fold for k in crossing.returned]
        owned = self.graph.call_function(give_back, (shares, self.env[crossing.column], folds))
        types = tuple(node.args[0].results[k].type for k in crossing.returned)
        owned.meta = {"type": types, "loc": node.meta.get("loc", "")}
        for place, k in enumerate(crossing.returned):
            for user in [u for u in node.users if u.target is operator.getitem and u.args[1] == k]:
                self.given[user] = (owned, place)
