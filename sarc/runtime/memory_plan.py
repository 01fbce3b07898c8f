"""MemoryPlan: the memory of one part's training step, predicted from sizes: when, by category, and as a formula.

A step is the forward program, then the backward program while the results of the forward one are held. What lies in
memory before the step (parameters, arguments, what was bound to the graph) is *loaded*; the peak is given with and
without it. A formula is in N_p, E_p (rows of part p) and those of derived spaces, C_pq (rows of one chunk between p
and q) and E_pq (edges of one block).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy
import torch.fx as fx
from torch import Tensor

from sarc.ir import schedule as ins
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.program import Input, Program
from sarc.ir.space import Rows, Spaces, ValueType, lengths
from sarc.runtime.binding import Binding
from sarc.runtime.dry_run import dry_run
from sarc.runtime.memory_log import LOADED, MemoryLog
from sarc.runtime.part_state import PartState

_MOST_SUMS = 4096  # tried to tell which results of a call are alive

# Categories of the log by what they are to the user.
GROUPS = {
    "features": ("arguments", "bound"),
    "parameters": ("parameters",),
    "saved": ("saved",),
    "halo": ("chunks", "halo"),
    "workspace": ("edge rows", "folds", "values", "gradients", "results", "workspace"),
}


@dataclass(frozen=True)
class Term:
    """One value alive at the peak: its bytes, also as a formula, and the user's line."""

    name: str
    category: str
    nbytes: int
    formula: sympy.Expr
    loc: str


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of one part's step.

    Attributes:
        rank: the part.
        timeline: stage, instruction and bytes alive in it, beyond what is loaded, in order.
        peak_place: place in the timeline of the first instruction with most bytes.
        results: bytes of the forward program's results.
        terms: what is alive there, largest first; loaded values too.
    """

    rank: int
    timeline: tuple[tuple[str, str, int], ...]
    peak_place: int
    results: int
    terms: tuple[Term, ...]

    @property
    def peak(self) -> int:
        """Most bytes beyond what is loaded."""
        return sum(t.nbytes for t in self.terms if t.category not in LOADED)

    @property
    def loaded(self) -> int:
        return sum(t.nbytes for t in self.terms if t.category in LOADED)

    @property
    def total(self) -> int:
        """Most bytes, loaded ones included."""
        return self.peak + self.loaded

    @property
    def summary(self) -> MemoryPlan:
        """Without the timeline: what travels between ranks."""
        return replace(self, timeline=(), peak_place=0)

    @property
    def by_group(self) -> dict[str, int]:
        """Bytes at the peak of features, parameters, saved, halo and workspace."""
        return {g: sum(t.nbytes for t in self.terms if t.category in members) for g, members in GROUPS.items()}

    @property
    def formulas(self) -> dict[str, sympy.Expr]:
        """The same as formulas."""
        zero = sympy.Integer(0)
        return {
            g: sympy.expand(sum((t.formula for t in self.terms if t.category in members), zero))
            for g, members in GROUPS.items()
        }

    def __str__(self) -> str:
        stage, instruction, _ = self.timeline[self.peak_place] if self.timeline else ("", "", 0)
        lines = [
            f"memory of part {self.rank}: at most {self.peak} B beyond {self.loaded} B loaded, "
            f"in {stage}: {instruction}"
        ]
        formulas = self.formulas
        for group, size in self.by_group.items():
            lines.append(f"  {group:10} {size} B = {formulas[group]}")
        return "\n".join(lines)


def make_memory_plans(binding: Binding) -> tuple[MemoryPlan, ...]:
    """The plan of every hosted part."""
    return tuple(_memory_plan(binding, k, state) for k, state in enumerate(binding.order.states))


def spare_bytes(plan: MemoryPlan) -> dict[str, list[int]]:
    """By stage, how far each instruction is below the peak: so much freed memory may be kept for the next tables."""
    found: dict[str, list[int]] = {}
    for stage, _, live in plan.timeline:
        found.setdefault(stage, []).append(plan.peak - live)
    return found


def _memory_plan(binding: Binding, k: int, state: PartState) -> MemoryPlan:
    timeline: list[tuple[str, str, int]] = []
    logs: dict[str, MemoryLog] = {}
    per_edge: dict[str, dict[int, int]] = {}
    given: dict[Input, Tensor] = {}
    held = 0  # results of the forward program, while the backward program runs
    for stage, program in binding.programs.items():
        schedule = binding.schedules[stage][k]
        logs[stage], per_edge[stage] = dry_run(program, schedule, state, binding.kernels[stage], given)
        for step, live in zip(schedule.instructions, logs[stage].live, strict=True):
            timeline.append((stage, " ".join(str(step).split()), live - logs[stage].loaded + held))
        held = sum(t.nbytes for t in _results(program, state))
    if not timeline:
        return MemoryPlan(state.rank, (), 0, 0, ())
    peak = max(range(len(timeline)), key=lambda at: (timeline[at][2], -at))
    stage = timeline[peak][0]
    first = next(at for at, (found, _, _) in enumerate(timeline) if found == stage)
    at = peak - first
    schedule = binding.schedules[stage][k]
    terms = _terms(binding.programs[stage], schedule, logs[stage], at, per_edge[stage].get(at, 0), state)
    if stage == "backward":
        terms += _results(binding.programs["forward"], state)
    terms.sort(key=lambda t: (-t.nbytes, t.name))
    results = sum(t.nbytes for t in _results(binding.programs["forward"], state))
    return MemoryPlan(state.rank, tuple(timeline), peak, results, tuple(terms))


def _results(program: Program, state: PartState) -> list[Term]:
    """What the forward program hands to the user."""
    named = zip(program.returned, program.outputs, strict=True)
    nodes = [n for n, o in named if o.kind == "result" and n.op == "call_function"]
    sizes = state.sizes_of(program.spaces)[0]
    return [
        Term(n.name, "results", _nbytes(n.meta["type"], sizes), _formula(n.meta["type"], program.spaces), _line(n))
        for n in dict.fromkeys(nodes)
    ]


def _terms(
    program: Program, schedule: ins.Schedule, log: MemoryLog, place: int, per_edge: int, state: PartState
) -> list[Term]:
    """What is alive in the instruction at `place`, whose workspace grows by `per_edge` bytes with every edge."""
    nodes = {n.name: n for n in program.graph.nodes}
    sizes = state.sizes_of(program.spaces)[0]
    found = []
    for value in log.alive_at(place):
        if value.category == "workspace":
            formula, loc = _workspace(program, schedule.instructions[place], value.nbytes, per_edge, state), ""
        elif value.name in nodes:
            node = nodes[value.name]
            types = node.meta["type"] if isinstance(node.meta["type"], tuple) else (node.meta["type"],)
            formula, loc = _share(types, value.nbytes, sizes, program.spaces), _line(node)
        else:
            formula, loc = _chunk(schedule, value.name, value.nbytes), _line(nodes[value.name.rsplit(".", 2)[0]])
        found.append(Term(value.name, value.category, value.nbytes, formula, loc))
    return found


def _line(node: fx.Node) -> str:
    return str(node.meta.get("loc", ""))


def _nbytes(type_: ValueType, sizes: Mapping[str, int]) -> int:
    return math.prod(lengths(type_, sizes)) * type_.dtype.itemsize


def _formula(type_: ValueType, spaces: Spaces) -> sympy.Expr:
    """Bytes of a value on part p."""
    count = sympy.Integer(type_.dtype.itemsize)
    for dim in type_.dims:
        count *= spaces.sizes[dim.space] * dim.before * dim.after if isinstance(dim, Rows) else dim
    return sympy.expand(count.subs({s: sympy.Symbol(f"{s.name}_p") for s in count.free_symbols}))


def _share(types: Sequence[ValueType], nbytes: int, sizes: Mapping[str, int], spaces: Spaces) -> sympy.Expr:
    """Bytes of a value of these types, of which `nbytes` are its own: some of several results, or what a view sees."""
    counts = [_nbytes(t, sizes) for t in types]
    chosen = _most_that_sum_to(nbytes, counts)
    if chosen:
        return sympy.expand(sum((_formula(types[k], spaces) for k in chosen), sympy.Integer(0)))
    largest = max(range(len(types)), key=counts.__getitem__)
    if not counts[largest]:
        return sympy.Integer(nbytes)
    return sympy.expand(_formula(types[largest], spaces) * sympy.Rational(nbytes, counts[largest]))


def _most_that_sum_to(total: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Places of as many numbers as possible that sum to `total`; none where none do, or there are too many sums."""
    best: dict[int, tuple[int, ...]] = {0: ()}
    for place, count in enumerate(counts):
        for before, chosen in list(best.items()):
            reached = before + count
            if reached <= total and len(best.get(reached, ())) <= len(chosen):
                best[reached] = (*chosen, place)
        if len(best) > _MOST_SUMS:
            return ()
    return best.get(total, ())


def _chunk(schedule: ins.Schedule, buffer: str, nbytes: int) -> sympy.Expr:
    """Bytes of a message: rows of one chunk."""
    for step in schedule.instructions:
        if isinstance(step, ins.PostRecv | ins.Send) and step.buffer == buffer and step.rows:
            return sympy.Symbol(f"C_{schedule.rank}{step.peer}") * sympy.Rational(nbytes, step.rows)
    return sympy.Integer(nbytes)


def _workspace(program: Program, step: ins.Instruction, nbytes: int, per_edge: int, state: PartState) -> sympy.Expr:
    """Bytes that a block of edges, or a draw, needs beside its operands and results."""
    named = getattr(step, "call", "") or getattr(step, "node", "")
    node = next((n for n in program.graph.nodes if n.name == named), None)
    if node is None or not nbytes:
        return sympy.Integer(nbytes)
    sizes = state.sizes_of(program.spaces)[0]
    if not isinstance(step, ins.RunBlock):
        return _share((node.meta["type"],), nbytes, sizes, program.spaces)
    edges = node.args[0]
    local = edges.remote is None or (not step.fetched and not step.partial and per_edge * sizes[edges.space] <= nbytes)
    name = f"{edges.space}_p" if local else f"{edges.space}_{state.rank}{step.peer}"
    return per_edge * sympy.Symbol(name) + _over_rows(nbytes, per_edge, sizes[edges.space], edges, sizes)


def _over_rows(nbytes: int, per_edge: int, edges_here: int, edges: EdgeProgram, sizes: Mapping[str, int]) -> sympy.Expr:
    """The rest of a workspace: copies of tables, which have a row for each of theirs."""
    rest = nbytes - per_edge * edges_here
    space = next((o.type.spaces[0] for o in edges.operands if o.type.spaces and o.column is None), "N")
    each, rest = divmod(rest, sizes[space]) if sizes.get(space) else (0, rest)
    return each * sympy.Symbol(f"{space}_p") + rest
