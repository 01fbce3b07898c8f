"""rematerialise: values that the backward pass reads are made again there when they are dear to keep and cheap to make.

A min-cut over bytes and work (`choose_kept`). Bytes are those of one part. Work counts, in bytes of memory traffic: a
matrix product its operations at 8 a byte; another operator its result's bytes, and over edges, where values stay in
the processor, its operations; a gathered row whole cache lines; rows that travel 8 times theirs; views, constants and
random draws nothing. Without a limit of bytes, a value is made again where the share of kept bytes it saves is twice
the share of a step's work it takes, and together less than 15 %; with a limit, the least work is added for which the
bytes fit. What is decided is written beside the value, and `split` does it.

Before:
    program joint
    space N = nodes
    %x: f32[N, 64] = input arg x
    %w: f32[64, 64] = input param w
    %tangent_0: f32[N, 64] = input tangent 0
    %h: f32[N, 64] = aten.mm(%x, %w)   # model.py:8
    %r: f32[N, 64] = aten.relu(%h)   # model.py:9
    %g: f32[N, 64] = aten.mul.Tensor(%tangent_0, %r)   # model.py:9
    %g1: f32[N, 64] = aten.mul.Tensor(%g, %h)   # model.py:9
    %t: f32[64, N] = aten.t(%x)   # model.py:8
    %gw: f32[64, 64] = aten.mm(%t, %g1)   # model.py:8
    return result 0 = %r
    return grad param w = %gw
After:
    program joint
    space N = nodes
    %x: f32[N, 64] = input arg x
    %w: f32[64, 64] = input param w
    %tangent_0: f32[N, 64] = input tangent 0
    %h: f32[N, 64] = aten.mm(%x, %w)   # model.py:8
    %r: f32[N, 64] = aten.relu(%h)   # model.py:9; again in backward: 256 B a row of N less to keep, work +9.1 %
    %g: f32[N, 64] = aten.mul.Tensor(%tangent_0, %r)   # model.py:9
    %g1: f32[N, 64] = aten.mul.Tensor(%g, %h)   # model.py:9
    %t: f32[64, N] = aten.t(%x)   # model.py:8
    %gw: f32[64, 64] = aten.mm(%t, %g1)   # model.py:8
    return result 0 = %r
    return grad param w = %gw
Needs a joint program and the rows of each space, the same on every rank; gives the same program with notes.
It does nothing when every value that the backward pass reads had better be kept: the same object comes back.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.fx as fx

from sarc.cost import call_cost, entries
from sarc.ir.dialect import GATHER, REDUCE
from sarc.ir.program import Program
from sarc.ir.space import Rows, Spaces, ValueType
from sarc.passes.joint.choose_kept import Choice, Problem, cheapest, keep_all, least_bytes, least_work
from sarc.passes.joint.split import Division, is_view, over_edges

# Operations that take as long as moving one byte: a CPU core does about 50e9 of them and moves 6e9 bytes a second.
OPERATIONS_A_BYTE = 8
# A byte over a network, against one to or from memory.
EXCHANGED_BYTE = 8
# A gathered row is read in whole lines.
CACHE_LINE = 64
MOST_EXTRA_WORK = 0.15
# Share of kept bytes that a share of a step's work must save.
WORTH = 2
# Work of making again what a pass wants kept.
_NEVER = 1e30
# Of a graph that nobody has seen yet. "halo": rows that one part reads from others.
USUAL_ROWS = {"N": 1_000_000, "E": 10_000_000, "halo": 0}


@dataclass(frozen=True)
class Limits:
    """How far to go.

    Attributes:
        most_extra_work: share of a step's work that may be added.
        most_bytes: of kept values, on one part; None: as few as pay, and `most_extra_work` allows.
        worth: what pays: share of kept bytes that a share of a step's work saves.
    """

    most_extra_work: float = MOST_EXTRA_WORK
    most_bytes: float | None = None
    worth: float = WORTH



class Rematerialise:
    """Decides what the backward pass makes again.

    Args:
        rows: of each space on one part, and "halo"; derived spaces may be missing.
        limits: how far to go.
    """

    name = "rematerialise"

    def __init__(self, rows: Mapping[str, int] | None = None, limits: Limits | None = None):
        self.rows, self.limits = rows or USUAL_ROWS, limits or Limits()

    def run(self, joint: Program) -> Program:
        plan = Plan(joint, self.rows)
        choice = plan.choose(self.limits)
        notes = plan.notes(choice)
        if not notes and not any("again" in n.meta for n in joint.graph.nodes):
            return joint
        made = joint.copy()
        for old, new in zip(joint.graph.nodes, made.graph.nodes, strict=True):
            new.meta = {k: v for k, v in old.meta.items() if k != "again"}
            if old in notes:
                new.meta["again"] = notes[old]
        return replace(made)


class Plan:
    """A joint program as a problem of what to keep.

    Attributes:
        problem: its values are the calls of the forward pass that the backward pass may need.
        step_work: of one step that keeps everything.
    """

    def __init__(self, joint: Program, rows: Mapping[str, int]):
        self.joint, self.sizes = joint, sizes_of(joint.spaces, rows)
        self.halo = rows.get("halo", 0)
        division = Division(joint)
        self.nodes = [n for n in joint.graph.nodes if n.op == "call_function" and n not in division.late]
        number = {n: k for k, n in enumerate(self.nodes)}
        read = [*division.grads, *(u for n in division.needed_late for u in n.all_input_nodes)]
        self._folds_by = {n.args[1] for n in self.nodes if n.target is REDUCE}
        self.problem = Problem(
            tuple(self._nbytes(n) if division.may_keep(n) else None for n in self.nodes),
            tuple(0.0 if n in division.free else self._work_again(n) for n in self.nodes),
            tuple(tuple(number[u] for u in n.all_input_nodes if u in number) for n in self.nodes),
            tuple(sorted({number[u] for u in read if u in number})),
        )
        late = sum(self._work(n) for n in joint.graph.nodes if n in division.late and n.op == "call_function")
        forward = sum(self._work(n) for n in self.nodes if n in division.in_forward)
        self.step_work = forward + late + sum(self._work(self.nodes[v]) for v in keep_all(self.problem).again)

    def choose(self, limits: Limits) -> Choice:
        """The choice for some limits; the one nearest to a limit that cannot be kept."""
        everything = keep_all(self.problem)
        if limits.most_bytes is None:
            most = everything.work + limits.most_extra_work * self.step_work
            paying = cheapest(self.problem, 1 / max(everything.nbytes, 1), limits.worth / max(self.step_work, 1e-30))
            assert paying is not None
            return paying if paying.work <= most else least_bytes(self.problem, most) or everything
        if everything.nbytes <= limits.most_bytes:
            return everything
        least = least_bytes(self.problem, float("inf"))
        assert least is not None
        return least_work(self.problem, max(limits.most_bytes, least.nbytes)) or least

    def notes(self, choice: Choice) -> dict[fx.Node, str]:
        """Of each value that could be kept and is made again, why."""
        found = {}
        for v in sorted(choice.again):
            node = self.nodes[v]
            if self.problem.nbytes[v] is None or is_view(node):
                continue
            share = 100 * self.problem.work[v] / max(self.step_work, 1e-30)
            found[node] = f"again in backward: {_per_row(node)} less to keep, work +{share:.1f} %"
        return found

    def _nbytes(self, node: fx.Node) -> int:
        types = node.meta["type"] if isinstance(node.meta["type"], tuple) else (node.meta["type"],)
        return sum(_entries(t, self.joint.spaces, self.sizes) * t.dtype.itemsize for t in types)

    def _work_again(self, node: fx.Node) -> float:
        """What it takes to make a value again. A fold is a traversal of its own, before the one that reads it: it reads
        its rows anew, though the backward pass may gather them as well."""
        if "keep" in node.meta:
            return _NEVER
        if node.target is GATHER and over_edges(node, self.joint.spaces):
            return 0.0
        if node.target is not REDUCE:
            return self._work(node)
        work, seen = self._work(node), set()
        stack = [node.args[0]]
        while stack:
            inner = stack.pop()
            if inner in seen or inner.op != "call_function" or not over_edges(inner, self.joint.spaces):
                continue
            seen.add(inner)
            if inner.target is GATHER:
                work += self._work(inner)
            else:
                stack.extend(inner.all_input_nodes)
        return work

    def _work(self, node: fx.Node) -> float:
        if is_view(node) or node.target is operator.getitem:
            return 0.0
        flops, _ = call_cost(node, self.joint.spaces).at(self.sizes)
        computing = flops / OPERATIONS_A_BYTE
        if node.target is GATHER:
            rows = self.sizes.get(node.args[1].meta["type"].dims[0].space, 0)
            return max(float(self._nbytes(node)), float(CACHE_LINE * rows)) + self._exchange(node, node.args[0])
        if node.target is REDUCE:
            return computing + self._nbytes(node) + self._exchange(node, node)
        if over_edges(node, self.joint.spaces):
            return computing  # between a gather and a fold nothing goes to memory
        return max(computing, float(self._nbytes(node)))

    def _exchange(self, node: fx.Node, table: fx.Node) -> float:
        """Rows of `table` that travel: through a column that no fold goes through, which names rows of any part."""
        if node.args[1] in self._folds_by or not self.halo:
            return 0.0
        rows = max((self.sizes[s] for s in table.meta["type"].spaces), default=0)
        return EXCHANGED_BYTE * self.halo * self._nbytes(table) / max(rows, 1)


def sizes_of(spaces: Spaces, rows: Mapping[str, int]) -> dict[str, int]:
    """Rows of every space; a selection that is not known has at most its parent's."""
    atomic: dict[str, int] = {}
    for space in spaces:
        if space.kind != "concat":
            atomic[space.name] = (
                rows.get(space.name, 0)
                if not space.parents
                else rows.get(space.name, spaces.numbers(atomic).get(space.parents[0], 0))
            )
    return spaces.numbers(atomic)


def _entries(type_: ValueType, spaces: Spaces, sizes: Mapping[str, int]) -> int:
    return int(entries(type_, spaces).subs(dict(sizes)))


def _per_row(node: fx.Node) -> str:
    """The value's bytes in words."""
    type_ = node.meta["type"]
    size = type_.dtype.itemsize
    for dim in type_.dims:
        size *= dim.before * dim.after if isinstance(dim, Rows) else dim
    return f"{size} B a row of {', '.join(type_.spaces)}" if type_.spaces else f"{size} B"
