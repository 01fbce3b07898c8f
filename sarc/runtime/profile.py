"""Profile: when every instruction of a schedule ran, and which bytes were alive after it.

    with sarc.profile("trace.json") as measured:
        loss = sarc.cross_entropy(compiled(x, edge_index), y, mask)
        loss.backward()

Times are seconds of the machine's clock, so that the ranks of one machine line up. In one process the parts are stepped
in turn: an instruction that waits lasts until the part goes on, and other parts run meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sarc.ir import schedule as ins
from sarc.ir.program import Program
from sarc.runtime.memory_log import MemoryLog
from sarc.runtime.together import gather_objects
from sarc.runtime.trace import chrome_trace
from sarc.runtime.work import Work

# Set by `profile` for the code inside its block alone; a call of a compiled module hands it to its steps.
_CURRENT: ContextVar[Profile | None] = ContextVar("sarc_profile", default=None)


@dataclass
class PartRun:
    """One run of a schedule on one part.

    Attributes:
        rank: the part.
        stage: "forward" or "backward".
        number: of the run; a call's backward has one more than its forward.
        names: text of each instruction.
        kinds: class of each instruction.
        values: value or edge call that each instruction belongs to ("" for frees).
        lines: the user's line of each instruction.
        buffers: message buffer of each instruction, or "".
        starts, ends: seconds, one for each instruction that has run.
        memory: bytes alive, when asked for.
    """

    rank: int
    stage: str
    number: int
    names: list[str]
    kinds: list[str]
    values: list[str]
    lines: list[str]
    buffers: list[str]
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    memory: MemoryLog | None = None

    @property
    def seconds(self) -> float:
        """From the first instruction's start to the last one's end."""
        return self.ends[-1] - self.starts[0] if self.ends else 0.0


class Profile:
    """What was measured inside a `profile` block.

    Attributes:
        runs: one for each run of a schedule on a part, in the order they began; under torchrun those of all ranks, on
            rank 0, once the block has ended.
    """

    def __init__(self, *, memory: bool = True):
        self.runs: list[PartRun] = []
        self._memory = memory
        self._open: dict[tuple[int, int], PartRun] = {}
        self._offset = time.time() - time.perf_counter()

    def watch(self, executor: Any, place: int, step: Work) -> Work:
        """`step`, the instruction at `place` of the executor's schedule, with its time taken."""
        run = self._run(executor)
        started = time.perf_counter()
        with _annotation(run.names[place]):
            yield from step
        run.starts.append(started + self._offset)
        run.ends.append(time.perf_counter() + self._offset)
        if run.memory is not None:
            run.memory.after(
                executor.schedule.instructions[place], executor.env, executor.chunks, executor.workspace
            )
            if place + 1 == len(executor.schedule.instructions):
                run.memory.finish()

    def _run(self, executor: Any) -> PartRun:
        key = (executor.state.rank, executor.number)
        if key not in self._open:
            run = describe_run(executor.program, executor.schedule, executor.number)
            if self._memory:
                run.memory = MemoryLog(executor.program)
                run.memory.start(executor.env)
            self._open[key] = run
            self.runs.append(run)
        return self._open[key]

    def gather(self) -> None:
        """Under torchrun, the runs of every rank on rank 0; every rank calls it."""
        if dist.is_available() and dist.is_initialized():
            everyone = gather_objects(self.runs)
            if dist.get_rank() == 0:
                self.runs = [run for theirs in everyone for run in theirs]

    def trace(self) -> dict[str, Any]:
        """The runs as a Chrome trace (see `chrome_trace`)."""
        return chrome_trace(self.runs)

    def __reduce__(self):
        return _restore, (self.runs,)


def _restore(runs: list[PartRun]) -> Profile:
    made = Profile()
    made.runs = runs
    return made


@contextmanager
def profile(path: str | PathLike[str] | None = None, *, memory: bool = True) -> Iterator[Profile]:
    """Measure every compiled call inside the block, and its backward pass.

    Args:
        path: file for a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: one process a rank, with a
            track of its runs, of what it computes and of what it exchanges, and the messages on their way.
        memory: also keep the bytes alive after every instruction.

    Under torchrun every rank enters and leaves the block; rank 0 receives all ranks' runs and writes the file. Inside a
    `torch.profiler.profile` block, instructions appear there by name as well.
    """
    measured = Profile(memory=memory)
    token = _CURRENT.set(measured)
    try:
        yield measured
    finally:
        _CURRENT.reset(token)
    measured.gather()
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    if path is not None and first:
        Path(path).write_text(json.dumps(measured.trace(), separators=(",", ":")), encoding="utf-8")


def current_profile() -> Profile | None:
    """The profile of the innermost `profile` block."""
    return _CURRENT.get()


def describe_run(program: Program, schedule: ins.Schedule, number: int) -> PartRun:
    """A run of `schedule` that has not begun."""
    lines = {n.name: n.meta.get("loc", "") for n in program.graph.nodes}
    made = PartRun(schedule.rank, schedule.stage, number, [], [], [], [], [])
    for step in schedule.instructions:
        buffer = str(getattr(step, "buffer", ""))
        value = str(getattr(step, "node", "") or getattr(step, "call", "") or buffer.split(".")[0])
        made.names.append(" ".join(str(step).split()))
        made.kinds.append(type(step).__name__)
        made.values.append(value)
        made.lines.append(lines.get(value, ""))
        made.buffers.append(buffer)
    return made


def _annotation(name: str):
    """The instruction's name in torch.profiler, when that is on."""
    return torch.profiler.record_function(f"sarc: {name}") if torch.autograd._profiler_enabled() else nullcontext()
