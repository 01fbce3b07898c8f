"""Runs checks on several ranks: one process a rank, as torchrun starts them, several checks a start.

A check is a module-level function `check(world: World) -> value`; every rank runs the same checks in order. The
processes are forked from a server that has imported torch once: a start costs a fraction of a second instead of the
seconds of an import on each rank.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Check = Callable[["World"], Any]


@dataclass(frozen=True)
class World:
    """What a check knows of the job: this process's rank, the number of ranks, a folder that all of them see."""

    rank: int
    size: int
    folder: Path


def launch(size: int, checks: Sequence[Check], folder: Path, timeout: float = 60.0) -> list[dict[str, Any]]:
    """Each rank's return value of every check, by the check's name.

    Args:
        timeout: of the process group, seconds.

    Raises:
        AssertionError: a check failed, or a process died; with what every rank printed.
    """
    outcomes = launch_raw(size, checks, folder, timeout)
    failures = [f"rank {r}: {name}:\n{e}" for r, (_, errors, _) in enumerate(outcomes) for name, e in errors.items()]
    names = [c.__name__ for c in checks]
    failures += [f"rank {r} ended early:\n{log}" for r, (v, e, log) in enumerate(outcomes) if {*v, *e} != set(names)]
    assert not failures, "\n".join(failures)
    return [values for values, _, _ in outcomes]


def launch_raw(
    size: int, checks: Sequence[Check], folder: Path, timeout: float = 60.0
) -> list[tuple[dict[str, Any], dict[str, str], str]]:
    """For each rank: return values, tracebacks of failed checks, and its output; ranks stop at their first failure."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch_geometric.nn", "sarc", "torch._dynamo"])
    port = _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    args = (size, port, list(checks), folder, timeout)
    processes = [context.Process(target=_run_rank, args=(rank, *args), daemon=True) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.is_alive():
            process.kill()
            process.join()
    outcomes = []
    for rank in range(size):
        path = folder / f"rank{rank}.pickle"
        values, errors = pickle.loads(path.read_bytes()) if path.exists() else ({}, {})
        outcomes.append((values, errors, (folder / f"rank{rank}.log").read_text()))
    return outcomes


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run_rank(rank: int, size: int, port: int, checks: Sequence[Check], folder: Path, timeout: float) -> None:
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    import sarc

    sarc.init_distributed(timeout=timeout)
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for check in checks:
        try:
            values[check.__name__] = check(World(rank, size, folder))
        except Exception:
            errors[check.__name__] = traceback.format_exc()
        (folder / f"rank{rank}.new").write_bytes(pickle.dumps((values, errors)))
        (folder / f"rank{rank}.new").replace(folder / f"rank{rank}.pickle")
        if errors:
            break
    # Without the destructors of torch.distributed, which wait for ranks that a check has ended on purpose.
    sys.stdout.flush()
    sys.stderr.flush()
    if rank == 0 and not errors:
        _wait_for_others(folder, size, len(checks))
    os._exit(0)


def _wait_for_others(folder: Path, size: int, count: int) -> None:
    """Rank 0 holds the store: it leaves last."""
    import time

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        done = 0
        for rank in range(1, size):
            path = folder / f"rank{rank}.pickle"
            if path.exists():
                values, errors = pickle.loads(path.read_bytes())
                done += len(values) == count or bool(errors)
        if done == size - 1:
            return
        time.sleep(0.02)
