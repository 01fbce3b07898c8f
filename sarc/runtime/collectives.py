"""Collectives of a process group that all ranks join, and what an error says when one of them does not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from sarc.errors import ExchangeError

# How long a rank that has met an error waits for the others to meet it too.
_ROLL_CALL_SECONDS = 3.0


def carrier(group: dist.ProcessGroup | None = None) -> torch.device:
    """Where the tensors are that a process group carries: on the current GPU for NCCL, else on the CPU."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def run_collective(what: str, run: Callable[[], object], group: dist.ProcessGroup | None = None) -> None:
    """Run a collective; ExchangeError when a rank does not join it in time or has died."""
    try:
        run()
    except RuntimeError as error:
        raise ExchangeError(
            f"rank {dist.get_rank(group)}: {what} failed: {first_line(error)}; every rank must compile and "
            f"call the model the same number of times and in the same order, and all of them must be alive"
        ) from error


def first_line(error: Exception) -> str:
    """What gloo says, without its source file and its advice to read other logs."""
    text = str(error).splitlines()[0].split(". This is typically")[0]
    return re.sub(r"^\[[^\]]*\] ", "", text)


def gather_objects(value: object, group: dist.ProcessGroup | None = None) -> list[Any]:
    """A small Python object of every process, in rank order."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    run_collective("all-gather", lambda: dist.all_gather_object(everyone, value, group), group)
    return everyone


def name_missing(group: dist.ProcessGroup | None) -> str:
    """Which ranks do not answer: those that have met an error as well say so in the job's store."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"sarc/failed/{rank}", "1")
        until = time.monotonic() + _ROLL_CALL_SECONDS
        missing = list(range(world))
        while missing and time.monotonic() < until:
            missing = [r for r in missing if not store.check([f"sarc/failed/{r}"])]
            time.sleep(0.05)
    except RuntimeError:
        return "a peer has stopped or died, and the job's store with it"
    if not missing:
        return "every rank has met an error"
    return f"peer {', '.join(f'rank {r}' for r in missing)} does not answer: it has stopped, died or lags behind"
