"""Plan: what a compiled call exchanges, stores and keeps, in rows and bytes, for the parts of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from sarc.ir.collective import all_reduce
from sarc.ir.edge_program import EdgeProgram, edge_call, fetch_layout, return_layout
from sarc.ir.placement import Choice
from sarc.ir.program import Program
from sarc.ir.space import Rows, ValueType
from sarc.runtime.binding import Binding
from sarc.runtime.logs import log
from sarc.runtime.memory_plan import MemoryPlan, make_memory_plans
from sarc.runtime.part_state import PartState
from sarc.runtime.plan_exchanges import ExchangePlan, plan_exchanges


@dataclass(frozen=True)
class EdgePlan:
    """One edge program of one direction.

    Attributes:
        stage: "forward" or "backward".
        name: of the edge program, as in the printed program.
        loc: the user's line.
        space: the edges it visits.
        folds: its results: "sum", "amax", ..., "contract sum", "store".
        fetched: values whose rows are fetched from other parts.
        returned: number of results whose partial rows are sent back to other parts.
        fetch_row_bytes, return_row_bytes: bytes of one row each way.
        sent_bytes: payload this process sends for it, chunk by chunk, in one run.
        stored_bytes: edge rows it leaves whole in memory (base lowering), this process.
        runs: "kernel", "blocks of torch" or "reference"; and why it is no kernel, where one was asked for
            (`sarc.codegen.coverage.Run`).
    """

    stage: str
    name: str
    loc: str
    space: str
    folds: tuple[str, ...]
    fetched: tuple[str, ...]
    returned: int
    fetch_row_bytes: int
    return_row_bytes: int
    sent_bytes: int
    stored_bytes: int
    runs: Any


@dataclass(frozen=True)
class Plan:
    """A call's plan. Bytes are those of this process's parts, for one forward and one backward.

    Attributes:
        num_parts: P; hosted: those of this process.
        chunk_limit: most chunk buffers alive on a part.
        edges: its edge programs, in order.
        exchanges: what parts exchange, in order.
        prologue: name, type and bytes of each value that is made of data, once a feature matrix, and kept.
        prologue_exchanges: what parts exchange for it, once.
        saved: name, type and bytes of each value kept between forward and backward.
        all_reduces: number and payload bytes of one part's all-reduces, by stage.
        work: formulas of the operations and bytes that the whole graph costs, by stage (`sarc.cost.Cost`).
        placements: where each edge program that reaches other parts runs, with the candidates, by stage; their bytes
            are those of all parts.
        memory: of each hosted part: bytes at the peak of a step, by category and as formulas, and over time.
        notes: choices between whole programs, with their prices.
    """

    num_parts: int
    hosted: tuple[int, ...]
    chunk_limit: int
    edges: tuple[EdgePlan, ...]
    exchanges: tuple[ExchangePlan, ...]
    prologue: tuple[tuple[str, str, int], ...]
    prologue_exchanges: tuple[ExchangePlan, ...]
    saved: tuple[tuple[str, str, int], ...]
    all_reduces: dict[str, tuple[int, int]]
    work: dict[str, Any]
    memory: tuple[MemoryPlan, ...]
    placements: tuple[tuple[str, Choice], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sent_bytes(self) -> int:
        """Payload bytes of all point-to-point messages that this process sends."""
        return sum(e.sent_bytes for e in self.exchanges)

    @property
    def saved_bytes(self) -> int:
        return sum(size for _, _, size in self.saved)

    @property
    def fallbacks(self) -> int:
        """Number of edge programs that plain torch runs although a kernel was asked for and should be there."""
        return sum(e.runs.is_fallback for e in self.edges)

    def __str__(self) -> str:
        hosted = ", ".join(map(str, self.hosted))
        lines = [
            f"plan of parts {hosted} of {self.num_parts}: sends {self.sent_bytes} B, keeps {self.saved_bytes} B "
            f"between forward and backward, at most {self.chunk_limit} chunks alive"
        ]
        for e in self.edges:
            moves = []
            if e.fetched:
                moves.append(f"fetches {', '.join(e.fetched)} ({e.fetch_row_bytes} B a row)")
            if e.returned:
                moves.append(f"returns {e.returned} folds ({e.return_row_bytes} B a row)")
            moves = moves or ["local"]
            stored = f"; stores edge rows, {e.stored_bytes} B" if e.stored_bytes else ""
            runs = f"{e.runs.how}, {e.runs.why}" if e.runs.why else e.runs.how
            at = f"   # {e.loc}" if e.loc else ""
            lines.append(
                f"  {e.stage:8} @{e.name} over {e.space}: {' + '.join(e.folds)}; {'; '.join(moves)}; "
                f"sends {e.sent_bytes} B{stored}; runs as {runs}{at}"
            )
        if self.placements:
            lines.append(
                "where edges run whose ends two parts own, bytes of all parts (H_pq source rows and B_pq destination "
                "rows have such edges; a cover has C_pq and D_pq of them):"
            )
        for stage, choice in self.placements:
            lines += placement_lines(stage, choice)
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {exchange}" for exchange in self.exchanges]
        for name, type_, size in self.prologue:
            lines.append(f"  once     %{name}: {type_}, made of data, once a feature matrix; keeps {size} B")
        lines += [f"  {exchange}" for exchange in self.prologue_exchanges]
        for name, type_, size in self.saved:
            lines.append(f"  saved    %{name}: {type_}, {size} B")
        for stage, (count, size) in self.all_reduces.items():
            lines.append(f"  {stage:8} {count} all-reduces, {size} B a part")
        for stage, cost in self.work.items():
            lines.append(f"  {stage:8} operations {cost.flops}; bytes moved {cost.nbytes} (whole graph)")
        lines += [f"  {line}" for each in self.memory for line in str(each).splitlines()]
        return "\n".join(lines)


def placement_lines(stage: str, choice: Choice) -> list[str]:
    """The candidates of an edge program, an arrow at the chosen one."""
    need = choice.need
    head = f"  {stage:8} {need.name}: "
    if choice.chosen is None:
        return [f"{head}at dst, {choice.reason}"]
    lines = [f"{head}at {choice.chosen.site}, {choice.reason}"]
    for candidate in choice.candidates:
        mark = "->" if candidate is choice.chosen else "  "
        lines.append(
            f"    {mark} {candidate.site:5} {candidate.nbytes} B = sum of {candidate.formula}; "
            f"{1e3 * candidate.seconds:.3f} ms predicted; {candidate.memory} B in memory"
        )
    return lines


Runs = Callable[[Program, Mapping[str, Any], torch.device], Mapping[str, Any]]


def log_binding(binding: Binding, cost: Callable[[Program], Any], runs: Runs) -> None:
    """What the log topics "plan" and "schedule" say of a newly bound variant."""
    log("plan", lambda: str(make_plan(binding, cost, runs)))
    for schedules in binding.schedules.values():
        for schedule in schedules:
            log("schedule", schedule.__str__)


def make_plan(binding: Binding, cost: Callable[[Program], Any], runs: Runs) -> Plan:
    """The plan of a bound variant.

    Args:
        cost: gives the formulas of a program.
        runs: says how a program's edge programs run, by name, given those that have kernels, on a device.
    """
    states = binding.order.states
    edges: list[EdgePlan] = []
    exchanges: list[ExchangePlan] = []
    reduces: dict[str, tuple[int, int]] = {}
    for stage, program in binding.programs.items():
        how = runs(program, binding.kernels[stage], states[0].device)
        for node in program.graph.nodes:
            if node.target is edge_call:
                edges.append(_edge_plan(stage, node, binding, states, how[node.args[0].name]))
        exchanges += plan_exchanges(stage, program, binding.schedules[stage], states)
        reduces[stage] = _all_reduces(program)
    saved = []
    forward = binding.programs["forward"]
    for node, out in zip(forward.returned, forward.outputs, strict=True):
        if out.kind == "saved":
            saved.append((out.name, str(node.meta["type"]), sum(_bytes(node.meta["type"], s) for s in states)))
    first = binding.schedules["forward"][0]
    return Plan(
        states[0].part.num_parts,
        tuple(s.rank for s in states),
        first.chunk_limit,
        tuple(edges),
        tuple(exchanges),
        *_prologue(binding),
        tuple(saved),
        reduces,
        {stage: cost(program) for stage, program in binding.programs.items()},
        make_memory_plans(binding),
        tuple(
            (stage, choice)
            for stage, choices in binding.placing.choices.items()
            for choice in choices
            if choice.chosen or choice.need.home_only
        ),
        binding.notes,
    )


def _prologue(binding: Binding) -> tuple[tuple[tuple[str, str, int], ...], tuple[ExchangePlan, ...]]:
    """What is made once of data, and exchanged for it."""
    made, states = binding.prologue, binding.order.states
    if made is None:
        return (), ()
    kept = tuple(
        (out.name, str(node.meta["type"]), sum(_bytes(node.meta["type"], s) for s in states))
        for node, out in zip(made.program.returned, made.program.outputs, strict=True)
    )
    return kept, tuple(plan_exchanges("once", made.program, made.schedules, states))


def _edge_plan(stage: str, node: fx.Node, binding: Binding, states, runs: Any) -> EdgePlan:
    program: EdgeProgram = node.args[0]
    values = node.args[1]
    schedules = binding.schedules[stage]
    fetch = fetch_layout(program, [v.meta["type"] for v in values], binding.programs[stage].spaces, schedules[0].wire)
    back = return_layout(program, binding.programs[stage].spaces, schedules[0].wire)
    sent = sum(m.nbytes for s in schedules for call, m in s.sends() if call == node.name)
    stored = sum(_bytes(r.type, s) for r in program.results if r.kind == "store" for s in states)
    return EdgePlan(
        stage,
        program.name,
        program.loc,
        program.space,
        tuple(f"contract {r.fold}" if r.kind == "contract" else r.fold or r.kind for r in program.results),
        tuple(f"%{values[key].name}" for key, *_ in fetch.entries),
        len(back.entries),
        fetch.row_bytes,
        back.row_bytes,
        sent,
        stored,
        runs,
    )


def _bytes(type_: ValueType, state: PartState) -> int:
    sizes = state.local_sizes()
    size = type_.dtype.itemsize
    for dim in type_.dims:
        size *= sizes[dim.space] * dim.before * dim.after if isinstance(dim, Rows) else dim
    return size


def _all_reduces(program: Program) -> tuple[int, int]:
    count = size = 0
    for node in program.graph.nodes:
        if node.target is all_reduce:
            count += 1
            entries = node.meta["type"].dtype.itemsize
            for dim in node.meta["type"].dims:
                entries *= dim
            size += entries
    return count, size
