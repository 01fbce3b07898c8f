"""Prediction: the schedule of every part on a machine of given rates, by simulation.

An operator takes the longer of its operations at the machine's rate and its bytes at the machine's bandwidth (see
`sarc/cost.py`), plus what an instruction of its kind takes at least; a block of an edge program takes its share of the
edges. All parts run at once; a message arrives its bytes after both sides have posted it; an all-reduce ends when the
last part has come to it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from sarc.cost import call_cost
from sarc.ir import schedule as ins
from sarc.ir.edge_program import edge_call
from sarc.ir.program import Program


@dataclass(frozen=True)
class Rates:
    """What a machine does.

    Attributes:
        flops: operations a second.
        nbytes: bytes a second that operators read and write.
        sent: bytes a second of one message.
    """

    flops: float
    nbytes: float
    sent: float


@dataclass(frozen=True)
class Predicted:
    """Start and end of every instruction of one part's schedule, seconds from the start of the program."""

    rank: int
    stage: str
    starts: list[float]
    ends: list[float]


def measure_rates() -> Rates:
    """Rates of this machine, from a matrix product and a copy that is larger than its caches."""
    a = torch.rand(512, 512)
    big = torch.rand(16_000_000)
    into = torch.empty_like(big)
    product = _seconds(lambda: torch.mm(a, a), 10)
    copy = _seconds(lambda: into.copy_(big), 4)
    moved = 2 * big.nbytes / copy
    return Rates(2 * 512**3 / product, moved, moved / 2)


def least_seconds(kinds: Sequence[str], seconds: Sequence[float]) -> dict[str, float]:
    """What an instruction of each kind takes at least: the fastest tenth of those measured."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kind, spent in zip(kinds, seconds, strict=True):
        by_kind[kind].append(spent)
    return {kind: sorted(found)[len(found) // 10] for kind, found in by_kind.items()}


def _seconds(run: Callable[[], object], times: int) -> float:
    """The fastest of several runs."""
    run()
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def predict(
    program: Program,
    schedules: Sequence[ins.Schedule],
    states: Sequence[Any],
    rates: Rates,
    least: Mapping[str, float],
) -> list[Predicted]:
    """The run of a program over all parts.

    Args:
        schedules, states: of every part, in rank order.
        least: seconds that an instruction of each kind takes at least (see `least_seconds`).
    """
    costs = [_costs(program, s, state, rates, least) for s, state in zip(schedules, states, strict=True)]
    clocks = [_Clock(s, each, rates) for s, each in zip(schedules, costs, strict=True)]
    sent: dict[tuple[int, int], list[float]] = defaultdict(list)
    while any(not c.done for c in clocks):
        moved = [c.advance(sent) for c in clocks]
        if any(moved):
            continue
        waiting = [c for c in clocks if not c.done]
        meet = max(c.now for c in waiting)
        for clock in waiting:
            clock.meet(meet)
    return [Predicted(c.schedule.rank, c.schedule.stage, c.starts, c.ends) for c in clocks]


def _costs(
    program: Program, schedule: ins.Schedule, state: Any, rates: Rates, least: Mapping[str, float]
) -> list[float]:
    """Seconds of every instruction, waiting apart."""
    nodes = {n.name: n for n in program.graph.nodes}
    sizes = state.local_sizes()
    whole: dict[str, float] = {}

    def seconds(node: fx.Node) -> float:
        if node.name not in whole:
            flops, nbytes = call_cost(node, program.spaces).at(sizes)
            whole[node.name] = max(flops / rates.flops, nbytes / rates.nbytes)
        return whole[node.name]

    shares = {n.name: _shares(n, state) for n in nodes.values() if n.target is edge_call}
    exchanges = [i for i in schedule.instructions if isinstance(i, ins.AllToAll)]
    moved = {i.node: sum(m.nbytes for m in (*i.sends, *i.receives)) for i in exchanges}
    found = []
    for step in schedule.instructions:
        if isinstance(step, ins.Wait | ins.AllReduce | ins.AllToAll):
            found.append(0.0)
            continue
        spent = least.get(type(step).__name__, 0.0)
        if isinstance(step, ins.Launch):
            spent += seconds(nodes[step.node])
        elif isinstance(step, ins.RunBlock):
            spent += shares[step.call].get((step.peer, step.chunk), 1.0) * seconds(nodes[step.call])
        elif isinstance(step, ins.Send):
            spent += 2 * step.nbytes / rates.nbytes
        elif isinstance(step, ins.Finish):
            spent += 2 * moved[step.node] / rates.nbytes + moved[step.node] / rates.sent
        found.append(spent)
    return found


def _shares(node: fx.Node, state: Any) -> dict[tuple[int, int], float]:
    """The share of the part's edges in each block of an edge call."""
    edges, _, columns = node.args
    if edges.remote is None:
        return {}
    maps = [m for (name, _), m in state.columns.items() if name == columns[edges.remote].name and m.remote]
    if not maps:
        return {}
    total = max(1, sum(b.rows.numel() for b in maps[0].blocks))
    return {(b.peer, b.chunk): b.rows.numel() / total for b in maps[0].blocks}


class _Clock:
    """One part in the simulation."""

    def __init__(self, schedule: ins.Schedule, costs: list[float], rates: Rates):
        self.schedule, self.costs, self.rates = schedule, costs, rates
        self.now, self.place = 0.0, 0
        self.starts: list[float] = []
        self.ends: list[float] = []
        self._arrives: dict[str, tuple[tuple[int, int], int, int]] = {}
        self._posted: dict[int, int] = defaultdict(int)
        self._posted_at: dict[str, float] = {}

    @property
    def done(self) -> bool:
        return self.place == len(self.schedule.instructions)

    def advance(self, sent: Mapping[tuple[int, int], list[float]]) -> bool:
        """Run until a collective or a message that is not sent yet; returns whether anything ran."""
        before = self.place
        while not self.done:
            step = self.schedule.instructions[self.place]
            if isinstance(step, ins.AllReduce | ins.AllToAll):
                break
            until = self.now + self.costs[self.place]
            if isinstance(step, ins.PostRecv):
                pair = (step.peer, self.schedule.rank)
                self._arrives[step.buffer] = (pair, self._posted[step.peer], step.nbytes)
                self._posted[step.peer] += 1
                self._posted_at[step.buffer] = until
            elif isinstance(step, ins.Send):
                sent[self.schedule.rank, step.peer].append(until)
            elif isinstance(step, ins.Wait) and step.buffer in self._arrives:
                pair, number, nbytes = self._arrives[step.buffer]
                if len(sent[pair]) <= number:
                    break
                both = max(sent[pair][number], self._posted_at[step.buffer])
                until = max(self.now, both + nbytes / self.rates.sent)
            self._step(until)
        return self.place > before

    def meet(self, moment: float) -> None:
        """Take part in the collective that every part has come to."""
        self._step(moment)

    def _step(self, until: float) -> None:
        self.starts.append(self.now)
        self.ends.append(until)
        self.now = until
        self.place += 1
