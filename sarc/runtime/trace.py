"""A profile in Chrome's trace format, which Perfetto and chrome://tracing read.

One process a rank. Its threads are: the runs of whole programs; what it computes; what it exchanges (posting, waiting,
all-reducing); and every message from the moment it is posted to the end of the wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

RUNS, COMPUTE, EXCHANGE = range(3)
TRACKS = {RUNS: "programs", COMPUTE: "compute", EXCHANGE: "exchange"}
LANES = {
    "Launch": COMPUTE, "Begin": COMPUTE, "RunBlock": COMPUTE, "Combine": COMPUTE, "Free": COMPUTE,
    "PostRecv": EXCHANGE, "Send": EXCHANGE, "Wait": EXCHANGE, "AllReduce": EXCHANGE,
    "AllToAll": EXCHANGE, "Finish": EXCHANGE,
}  # fmt: skip


class Run(Protocol):
    """A run of a schedule on a part (`sarc.runtime.profile.PartRun`)."""

    rank: int
    stage: str
    number: int
    names: list[str]
    kinds: list[str]
    values: list[str]
    lines: list[str]
    buffers: list[str]
    starts: list[float]
    ends: list[float]
    memory: Any


def chrome_trace(runs: Sequence[Run]) -> dict[str, Any]:
    """The trace of `runs`; time begins at the first of them."""
    zero = min((run.starts[0] for run in runs if run.starts), default=0.0)
    events: list[dict[str, Any]] = []
    for rank in sorted({run.rank for run in runs}):
        events.append(_meta("process_name", rank, RUNS, f"rank {rank}"))
        events.append({"ph": "M", "name": "process_sort_index", "pid": rank, "tid": RUNS, "args": {"sort_index": rank}})
        events += [_meta("thread_name", rank, track, name) for track, name in TRACKS.items()]
    for run in runs:
        events += _run_events(run, zero)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _meta(name: str, rank: int, track: int, value: str) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": rank, "tid": track, "args": {"name": value}}


def _run_events(run: Run, zero: float) -> list[dict[str, Any]]:
    if not run.starts:
        return []

    def microseconds(moment: float) -> float:
        return round((moment - zero) * 1e6, 3)

    first, last = microseconds(run.starts[0]), microseconds(run.ends[-1])
    about = {"run": run.number}
    events = [
        {"ph": "X", "name": run.stage, "pid": run.rank, "tid": RUNS, "ts": first, "dur": last - first, "args": about}
    ]
    posted: dict[str, int] = {}
    for k, (start, end) in enumerate(zip(run.starts, run.ends, strict=True)):
        kind, at, until = run.kinds[k], microseconds(start), microseconds(end)
        if kind == "Free":
            continue
        events.append({
            "ph": "X", "name": run.names[k], "cat": kind, "pid": run.rank, "tid": LANES[kind], "ts": at,
            "dur": round(until - at, 3), "args": {"value": run.values[k], "line": run.lines[k], "run": run.number},
        })  # fmt: skip
        if kind in ("PostRecv", "Send", "AllToAll"):
            posted[run.buffers[k]] = k
        elif kind in ("Wait", "Finish") and run.buffers[k] in posted:
            began = posted.pop(run.buffers[k])
            message = {"cat": "message", "name": run.names[began], "pid": run.rank, "tid": EXCHANGE}
            message["id"] = f"{run.rank}.{run.number}.{run.buffers[k]}"
            events.append({"ph": "b", "ts": microseconds(run.starts[began]), **message})
            events.append({"ph": "e", "ts": until, **message})
    if run.memory is not None:
        for end, live in zip(run.ends, run.memory.live, strict=True):
            counter = {"ph": "C", "name": "bytes alive", "pid": run.rank, "ts": microseconds(end)}
            events.append({**counter, "args": {"bytes": live}})
    return events
