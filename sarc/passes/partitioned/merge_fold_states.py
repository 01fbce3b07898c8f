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
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.fx as fx

from sarc.ir.collective import fetch, give_back, maximum_of, relative_to
from sarc.ir.edge_program import edge_call
from sarc.ir.fold_states import (
    FoldState,
    behind_guard,
    exchanged,
    is_maximum,
    of_one_maximum,
    relative_sums,
    stands_alone,
)
from sarc.ir.program import Program, type_of
from sarc.passes.base import Builder

aten = torch.ops.aten

# A give-back and the place of one of its shares.
_Entry = tuple[fx.Node, int]


class MergeFoldStates:
    """Rewrites a partitioned program's softmaxes whose edges are at several parts."""

    name = "merge-fold-states"

    def run(self, program: Program) -> Program:
        if not any(node.target is give_back for node in program.graph.nodes):
            return program
        copied = program.copy()
        calls = [node for node in copied.graph.nodes if node.target is edge_call]
        found = {state: source for call in calls for state, source in _find(call).items()}
        if not found:
            return program
        rewrite = _Rewrite(copied)
        output = next(n for n in reversed(copied.graph.nodes) if n.op == "output")
        with copied.graph.inserting_before(output):
            for state in found:
                rewrite.read_own_maximum(state)
            for source in dict.fromkeys(found.values()):
                rewrite.combine([state for state in found if found[state] is source], source)
        rewrite.drop_unread_fetches()
        return replace(copied, graph=_sorted(copied.graph))


def _find(call: fx.Node) -> dict[FoldState, fx.Node]:
    """The states of one edge call whose rows have edges elsewhere, and the part's own maximum at the rows' owners."""
    edges, values, columns = call.args
    found: dict[FoldState, fx.Node] = {}
    for k, operand in enumerate(edges.operands if edges.remote is None else ()):
        if operand.column is None:
            continue
        column, value = columns[operand.column], values[operand.value]
        top = exchanged(value) or value
        most = behind_guard(top)
        sources = most.args if most.target is aten.maximum.default else (most,)
        if top is value and len(sources) == 1:  # all edges of a row are here
            continue
        for source in sources:
            share = exchanged(source) or source
            if is_maximum(share, edges.space, column) and stands_alone(call, k, share):
                sums = relative_sums(edges, k)
                if sums:
                    found[FoldState(call, k, top, share, sums)] = source
    return {state: found[state] for state in of_one_maximum([*found])}


class _Rewrite:
    """One program being rewritten in place; a call may stand before its operands until the program is sorted."""

    def __init__(self, program: Program):
        self.graph = program.graph
        self.builder = Builder(program.graph, program.spaces)

    def read_own_maximum(self, state: FoldState) -> None:
        edges, values, columns = state.call.args
        place = edges.operands[state.operand].value
        self.builder.loc = state.call.meta.get("loc", "")
        # Of edges that are all -inf, whatever other parts have: exp(-inf - least) is 0.
        least = torch.finfo(type_of(state.maximum).dtype).min
        own = self.builder.call(aten.clamp.default, state.maximum, least)
        state.call.args = (edges, [own if k == place else v for k, v in enumerate(values)], columns)

    def combine(self, states: list[FoldState], source: fx.Node) -> None:
        """Bring the sums relative to one part's maximum to the maximum of all parts, at their rows' owners."""
        owned = {(s.call, k): _result(s.call, k) for s in states for k in s.sums}
        maximum = source
        if exchanged(source) is not None:
            maximum, *given = self._give_back([states[0].maximum, *owned.values()])
            owned = dict(zip(owned, given, strict=True))
        for state in states:
            if state.value is source:  # relative to the maximum of all parts already
                continue
            self.builder.loc = state.call.meta.get("loc", "")
            factor = self._factor(maximum, state.value)
            for k in state.sums:
                self._scale(owned[state.call, k], factor)

    def _give_back(self, state: list[fx.Node]) -> list[fx.Node]:
        """A maximum and the sums relative to it, from the give-backs that they are in, in one; what it gives of them.

        What else the sums' give-backs hold goes along; what else the maximum's holds stays in its own.
        """
        before = [next(u for u in share.users if u.target is give_back) for share in state]
        entries = [(call, call.args[0].index(share)) for call, share in zip(before, state, strict=True)]
        folds = dict.fromkeys(entries[1:], relative_to(0))
        for call in dict.fromkeys(before[1:]):
            entries += [(call, k) for k in range(len(call.args[0])) if (call, k) not in entries]
        stays = [(before[0], k) for k in range(len(before[0].args[0])) if (before[0], k) not in entries]
        given = self._rebuild(entries, folds, before[-1])
        if stays:
            self._rebuild(stays, {}, before[0])
        for call in dict.fromkeys(before):
            for read in list(call.users):
                self.graph.erase_node(read)
            self.graph.erase_node(call)
        return given[: len(state)]

    def _rebuild(self, entries: list[_Entry], folds: Mapping[_Entry, str], like: fx.Node) -> list[fx.Node]:
        """A give-back of entries of others; who reads them there reads them here.

        Args:
            folds: of those that are folded in another way than there.
        """
        shares = [call.args[0][k] for call, k in entries]
        made = self.graph.call_function(
            give_back, (shares, like.args[1], [folds.get(e) or _fold(e, entries) for e in entries])
        )
        made.meta = {"type": tuple(call.meta["type"][k] for call, k in entries), "loc": like.meta.get("loc", "")}
        found = []
        for place, (call, k) in enumerate(entries):
            read = self.graph.call_function(operator.getitem, (made, place))
            read.meta = {**made.meta, "type": made.meta["type"][place]}
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


def _fold(entry: _Entry, entries: list[_Entry]) -> str:
    """How an entry of a give-back is folded among other entries."""
    call, k = entry
    top = maximum_of(call.args[2][k])
    return call.args[2][k] if top is None else relative_to(entries.index((call, top)))


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
    return made
