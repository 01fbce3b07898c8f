"""What all ranks do together: as neighbours where all of them are and have met, else by the process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sarc.runtime import collectives
from sarc.runtime.collectives import carrier, run_collective
from sarc.runtime.neighbours import Neighbours, neighbours_of

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def _all_near(group: dist.ProcessGroup | None) -> Neighbours | None:
    found = neighbours_of(group)
    return found if found is not None and found.are_all else None


def gather_objects(value: object, group: dist.ProcessGroup | None = None) -> list[Any]:
    """A small Python object of every process, in rank order.

    Raises:
        ExchangeError: a rank does not join in time or has died; so does every function here.
    """
    near = _all_near(group)
    return collectives.gather_objects(value, group) if near is None else near.gather_objects(value)


def gather_numbers(
    numbers: Sequence[int], what: str, group: dist.ProcessGroup | None = None
) -> list[tuple[int, ...]]:
    """As many int64 numbers of every process, in rank order."""
    near = _all_near(group)
    mine = torch.tensor(numbers, dtype=torch.int64)
    if near is not None:
        found = near.all_gather(mine.view(torch.uint8), what)
        return [tuple(each.content.view(torch.int64).tolist()) for each in found]
    mine = mine.to(carrier(group))
    everyone = mine.new_empty((dist.get_world_size(group), mine.numel()))
    rows = list(everyone.unbind())
    run_collective(what, lambda: dist.all_gather(rows, mine, group), group)
    return [tuple(row) for row in everyone.tolist()]


def all_reduce(tensor: Tensor, op: str, what: str, group: dist.ProcessGroup | None = None) -> None:
    """Combine a contiguous tensor of every process in place: "sum", "max" or "min".

    Args:
        tensor: where the group carries tensors (`sarc.runtime.collectives.carrier`).
    """
    near = _all_near(group)
    if near is not None:
        near.all_reduce(tensor, op, what)
    else:
        run_collective(what, lambda: dist.all_reduce(tensor, _OPS[op], group), group)
