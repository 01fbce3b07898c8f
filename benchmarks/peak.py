"""Peak memory of one contestant's training step, in a process of its own.

The process returns every freed block of 64 KiB or more to the system at once (glibc's MALLOC_ settings), so that
resident bytes follow live bytes: "peak" is the highest resident size during one forward and backward pass less that
before it, after warm-up steps; "saved" is what the step holds between its two passes, its result included.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.contestants import TRAINING, Case, Function
from benchmarks.graphs import Graph
from benchmarks.options import Options, set_threads

REPOSITORY = Path(__file__).resolve().parents[1]
TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
LIMIT_S = 1800


@dataclass(frozen=True)
class Peak:
    """Bytes beyond what lay in memory before the step: at its highest, and between the passes."""

    peak: int
    saved: int


def child_peak(benchmark: str, case: str, graph: Graph, contestant: str, options: Options) -> Peak:
    """The peak of a contestant, measured in a child process.

    Args:
        benchmark: module with `cases(options)`.
        case: name of one of these, on `graph`.

    Raises:
        RuntimeError: the child failed; the last line of what it said.
    """
    sizes = {"nodes": graph.num_nodes, "degree": graph.num_edges // graph.num_nodes}
    wanted = dataclasses.replace(options, **sizes, only=(case,), contestants=(contestant,), json=None)
    threads = str(options.threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak", benchmark, json.dumps(dataclasses.asdict(wanted))],
        env={**os.environ, **TIGHT, "OMP_NUM_THREADS": threads},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"child ended with {done.returncode}: {said[-1] if said else 'no message'}")
    return Peak(**json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """The child: benchmark and options from the command line, the peak as JSON on the last line."""
    benchmark, text = sys.argv[1:]
    given = json.loads(text)
    options = Options(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    set_threads(options.threads)
    case = next(iter(importlib.import_module(benchmark).cases(options)))
    contestant = next(c for c in case.contestants if c.name == options.contestants[0])
    case.refresh(0)
    print(json.dumps(dataclasses.asdict(measure(case, contestant.build()))))


def measure(case: Case, function: Function) -> Peak:
    """Resident bytes of one training step, after two that warm up."""
    for _ in range(2):
        case.steps(function)[TRAINING]()
    release = getattr(getattr(function, "module", None), "release_memory", None)
    if release is not None:  # sarc keeps memory for the next step: what a step needs counts
        release()
    settle()
    before = resident("Rss")
    Path("/proc/self/clear_refs").write_text("5")
    out = function(*case.inputs)
    ctypes.CDLL(None).malloc_trim(0)
    saved = resident("Rss") - before
    gradients = torch.autograd.grad(out, case.wrt, case.cotangent)
    peak = high_water() - before
    del out, gradients
    return Peak(max(peak, 0), max(saved, 0))


def settle() -> None:
    """Give freed memory back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident(field: str) -> int:
    """A field of /proc/self/smaps_rollup in bytes: exact, other than that of /proc/self/status."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024


def high_water() -> int:
    """VmHWM in bytes: the highest resident size since /proc/self/clear_refs was written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024


if __name__ == "__main__":
    main()
