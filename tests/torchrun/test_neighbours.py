"""Messages between ranks of one machine: what arrives is what was sent, memory is used again, failures are told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sarc.errors import ExchangeError
from sarc.runtime.neighbours import EXCHANGE, INLINE, Neighbours, meet
from tests.torchrun.launch import World, launch

pytestmark = pytest.mark.torchrun

TIMEOUT = 4.0


def together() -> Neighbours:
    near = meet()
    assert near is not None and near.are_all and meet() is near
    return near


def sums_equal_those_of_the_process_group(world: World) -> None:
    """Of every size: in frames, in blocks, in slices, and of fewer numbers than ranks."""
    near = together()
    for count in (0, 1, 2, 7, INLINE // 8, INLINE // 8 + 1, 50_000, 200_003):
        for dtype in (torch.float32, torch.float64, torch.int64, torch.uint8):
            for op, kind in (("sum", dist.ReduceOp.SUM), ("max", dist.ReduceOp.MAX), ("min", dist.ReduceOp.MIN)):
                random = torch.Generator().manual_seed(world.rank)
                mine = torch.randint(0, 50, (count,), generator=random).to(dtype)
                theirs = mine.clone()
                near.all_reduce(mine, op, "a sum")
                if count:
                    dist.all_reduce(theirs, kind)
                assert torch.equal(mine, theirs), (count, dtype, op)


def every_rank_has_the_same_bits(world: World) -> None:
    near = together()
    for count in (900, 100_000):
        mine = torch.randn(count, generator=torch.Generator().manual_seed(world.rank)) * 10.0**world.rank
        near.all_reduce(mine, "sum", "a sum")
        assert all(each == mine.tolist() for each in near.gather_objects(mine.tolist()))


def memory_is_used_again(world: World) -> None:
    """Messages of many sizes, read at once or an exchange later; no more blocks than are on their way."""
    near = together()
    late = []
    for k in range(60):
        nbytes = 5000 + 70_000 * (k % 3)
        memory = near.blocks.empty(nbytes)
        memory.fill_(world.rank + k)
        tag = near.next_tag(EXCHANGE)
        others = [r for r in range(world.size) if r != world.rank]
        for rank in others:
            near.send(rank, tag, memory, "a message")
        late.append((k, [(rank, near.receive(rank, tag, "a message")) for rank in others]))
        if len(late) > k % 2:
            then, found = late.pop(0)
            for rank, message in found:
                assert (message.content == rank + then).all(), (k, then, rank)
                message.release()
    assert near.blocks._made <= 8
    del late, found, message  # what was never read is released with its last user
    for _ in range(2):
        near.gather_objects(None)
    near.blocks.release()
    assert near.blocks.oldest > near.blocks._made


def messages_wait_for_whoever_asks(world: World) -> None:
    """Those asked for later come first, and are not lost."""
    near = together()
    tags = [near.next_tag(EXCHANGE) for _ in range(3)]
    peer = (world.rank + 1) % world.size
    for k, tag in enumerate(tags):
        near.send(peer, tag, torch.full((9,), 10 * world.rank + k, dtype=torch.uint8), "a message")
    source = (world.rank - 1) % world.size
    for k in (2, 0, 1):
        content = near.receive(source, tags[k], "a message").content
        assert (content == 10 * source + k).all()


def other_programs_are_told(world: World) -> None:
    """A sum of other lengths is an error on all; then nobody waits for a rank that has left."""
    near = together()
    with pytest.raises(ExchangeError, match="expected .* bytes of every rank, got .* run other programs"):
        near.all_reduce(torch.zeros(3 + world.rank), "sum", "a sum")
    if world.rank == 0:
        time.sleep(TIMEOUT + 2)
        return
    started = time.monotonic()
    with pytest.raises(ExchangeError, match=rf"rank {world.rank}: an agreement failed: .*peer rank .*start all ranks"):
        near.gather_objects(1, "an agreement")
    assert time.monotonic() - started < TIMEOUT + 4
    with pytest.raises(ExchangeError, match="an exchange has failed before"):
        near.gather_objects(1, "an agreement")


def test_three_ranks(tmp_path: Path) -> None:
    checks = [
        sums_equal_those_of_the_process_group, every_rank_has_the_same_bits, memory_is_used_again,
        messages_wait_for_whoever_asks,
    ]  # fmt: skip
    launch(3, checks, tmp_path)


def test_failures(tmp_path: Path) -> None:
    launch(3, [other_programs_are_told], tmp_path, timeout=TIMEOUT)
