"""Run the contestants of a case: build, check, time in turn, measure memory, report."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Protocol

from benchmarks.contestants import TRAINING, Contestant, Function, Step
from benchmarks.graphs import Graph
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
    functions: dict[str, Function] = {}
    facts: dict[str, dict[str, object]] = {c.name: {} for c in invited}
    for contestant in invited:
        try:
            function = contestant.build()
            error = case.error(function, contestant.only_forward)
        except Exception as failure:
            facts[contestant.name]["note"] = f"failed: {type(failure).__name__}: {_first_line(failure)}"
        else:
            facts[contestant.name]["error"] = error
            if error <= case.tolerance:
                functions[contestant.name] = function
            else:
                facts[contestant.name]["note"] = "wrong: not timed"
        gc.collect()
    steps = {c.name: case.steps(functions[c.name]) for c in invited if c.name in functions}
    for kind in case.traversals:
        entered = {c.name: steps[c.name][kind] for c in invited if c.name in steps and not _lacks(c, kind)}
        times = interleave(entered, case.refresh, options.repeat)
        base = times.get(BASE) or next(iter(times.values()), [])
        for contestant in (c for c in invited if not _lacks(c, kind)):
            row: dict[str, object] = {"pass": kind, "contestant": contestant.name, **facts[contestant.name]}
            seconds = times.get(contestant.name)
            if seconds:
                low, middle, high = quartiles(seconds)
                row |= {"ms": middle * 1e3, "low": low * 1e3, "high": high * 1e3, "ratio": median_ratio(seconds, base)}
                row["roof %"] = _roof_share(case, options, kind, middle)
            if kind == TRAINING and seconds and memory_of and options.memory:
                row |= _peak(memory_of, case, contestant.name, options)
            report.add(graph=str(case.graph), case=case.name, **row)
    report.show()


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


def _first_line(failure: BaseException) -> str:
    lines = [line for line in str(failure).splitlines() if line.strip()]
    return lines[0][:160] if lines else ""
