"""Run the contestants of a case: build, check, time in turn, measure memory, report."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Protocol

from benchmarks.contestants import TRAINING, Contestant, Function, Step
from benchmarks.graphs import Graph
from benchmarks.memory_limit import memory_limit
from benchmarks.options import Options
from benchmarks.peak import child_peak
from benchmarks.report import Report
from benchmarks.roof import roof
from benchmarks.timing import interleave, median_ratio, quartiles

COLUMNS = ("pass", "contestant", "ms", "low", "high", "ratio", "roof %", "peak MB", "saved MB", "error", "note")
BASE = "sarc"


class Contest(Protocol):
    """What a race needs of a case (`contestants.Case` is one)."""

    name: str
    graph: Graph
    contestants: Sequence[Contestant]
    width: int
    traversals: Mapping[str, tuple[int, int]]
    tolerance: float

    def refresh(self, seed: int) -> None: ...

    def error(self, function: Function, only_forward: bool) -> float: ...

    def steps(self, function: Function) -> dict[str, Step]: ...


def race(case: Contest, options: Options, report: Report, memory_of: str | None = None) -> None:
    """Add a row for every pass and contestant of `case` to the report, and show them.

    "ms" is the median, "low" and "high" the quartiles; "ratio" the median of time / time of sarc in the same
    repetition; "roof %" the least time at the measured gather rate as a share of the median; "error" that of the case.
    A contestant that cannot be built, fails or is wrong gets a row that says so and is not timed.

    Args:
        memory_of: module whose `cases(options)` finds the case again in a child process; None: no memory is measured.
    """
    invited = [c for c in case.contestants if options.invites(c.name)]
    with memory_limit():
        facts, steps = _prepare(case, invited)
        for kind in case.traversals:
            entered = [c.name for c in invited if c.name in steps and not _lacks(c, kind)]
            guarded = {name: _guard(steps[name][kind], facts[name]) for name in entered}
            times = interleave(guarded, case.refresh, options.repeat)
            times = {name: seconds for name, seconds in times.items() if "note" not in facts[name]}
            base = times.get(BASE) or next(iter(times.values()), [])
            for contestant in (c for c in invited if not _lacks(c, kind)):
                row: dict[str, object] = {"pass": kind, "contestant": contestant.name, **facts[contestant.name]}
                seconds = times.get(contestant.name)
                if seconds:
                    low, middle, high = (1e3 * s for s in quartiles(seconds))
                    row |= {"ms": middle, "low": low, "high": high, "ratio": median_ratio(seconds, base)}
                    row["roof %"] = _roof_share(case, options, kind, middle / 1e3)
                if kind == TRAINING and seconds and memory_of and options.memory:
                    row |= _peak(memory_of, case, contestant.name, options)
                report.add(graph=str(case.graph), case=case.name, **row)
    report.show()


def _prepare(
    case: Contest, contestants: Sequence[Contestant]
) -> tuple[dict[str, dict[str, object]], dict[str, dict[str, Step]]]:
    """By contestant: its "error", or the "note" that excludes it; by contestant that takes part: its steps by pass."""
    facts: dict[str, dict[str, object]] = {c.name: {} for c in contestants}
    steps: dict[str, dict[str, Step]] = {}
    for contestant in contestants:
        mine = facts[contestant.name]
        try:
            function = contestant.build()
            mine["error"] = case.error(function, contestant.only_forward)
        except Exception as failure:
            mine["note"] = _failed(failure)
            continue
        if mine["error"] <= case.tolerance:
            steps[contestant.name] = case.steps(function)
        else:
            mine["note"] = "wrong: not timed"
        gc.collect()
    return facts, steps


def _guard(step: Step, facts: dict[str, object]) -> Step:
    """The step, which at its first failure leaves a note and from then on does nothing."""

    def run() -> None:
        if "note" not in facts:
            try:
                step()
            except Exception as failure:
                facts["note"] = _failed(failure)

    return run


def _lacks(contestant: Contestant, kind: str) -> bool:
    return contestant.only_forward and kind == TRAINING


def _roof_share(case: Contest, options: Options, kind: str, seconds: float) -> float | None:
    if not case.width:
        return None
    measured = roof(case.graph, case.width, options.threads)
    return 100 * measured.seconds(case.width * 4, case.graph.num_edges, case.traversals[kind]) / seconds


def _peak(benchmark: str, case: Contest, contestant: str, options: Options) -> dict[str, object]:
    """ "peak MB" and "saved MB" (1e6 bytes) of a forward and backward pass."""
    try:
        found = child_peak(benchmark, case.name, case.graph, contestant, options)
    except RuntimeError as failure:
        return {"note": f"memory: {_first_line(failure)}"}
    return {"peak MB": found.peak / 1e6, "saved MB": found.saved / 1e6}


def _failed(failure: Exception) -> str:
    return f"failed: {type(failure).__name__}: {_first_line(failure)}"


def _first_line(failure: BaseException) -> str:
    lines = [line for line in str(failure).splitlines() if line.strip()]
    return lines[0][:160] if lines else ""
