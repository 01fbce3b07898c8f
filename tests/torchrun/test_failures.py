"""What goes wrong on one rank is an error of sarc on every rank, in time, and the others live on."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import sarc
from sarc.errors import ExchangeError, GraphError, PartitionError, SarcError, UnsupportedModelError
from sarc.runtime import whole_exchange
from sarc.runtime.transport import Transport
from tests.torchrun.cases import FEATURES, GCN, NODES, assert_close, assignment, data, graph, machines, shard, whole
from tests.torchrun.launch import World, launch, launch_raw

pytestmark = pytest.mark.torchrun

TIMEOUT = 8.0  # seconds; compile times of the ranks differ by less


def expect(kind: type[SarcError], words: str, run: Callable[[], object]) -> None:
    """`run` raises exactly `kind`, with all of `words` in its message."""
    try:
        run()
    except SarcError as error:
        assert type(error) is kind, f"expected {kind.__name__}, got {error!r}"
        missing = [word for word in words.split("|") if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
        return
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")


def bad_input_on_one_rank(world: World) -> None:
    mine = shard(data(), world)
    torch.manual_seed(0)
    compiled = sarc.compile(GCN().double(), mine.partitions)
    first, second = world.rank == 0, world.rank == 1
    x, w = mine.x, mine.w
    expect(GraphError, "argument x", lambda: compiled(x[1:] if second else x, mine.graph, w))
    expect(GraphError, "argument x|features", lambda: compiled(x[:, 1:] if second else x, mine.graph, w))
    expect(GraphError, "argument w|dtype", lambda: compiled(x, mine.graph, w.float() if second else w))
    expect(UnsupportedModelError, "argument w", lambda: compiled(x, mine.graph, {1} if second else w))
    expect(GraphError, "argument x|meta", lambda: compiled(x.to("meta") if second else x, mine.graph, w))
    compiled.train(first)
    expect(GraphError, "training mode", lambda: compiled(x, mine.graph, w))
    compiled.train()
    with torch.set_grad_enabled(second):
        expect(GraphError, "gradient mode", lambda: compiled(x, mine.graph, w))
    compiled.seed += world.rank
    expect(GraphError, "seed", lambda: compiled(x, mine.graph, w))
    compiled.seed -= world.rank
    compiled.model.conv1.improved = first
    expect(GraphError, "attribute", lambda: compiled(x, mine.graph, w))
    compiled.model.conv1.improved = False
    # Nobody has lost step: the next call is an ordinary one.
    out = compiled(x, mine.graph, w)
    values = data()
    assert_close("output", out, compiled.model(values["x"], values["edge_index"], values["w"])[mine.node_ids])


def bad_losses_on_one_rank(world: World) -> None:
    mine = shard(data(), world)
    second = world.rank == 1
    out = torch.zeros(mine.x.shape[0], 3, dtype=torch.float64, requires_grad=True)
    mask = mine.train_mask[1:] if second else mine.train_mask
    expect(GraphError, "mask", lambda: sarc.cross_entropy(out, mine.y, mask))
    far = mine.y + 7 * second
    expect(GraphError, "classes from 0 to 2", lambda: sarc.cross_entropy(out, far))
    expect(GraphError, "one target a row", lambda: sarc.accuracy(out, mine.y[:-1] if second else mine.y))
    expect(GraphError, "output's shape", lambda: sarc.mse_loss(out, mine.y[:, None] if second else out))
    sarc.cross_entropy(out, mine.y, mine.train_mask).backward()


def partitions_that_do_not_fit(world: World) -> None:
    values = data()
    parts = whole(values, 2)
    other = sarc.partition(graph(seed=8), num_nodes=NODES, assignment=assignment(2), num_parts=2)
    chosen = other if world.rank else parts
    expect(PartitionError, "same partition", lambda: sarc.compile(GCN(), chosen.shard(world.rank).partitions))
    three = whole(values, 3)
    expect(PartitionError, "3 parts", lambda: sarc.compile(GCN(), three.shard(world.rank).partitions))
    expect(PartitionError, "each of the 2 parts", lambda: sarc.compile(GCN(), parts.shard(0).partitions))
    expect(PartitionError, "every rank holds all", lambda: sarc.compile(GCN(), parts))
    expect(PartitionError, "shard", lambda: sarc.compile(GCN(), 2))
    expect(PartitionError, "shard", lambda: sarc.compile(GCN(), parts.shard(0).partitions if world.rank == 0 else 2))
    mine = parts.shard(world.rank).partitions
    model = nn.Linear(FEATURES, 2 + world.rank)
    expect(UnsupportedModelError, "another model|weight", lambda: sarc.compile(model, mine))
    parts.save(world.folder / "three" / str(world.rank))
    one = whole(values, 1)
    one.save(world.folder / "one" / str(world.rank))
    expect(PartitionError, "at most 1 processes", lambda: sarc.load_shard(world.folder / "one" / str(world.rank)))


def indices_out_of_range_on_one_rank(world: World) -> None:
    mine = shard(data(), world)

    class Pool(nn.Module):
        def forward(self, x, edge_index, batch):
            return x.new_zeros(4, x.shape[1]).index_add(0, batch, x)

    compiled = sarc.compile(Pool(), mine.partitions)
    batch = torch.zeros(mine.x.shape[0], dtype=torch.int64)
    assert compiled(mine.x, mine.graph, batch).shape == (4, FEATURES)

    class Read(nn.Module):
        def forward(self, x, edge_index, partner):
            return x[partner]

    compiled = sarc.compile(Read(), mine.partitions)
    partner = mine.node_ids.clone()
    assert_close("own rows", compiled(mine.x, mine.graph, partner), mine.x)
    wrong = partner.clone()
    if world.rank == 1:
        wrong[0] = NODES + 5
    expect(GraphError, f"{NODES + 5} is out of range", lambda: compiled(mine.x, mine.graph, wrong))
    assert_close("own rows", compiled(mine.x, mine.graph, partner), mine.x)


def wrapped_in_ddp(world: World) -> None:
    mine = shard(data(), world)
    compiled = sarc.compile(GCN().double(), mine.partitions)
    wrapped = nn.parallel.DistributedDataParallel(compiled)
    expect(UnsupportedModelError, "DistributedDataParallel", lambda: wrapped(mine.x, mine.graph, mine.w))


def copies_and_pickles(world: World) -> None:
    mine = shard(data(), world)
    compiled = sarc.compile(GCN().double(), mine.partitions)
    out = compiled(mine.x, mine.graph, mine.w)
    again = copy.deepcopy(compiled)
    assert torch.equal(again(mine.x, mine.graph, mine.w), out)
    assert again.conv1.lin.weight is not compiled.conv1.lin.weight


def test_errors_of_one_rank_are_raised_on_all(tmp_path: Path) -> None:
    checks = [bad_input_on_one_rank, bad_losses_on_one_rank, partitions_that_do_not_fit]
    launch(2, [*checks, indices_out_of_range_on_one_rank, wrapped_in_ddp, copies_and_pickles], tmp_path, timeout=20)


def calls_alone(world: World) -> float:
    mine = shard(data(), world)
    compiled = sarc.compile(GCN().double(), mine.partitions)
    if world.rank == 1:
        time.sleep(TIMEOUT + 4)
        return 0.0
    started = time.monotonic()
    expect(ExchangeError, "rank 0|every rank must", lambda: compiled(mine.x, mine.graph, mine.w))
    return time.monotonic() - started


def test_a_rank_that_calls_alone(tmp_path: Path) -> None:
    waited = launch(2, [calls_alone], tmp_path, TIMEOUT)[0]["calls_alone"]
    assert TIMEOUT / 2 < waited < TIMEOUT + 3


def _interrupt(world: World, exchange: str, stop: Callable[[], None]) -> str:
    """Rank 2 stops in the middle of the exchange of its second call; what the others are told."""
    mine = shard(data(), world)
    compiled = sarc.compile(GCN().double(), mine.partitions, exchange=exchange)
    x = mine.x.requires_grad_()  # of data that need no gradient, nothing would travel
    compiled(x, mine.graph, mine.w)
    if world.rank == 2:
        entry = "send" if exchange == "ring" else "all_to_all"
        post, count, last = getattr(Transport, entry), 0, 3 if exchange == "ring" else 2

        def failing_post(*args, **kwargs):
            nonlocal count
            count += 1
            if count == last:
                stop()
            return post(*args, **kwargs)

        setattr(Transport, entry, failing_post)
    started = time.monotonic()
    try:
        compiled(x, mine.graph, mine.w)
        compiled(x, mine.graph, mine.w)
    except ExchangeError as error:
        assert time.monotonic() - started < 2 * TIMEOUT + 6
        return str(error)
    return "nothing was raised"


def _sends_another_shape() -> None:
    """The rows of every later message of this rank have another width."""
    fetched = whole_exchange.WholeExchange.__init__

    def wider(self, *args):
        fetched(self, *args)
        self.sent = torch.cat([self.sent, self.sent])

    whole_exchange.WholeExchange.__init__ = wider


def peer_dies(world: World) -> str:
    return _interrupt(world, "ring", lambda: os._exit(9))


def peer_hangs(world: World) -> str:
    return _interrupt(world, "ring", lambda: time.sleep(3 * TIMEOUT))


def peer_dies_in_an_all_to_all(world: World) -> str:
    return _interrupt(world, "whole", lambda: os._exit(9))


def peer_of_another_machine_dies_in_an_all_to_all(world: World) -> str:
    with machines(lambda rank: rank):
        return _interrupt(world, "whole", lambda: os._exit(9))


def peer_is_killed_in_an_all_to_all(world: World) -> str:
    return _interrupt(world, "whole", lambda: os.kill(os.getpid(), signal.SIGKILL))


def peer_is_stopped_in_an_all_to_all(world: World) -> str:
    resume = threading.Thread(target=_resume, args=(world.folder / "stopped",), daemon=True)
    if world.rank == 0:  # it goes on when all is over: nobody waits for a stopped process for ever
        resume.start()

    def stop() -> None:
        (world.folder / "stopped").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)

    told = _interrupt(world, "whole", stop)
    if world.rank == 0:
        resume.join()
    return told


def _resume(file: Path) -> None:
    while not file.exists():
        time.sleep(0.1)
    time.sleep(2 * TIMEOUT)
    os.kill(int(file.read_text()), signal.SIGCONT)


def peer_sends_another_shape(world: World) -> str:
    return _interrupt(world, "whole", _sends_another_shape)


STOPS = [
    peer_dies,
    pytest.param(peer_hangs, marks=pytest.mark.slow),
    peer_dies_in_an_all_to_all,
    peer_of_another_machine_dies_in_an_all_to_all,
    pytest.param(peer_is_killed_in_an_all_to_all, marks=pytest.mark.slow),
    peer_is_stopped_in_an_all_to_all,
    peer_sends_another_shape,
]


@pytest.mark.parametrize("check", STOPS)
def test_a_peer_that_stops_in_an_exchange(check: Callable[[World], str], tmp_path: Path) -> None:
    outcomes = launch_raw(3, [check], tmp_path, TIMEOUT)
    told = []
    for rank in (0, 1):
        values, errors, log = outcomes[rank]
        assert not errors, errors
        assert check.__name__ in values, f"rank {rank} did not survive:\n{log}"
        told.append(values[check.__name__])
    if check in (peer_dies, peer_hangs):
        # The first to wait for the dead rank names it; another may be told by its own neighbour's end.
        assert any(all(word in text for word in ("part 2", "round", "chunk", "edge_call")) for text in told), told
    else:
        assert any(all(word in text for word in ("peer rank 2", "round", "buffer fetch")) for text in told), told
    if check is peer_sends_another_shape:
        values, errors, _ = outcomes[2]
        assert "planned" in values[check.__name__] and "buffer" in values[check.__name__], (values, errors)
    assert all("rank" in text for text in told), told


def plans_that_differ(world: World) -> None:
    mine = shard(data(), world)
    compiled = sarc.compile(GCN().double(), mine.partitions, exchange="whole" if world.rank else "ring")
    expect(ExchangeError, "from part 0 to peer part|rows|buffer", lambda: compiled(mine.x, mine.graph, mine.w))


def test_plans_that_differ_between_ranks(tmp_path: Path) -> None:
    launch(3, [plans_that_differ], tmp_path, timeout=20)


def one_process_with_one_shard() -> str:
    parts = whole(data(), 2)
    with pytest.raises(PartitionError) as caught:
        sarc.compile(GCN(), parts.shard(0).partitions)
    return str(caught.value)


def test_a_shard_without_a_process_group() -> None:
    assert not dist.is_initialized()
    assert "sarc.init_distributed() first" in one_process_with_one_shard()


def test_init_outside_torchrun_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PartitionError, match="torchrun --standalone"):
        sarc.init_distributed()
