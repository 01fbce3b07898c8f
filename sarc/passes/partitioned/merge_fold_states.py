"""merge-fold-states: a softmax's sums travel with the maximum they are relative to, not after it.

Where edges of a row run at several parts, each takes the maximum of its own edges and makes its sums relative to that:
both go to the row's owner in one message, and nothing comes back in between (`sarc.ir.fold_states`). The owner brings
the sums of all parts to one maximum. A part then visits its edges once for all of it.

Before:
    program forward
    space N = nodes
    space E = edges on edges
    space R = reach(N, %dst)
    edges @edges0 over E   # model.py:7
      %s: f32[E] = gather $0 by #1 axis 0
      reduce amax by #0 axis 0 %s: f32[R]
    edges @edges1 over E   # model.py:8
      %s: f32[E] = gather $0 by #1 axis 0
      %m: f32[E] = gather $1 by #0 axis 0
      %d: f32[E] = aten.sub.Tensor(%s, %m)
      %e: f32[E] = aten.exp(%d)
      reduce sum by #0 axis 0 %e: f32[R]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %call: (f32[R]) = edge_call(@edges0, [%z], [%dst, %src])   # model.py:7
    %most: f32[R] = getitem(%call, 0)   # model.py:7
    %back: (f32[N]) = give_back([%most], %dst, ['amax'])   # model.py:7
    %top: f32[N] = getitem(%back, 0)   # model.py:7
    %fetch: (f32[R]) = fetch([%top], %dst)   # model.py:8
    %read: f32[R] = getitem(%fetch, 0)   # model.py:8
    %sums: (f32[R]) = edge_call(@edges1, [%z, %read], [%dst, %src])   # model.py:8
    %share: f32[R] = getitem(%sums, 0)   # model.py:8
    %back_1: (f32[N]) = give_back([%share], %dst, ['sum'])   # model.py:8
    %total: f32[N] = getitem(%back_1, 0)   # model.py:8
    return result 0 = %total
After:
    program forward
    space N = nodes
    space E = edges on edges
    space R = reach(N, %dst)
    edges @edges0 over E   # model.py:7
      %s: f32[E] = gather $0 by #1 axis 0
      reduce amax by #0 axis 0 %s: f32[R]
    edges @edges1 over E   # model.py:8
      %s: f32[E] = gather $0 by #1 axis 0
      %m: f32[E] = gather $1 by #0 axis 0
      %d: f32[E] = aten.sub.Tensor(%s, %m)
      %e: f32[E] = aten.exp(%d)
      reduce sum by #0 axis 0 %e: f32[R]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %call: (f32[R]) = edge_call(@edges0, [%z], [%dst, %src])   # model.py:7
    %most: f32[R] = getitem(%call, 0)   # model.py:7
    %clamp_default: f32[R] = aten.clamp(%most, -3.4028234663852886e+38)   # model.py:8
    %sums: (f32[R]) = edge_call(@edges1, [%z, %clamp_default], [%dst, %src])   # model.py:8
    %share: f32[R] = getitem(%sums, 0)   # model.py:8
    %give_back: (f32[N], f32[N]) = give_back([%most, %share], %dst, ['amax', 'sum e^-0'])   # model.py:8
    %getitem: f32[N] = getitem(%give_back, 0)   # model.py:8
    %getitem_1: f32[N] = getitem(%give_back, 1)   # model.py:8
    return result 0 = %getitem_1
Needs a partitioned program with give-backs; gives one with fewer exchanges.
It does nothing to sums that depend on a maximum in another way, or of edges at home alone: the same object comes back.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import torch
import torch.fx as fx

from sarc.ir.collective import fetch, give_back, maximum_of, relative_to
from sarc.ir.edge_program import edge_call
from sarc.ir.fold_states import behind_guard, exchanged, is_maximum, relative_sums, stands_alone
from sarc.ir.program import Program, type_of
from sarc.passes.base import Builder

aten = torch.ops.aten


@dataclass(frozen=True)
class _Sums:
    """Sums that a part can make relative to its own maximum.

    Attributes:
        call, operand: the edge call and its operand that reads the maximum of all parts.
        top: that maximum, of the rows' owners.
        share, source: the part's own maximum as it is folded, and at the rows' owners.
        results: indices of the sums.
    """

    call: fx.Node
    operand: int
    top: fx.Node
    share: fx.Node
    source: fx.Node
    results: tuple[int, ...]


class MergeFoldStates:
    """Rewrites a partitioned program's softmaxes whose edges are at several parts."""

    name = "merge-fold-states"

    def run(self, program: Program) -> Program:
        if not any(node.target is give_back for node in program.graph.nodes):
            return program
        copied = _copy(program)
        found = [s for node in copied.graph.nodes if node.target is edge_call for s in _find(node)]
        if not found:
            return program
        rewrite = _Rewrite(copied)
        output = next(n for n in reversed(copied.graph.nodes) if n.op == "output")
        with copied.graph.inserting_before(output):
            for sums in found:
                rewrite.read_own_maximum(sums)
            for share in dict.fromkeys(s.share for s in found):
                rewrite.combine([s for s in found if s.share is share])
        rewrite.drop_unread_fetches()
        return replace(copied, graph=_sorted(copied.graph))


def _copy(program: Program) -> Program:
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
        env[node].meta = dict(node.meta)
    return replace(program, graph=graph, spaces=program.spaces.copy())


def _find(call: fx.Node) -> list[_Sums]:
    """The sums of one edge call: of several maxima, if need be."""
    edges, values, columns = call.args
    found: list[_Sums] = []
    if edges.remote is not None:
        return found
    for k, operand in enumerate(edges.operands):
        if operand.column is None:
            continue
        column, value = columns[operand.column], values[operand.value]
        top = exchanged(value) or value
        most = behind_guard(top)
        sources = most.args if most.target is aten.maximum.default else (most,)
        for source in sources:
            share = exchanged(source) or source
            if top is value and len(sources) == 1:  # all edges of a row are here
                continue
            if is_maximum(share, edges.space, column) and stands_alone(call, k, share):
                results = relative_sums(edges, k)
                if results:
                    found.append(_Sums(call, k, top, share, source, results))
    taken = [r for s in found for r in s.results]
    return found if len(taken) == len(set(taken)) else []


class _Rewrite:
    """One program being rewritten in place; a call may stand before its operands until the program is sorted."""

    def __init__(self, program: Program):
        self.graph = program.graph
        self.builder = Builder(program.graph, program.spaces)

    def read_own_maximum(self, sums: _Sums) -> None:
        edges, values, columns = sums.call.args
        place = edges.operands[sums.operand].value
        self.builder.loc = sums.call.meta.get("loc", "")
        # Of edges that are all -inf, whatever other parts have: exp(-inf - least) is 0.
        least = torch.finfo(type_of(sums.share).dtype).min
        share = self.builder.call(aten.clamp.default, sums.share, least)
        sums.call.args = (edges, [share if k == place else v for k, v in enumerate(values)], columns)

    def combine(self, group: list[_Sums]) -> None:
        """Bring the sums relative to one part's maximum to the maximum of all parts, at their rows' owners."""
        owned = {(s.call, k): _result(s.call, k) for s in group for k in s.results}
        maximum = group[0].source
        if exchanged(maximum) is not None:
            given = self._give_back([group[0].share, *owned.values()])
            maximum, owned = given[0], dict(zip(owned, given[1:], strict=True))
        for sums in group:
            if sums.top is group[0].source:  # relative to the maximum of all parts already
                continue
            self.builder.loc = sums.call.meta.get("loc", "")
            factor = self._factor(maximum, sums.top)
            for k in sums.results:
                self._scale(owned[sums.call, k], factor)

    def _give_back(self, state: list[fx.Node]) -> list[fx.Node]:
        """A maximum and the sums relative to it, from the give-backs that they are in, in one; what it gives of them.

        What else the sums' give-backs hold goes along; what else the maximum's holds stays in its own.
        """
        before = [next(u for u in share.users if u.target is give_back) for share in state]
        loc, column = before[-1].meta.get("loc", ""), before[0].args[1]
        entries = [(call, call.args[0].index(share)) for call, share in zip(before, state, strict=True)]
        for call in dict.fromkeys(before[1:]):
            entries += [(call, k) for k in range(len(call.args[0])) if (call, k) not in entries]
        folds = ["amax", *[relative_to(0)] * (len(state) - 1)]
        for call, k in entries[len(state) :]:
            top = maximum_of(call.args[2][k])
            folds.append(call.args[2][k] if top is None else relative_to(entries.index((call, top))))
        stays = [(before[0], k) for k in range(len(before[0].args[0])) if (before[0], k) not in entries]
        given = self._rebuild(entries, column, folds, loc)
        if stays:
            self._rebuild(stays, column, [call.args[2][k] for call, k in stays], before[0].meta.get("loc", ""))
        for call in dict.fromkeys(before):
            for read in list(call.users):
                self.graph.erase_node(read)
            self.graph.erase_node(call)
        return given[: len(state)]

    def _rebuild(
        self, entries: list[tuple[fx.Node, int]], column: fx.Node, folds: list[str], loc: str
    ) -> list[fx.Node]:
        """A give-back of entries of others; who reads them there reads them here."""
        shares = [call.args[0][k] for call, k in entries]
        made = self.graph.call_function(give_back, (shares, column, folds))
        made.meta = {"type": tuple(call.meta["type"][k] for call, k in entries), "loc": loc}
        found = []
        for place, (call, k) in enumerate(entries):
            read = self.graph.call_function(operator.getitem, (made, place))
            read.meta = {"type": made.meta["type"][place], "loc": loc}
            for earlier in [u for u in call.users if u.args[1] == k]:
                earlier.replace_all_uses_with(read)
            found.append(read)
        return found

    def _factor(self, maximum: fx.Node, top: fx.Node) -> fx.Node:
        """exp(maximum - top), and 1 where both are the same infinity: rows without edges."""
        call, type_ = self.builder.call, type_of(top)
        zero = call(aten.full.default, self.builder.shape(type_.dims), 0, dtype=type_.dtype)
        same = call(aten.eq.Tensor, maximum, top)
        behind = call(aten.sub.Tensor, maximum, top)
        return call(aten.exp.default, call(aten.where.self, same, zero, behind))

    def _scale(self, value: fx.Node, factor: fx.Node) -> None:
        """Times the factor of its leading axes, for all who read it."""
        readers = list(value.users)
        for _ in range(len(type_of(value).dims) - len(type_of(factor).dims)):
            factor = self.builder.call(aten.unsqueeze.default, factor, -1)
        scaled = self.builder.call(aten.mul.Tensor, value, factor)
        for reader in readers:
            reader.replace_input_with(value, scaled)

    def drop_unread_fetches(self) -> None:
        """Fetches bring only what is still read."""
        for node in [n for n in self.graph.nodes if n.target is fetch]:
            for read in [u for u in node.users if not u.users]:
                self.graph.erase_node(read)
            kept = sorted({u.args[1] for u in node.users})
            if not kept:
                self.graph.erase_node(node)
                continue
            node.args = ([node.args[0][k] for k in kept], node.args[1])
            node.meta = {**node.meta, "type": tuple(node.meta["type"][k] for k in kept)}
            for read in list(node.users):
                read.args = (node, kept.index(read.args[1]))


def _result(call: fx.Node, index: int) -> fx.Node:
    """The value of one result of an edge call."""
    return next(u for u in call.users if u.target is operator.getitem and u.args[1] == index)


def _sorted(graph: fx.Graph) -> fx.Graph:
    """The graph with every call behind its operands, else in its order."""
    made = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    stack = [n for n in reversed(graph.nodes) if n.op != "placeholder"]
    stack += [n for n in reversed(graph.nodes) if n.op == "placeholder"]
    while stack:
        node = stack[-1]
        missing = [n for n in node.all_input_nodes if n not in env]
        if node not in env and missing:
            stack += reversed(missing)
            continue
        stack.pop()
        if node not in env:
            env[node] = made.node_copy(node, env.__getitem__)
            env[node].meta = dict(node.meta)
    return made
