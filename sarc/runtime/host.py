"""Host: the parts that this process runs, and what all ranks agree on when a model is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sarc.errors import PartitionError, UnsupportedModelError
from sarc.partition.layout import Part, Partitions
from sarc.partition.shard import ranks_of_process
from sarc.runtime.collectives import carrier, gather_objects, run_collective
from sarc.runtime.known_columns import KnownColumns
from sarc.runtime.neighbours import meet
from sarc.runtime.transport import Transport


@dataclass(frozen=True)
class Host:
    """The parts of this process.

    Attributes:
        partitions: holds the hosted parts.
        transport: reaches the others.
        whole: whether tensors of this process have the whole graph's rows, in the graph's order.
        zero_in_degree: whether some node of the whole graph has no in-edge.
        known: columns that each hosted part has mapped, by part and device.
        moved: parts, and the owners of nodes (under -1), on other devices than the CPU, by part and device.
    """

    partitions: Partitions
    transport: Transport
    whole: bool
    zero_in_degree: bool
    known: dict[tuple[int, torch.device], KnownColumns] = field(default_factory=dict)
    moved: dict[tuple[int, torch.device], Any] = field(default_factory=dict)

    def part_on(self, rank: int, device: torch.device) -> Part:
        """A hosted part with its tensors on a device; moved once."""
        part = self.partitions.part(rank)
        return part if device.type == "cpu" else self._moved(rank, device, part)

    def assignment_on(self, device: torch.device) -> Tensor | None:
        """The owner of every node when this process holds the whole graph, on a device."""
        owners = self.partitions.assignment if self.whole else None
        return owners if device.type == "cpu" or owners is None else self._moved(-1, device, owners)

    def _moved(self, rank: int, device: torch.device, what: Any) -> Any:
        if (rank, device) not in self.moved:
            self.moved[rank, device] = what.to(device)
        return self.moved[rank, device]

    @property
    def rows(self) -> dict[str, int]:
        """Rows of nodes "N" and edges "E" of this process."""
        parts = self.partitions.parts.values()
        return {"N": sum(p.node_ids.numel() for p in parts), "E": sum(p.edge_ids.numel() for p in parts)}

    @property
    def edge_index(self) -> Tensor | None:
        """int64 [2, E] of the whole graph when this process holds all of it."""
        return self.partitions.edge_index if self.whole else None


@dataclass(frozen=True)
class _Claim:
    """What one rank brings to `compile`."""

    seed: int
    model: tuple
    parts: tuple[int, ...]
    num_parts: int
    fingerprint: str
    zero_in_degree: bool
    share: bool


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def host_alone(partitions: Partitions) -> Host:
    """The host of a process without peers.

    Raises:
        PartitionError: it does not hold every part.
    """
    if not partitions.is_whole:
        raise PartitionError(
            f"{len(partitions.parts)} of {partitions.num_parts} parts are held by this process and there is no "
            f"process group: start under torchrun and call sarc.init_distributed() first, or load all parts"
        )
    transport = Transport(partitions.num_parts, sorted(partitions.parts))
    return Host(partitions, transport, True, _misses_in_edges(partitions))


def host_together(model: nn.Module, partitions: object, seed: int, share: bool) -> tuple[Host, int]:
    """This rank's host and the seed of all ranks; gives every rank rank 0's parameters and buffers.

    Every rank calls it, and an error of one is raised on all.

    Args:
        share: whether messages to ranks of this machine may lie in memory that stays there between steps.

    Raises:
        PartitionError: the ranks hold other partitions, or not every part once.
        UnsupportedModelError: the ranks compile different models.
    """
    claim: _Claim | None = None
    if isinstance(partitions, Partitions):
        claim = _Claim(
            seed,
            _shapes(model),
            tuple(sorted(partitions.parts)),
            partitions.num_parts,
            partitions.fingerprint,
            _misses_in_edges(partitions),
            share,
        )
    claims: list[_Claim] = gather_objects(claim)
    if any(c is None for c in claims):
        raise PartitionError(
            "under torchrun expected the partitions of this rank's shard on every rank: parts = sarc.partition(...); "
            "shard = parts.shard(rank, x=x, ...); sarc.compile(model, shard.partitions)"
        )
    assert isinstance(partitions, Partitions)
    _check_models([c.model for c in claims])
    process_of = _processes(claims)
    _broadcast(model)
    meet()
    share = all(c.share for c in claims)
    transport = Transport(partitions.num_parts, sorted(partitions.parts), process_of, share=share)
    whole = partitions.is_whole and len(claims) == 1
    return Host(partitions, transport, whole, any(c.zero_in_degree for c in claims)), claims[0].seed


def _misses_in_edges(partitions: Partitions) -> bool:
    return any(p.edge_index[1].unique().numel() < p.node_ids.numel() for p in partitions.parts.values())


def _shapes(model: nn.Module) -> tuple:
    found = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        lazy = isinstance(tensor, nn.parameter.UninitializedParameter)
        found.append((name, None if lazy else tuple(tensor.shape), str(tensor.dtype)))
    return tuple(found)


def _check_models(models: Sequence[tuple]) -> None:
    for rank, model in enumerate(models):
        if model == models[0]:
            continue
        mine, first = dict.fromkeys(model), dict.fromkeys(models[0])
        other = [
            f"{n} {list(s or ())} {d}" for n, s, d in (*mine, *first) if ((n, s, d) in mine) != ((n, s, d) in first)
        ]
        raise UnsupportedModelError(
            f"rank {rank} compiles another model than rank 0: expected the same parameters and buffers on every rank, "
            f"got different {', '.join(other[:4]) or 'orders'}"
        )


def _processes(claims: Sequence[_Claim]) -> list[int]:
    """The process of every part; checks that each part is run once and that all ranks hold one partition."""
    world, first = len(claims), claims[0]
    for rank, claim in enumerate(claims):
        if (claim.num_parts, claim.fingerprint) != (first.num_parts, first.fingerprint):
            raise PartitionError(
                f"rank {rank} holds a partition of {claim.num_parts} parts ({claim.fingerprint[:12]}), rank 0 one of "
                f"{first.num_parts} ({first.fingerprint[:12]}): load the same partition on every rank"
            )
    held = [list(c.parts) for c in claims]
    if world > 1 and all(len(h) == first.num_parts for h in held):
        raise PartitionError(
            f"every rank holds all {first.num_parts} parts: expected each rank's own; use shard = "
            f"partitions.shard(rank, x=x, ...) or sarc.load_shard(folder), and shard.partitions"
        )
    if sorted(part for h in held for part in h) != list(range(first.num_parts)):
        if world > first.num_parts:
            advice = f"start {first.num_parts} processes, or partition again with num_parts={world}"
        else:
            usual = [list(ranks_of_process(first.num_parts, r, world)) for r in range(world)]
            advice = f"sarc.load_shard gives the ranks {usual}"
        raise PartitionError(
            f"expected each of the {first.num_parts} parts on one of {world} ranks, got {held}; {advice}"
        )
    owner = {part: rank for rank, h in enumerate(held) for part in h}
    return [owner[part] for part in range(first.num_parts)]


def _broadcast(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not isinstance(tensor, nn.parameter.UninitializedParameter):
                whole: Any = tensor.detach().to(carrier()).contiguous()
                run_collective("broadcast of parameters", partial(dist.broadcast, whole, src=0))
                tensor.copy_(whole)
