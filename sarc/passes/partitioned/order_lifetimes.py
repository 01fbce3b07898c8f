"""order-lifetimes: calls stand where fewest bytes are alive at once.

A backward program begins with what it makes again; done in that order, everything would be there from the start.
Values that no gradient has entered are made right before their first reader, and a call after which less is alive than
before comes as early as it can. Of that order and the given one, the one with the lower peak stays; then single calls
move while that lowers it.

Before:
    program backward
    space N = nodes
    %x: f32[N, 4] = input arg x
    %tangent_0: f32[N, 4] = input tangent 0
    %saved_y: f32[N, 4] = input saved y   # model.py:9
    %again: f32[N, 64] = aten.repeat(%x, [1, 16])   # model.py:8
    %g: f32[N, 4] = aten.mul.Tensor(%tangent_0, %saved_y)   # model.py:9
    %g1: f32[N, 64] = aten.repeat(%g, [1, 16])   # model.py:9
    %s: f32[N] = aten.sum.dim_IntList(%g1, [1])   # model.py:9
    %z: f32[N] = aten.sum.dim_IntList(%again, [1])   # model.py:8
    %gx: f32[N] = aten.mul.Tensor(%s, %z)   # model.py:8
    return grad arg x = %gx
After:
    program backward
    space N = nodes
    %x: f32[N, 4] = input arg x
    %tangent_0: f32[N, 4] = input tangent 0
    %saved_y: f32[N, 4] = input saved y   # model.py:9
    %g: f32[N, 4] = aten.mul.Tensor(%tangent_0, %saved_y)   # model.py:9
    %g1: f32[N, 64] = aten.repeat(%g, [1, 16])   # model.py:9
    %s: f32[N] = aten.sum.dim_IntList(%g1, [1])   # model.py:9
    %again: f32[N, 64] = aten.repeat(%x, [1, 16])   # model.py:8
    %z: f32[N] = aten.sum.dim_IntList(%again, [1])   # model.py:8
    %gx: f32[N] = aten.mul.Tensor(%s, %z)   # model.py:8
    return grad arg x = %gx
Needs a partitioned program; gives one with the same calls in an order that every rank finds alike: it depends on the
program alone.
It does nothing where no order is found that has a lower peak: the same object comes back.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch.fx as fx

from sarc.ir.lifetimes import Lifetimes
from sarc.ir.program import Program

# Rows that stand for a graph's: ranks must not decide by their own.
_NODES, _EDGES = 1_000_000, 10_000_000
_HELD = ("param", "buffer", "arg", "bound", "constant", "rows", "rng")
# Single moves are tried in programs of up to this many calls: each try walks the program once.
_MOST_CALLS = 600


class OrderLifetimes:
    """Reorders the calls of a program."""

    name = "order-lifetimes"

    def run(self, program: Program) -> Program:
        calls = [n for n in program.graph.nodes if n.op == "call_function"]
        atomic = {s.name: _EDGES if s.on_edges else _NODES for s in program.spaces if s.kind != "concat"}
        entries = zip(program.placeholders, program.inputs, strict=True)
        held = {n for n, e in entries if e.kind in _HELD}
        nodes = [*program.placeholders, *calls]
        lifetimes = Lifetimes(nodes, held, program.returned, program.spaces.numbers(atomic))
        best = min([calls, on_demand(program, calls)], key=lambda order: max(lifetimes.live(order), default=0))
        if len(calls) <= _MOST_CALLS:
            best = improved(best, lifetimes)
        return program if best == calls else _reordered(program, best)


def on_demand(program: Program, calls: Sequence[fx.Node]) -> list[fx.Node]:
    """Calls that a tangent has entered in their order, others right before their first reader."""
    late = {n for n, e in zip(program.placeholders, program.inputs, strict=True) if e.kind == "tangent"}
    if not late:
        return list(calls)
    place = {n: k for k, n in enumerate(calls)}
    for node in calls:
        if any(u in late for u in node.all_input_nodes):
            late.add(node)
    order: dict[fx.Node, None] = {}
    for node in [*(n for n in calls if n in late), *(n for n in calls if n not in late)]:
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [u for u in top.all_input_nodes if u in place and u not in order]
            if missing and top not in order:
                stack.extend(sorted(missing, key=lambda u: -place[u]))
                continue
            stack.pop()
            order[top] = None
            # Results are taken at once, so that those that nobody reads do not stay with the others.
            for user in sorted((u for u in top.users if u.target is operator.getitem), key=lambda u: place[u]):
                order[user] = None
    return list(order)


def improved(order: list[fx.Node], lifetimes: Lifetimes) -> list[fx.Node]:
    """`order` after single moves, to the earliest or the latest place of a call, that lower the peak, or shorten it."""

    def score(candidate: Sequence[fx.Node]) -> tuple[int, int]:
        live = lifetimes.live(candidate)
        top = max(live, default=0)
        return top, sum(live)

    now = score(order)
    for _ in range(2):
        before = now
        for node in list(order):
            if node.target is operator.getitem:
                continue
            for candidate in _moves(order, node):
                found = score(candidate)
                if found < now:
                    order, now = candidate, found
        if now[0] == before[0]:
            break
    return order


def _moves(order: list[fx.Node], node: fx.Node) -> list[list[fx.Node]]:
    """`order` with a call, and what it takes along (the results of an edge call), as early and as late as it can be."""
    place = {n: k for k, n in enumerate(order)}
    group = [node, *(u for u in node.users if u.target is operator.getitem)]
    group = sorted((n for n in group if n in place), key=place.__getitem__)
    rest = [n for n in order if n not in set(group)]
    at = {n: k for k, n in enumerate(rest)}
    first = max((at[u] + 1 for n in group for u in n.all_input_nodes if u in at), default=0)
    last = min((at[u] for n in group for u in n.users if u in at), default=len(rest))
    found = []
    for where in (first, last):
        candidate = [*rest[:where], *group, *rest[where:]]
        if candidate != order:
            found.append(candidate)
    return found


def _reordered(program: Program, order: Sequence[fx.Node]) -> Program:
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in [*program.placeholders, *order]:
        env[node] = graph.node_copy(node, env.__getitem__)
        env[node].meta = dict(node.meta)
    graph.output([env[n] for n in program.returned])
    return replace(program, graph=graph, spaces=program.spaces.copy())
