"""Process groups: starting one that survives torchrun restarts, and summing gradients outside a compiled module."""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist
from torch import nn

from sarc.errors import PartitionError
from sarc.runtime.collectives import carrier
from sarc.runtime.together import all_reduce


def init_distributed(backend: str = "gloo", timeout: float = 300.0) -> None:
    """Join the process group of a torchrun job.

    The store is scoped by the restart count of the job: addresses that a killed attempt left behind are never read.

    Args:
        backend: of torch.distributed: "gloo" carries tensors of any device through the CPU; "nccl" is for one GPU a
            rank, which becomes the rank's current device.
        timeout: seconds until a collective or a message that a peer never joins raises.

    Raises:
        PartitionError: not started by torchrun.
    """
    if dist.is_initialized():
        return
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise PartitionError(
            f"sarc.init_distributed() needs torchrun's environment, {', '.join(missing)} not set: start with "
            f"torchrun --standalone --nproc-per-node P script.py, or run in one process without it"
        )
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % max(1, torch.cuda.device_count()))
    limit = datetime.timedelta(seconds=timeout)
    # Under torchrun the agent owns the store; its port serves every attempt of the job.
    owns = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, owns, limit)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backend, store=dist.PrefixStore(f"attempt{attempt}", store), rank=rank, world_size=world, timeout=limit
    )


def all_reduce_gradients(module: nn.Module) -> None:
    """Sum the gradients of a module's parameters over ranks, in place.

    For parameters outside a compiled module: those inside arrive summed. A parameter without a gradient on this rank
    counts as zero if another rank has one.
    """
    if not dist.is_initialized():
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=carrier())
    all_reduce(has, "max", "all-reduce of gradients")
    for parameter, present in zip(parameters, has.tolist(), strict=True):
        if not present:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        whole = parameter.grad.to(carrier()).contiguous()
        all_reduce(whole, "sum", "all-reduce of gradients")
        parameter.grad.copy_(whole)


def available_backends() -> dict[str, bool]:
    """Which transports this build of PyTorch has, by name."""
    if not dist.is_available():
        return {"gloo": False, "nccl": False}
    return {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
