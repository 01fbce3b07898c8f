"""Ranks equal the plain module: outputs, all gradients, buffers, in float64 at 1e-10."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import sarc
from sarc.runtime.transport import Transport
from tests.torchrun.cases import (
    GAT,
    GCN,
    GIN,
    SAGE,
    Loss,
    assert_close,
    assignment,
    compare,
    data,
    frames_without_content,
    machines,
    shard,
)
from tests.torchrun.launch import World, launch

pytestmark = pytest.mark.torchrun


def gat_with_edge_features(world: World) -> None:
    compare(world, GAT, ("attr",), "random" if world.size == 2 else "one row")


def gcn_with_edge_weight_and_one_row_rank(world: World) -> None:
    compare(world, GCN, ("w",), "one row")


def sage_max_and_empty_rank(world: World) -> None:
    compare(world, SAGE, (), "empty")


def gin_with_batch_norm(world: World) -> None:
    compare(world, GIN, (), "random")


def gin_with_batch_norm_and_empty_rank(world: World) -> None:
    compare(world, GIN, (), "empty")


def model_that_returns_the_loss(world: World) -> None:
    compare(world, Loss, ("y", "train_mask"))


def five_parts(world: World) -> None:
    compare(world, GCN, ("w",), num_parts=5)


def edges_at_their_source(world: World) -> None:
    compare(world, GAT, ("attr",), "one row", placement="src")


def edges_by_covers(world: World) -> None:
    compare(world, GCN, ("w",), "empty", placement="cover")


def fewest_bytes_with_several_parts_a_process(world: World) -> None:
    compare(world, SAGE, (), num_parts=5, objective="bytes")


def attention_in_fewest_bytes(world: World) -> None:
    compare(world, GAT, ("attr",), objective="bytes")


def in_a_ring(world: World) -> None:
    compare(world, GAT, ("attr",), "one row", exchange="ring")


def as_the_paper_does(world: World) -> None:
    compare(world, SAGE, (), "empty", exchange="sar")


def data_that_change_on_one_rank(world: World) -> None:
    """The rows of one rank change: every rank notices, and makes anew what it has made of them."""
    values = data()
    mine = shard(values, world)
    model = SAGE().double()
    compiled = sarc.compile(model, mine.partitions)
    plain = copy.deepcopy(model)
    sent = []
    for change in (False, False, True, False):
        if change:
            values = {**values, "x": values["x"] + (assignment(world.size) == 1)[:, None]}
        if change and world.rank == 1:
            mine.x.add_(1.0)
        before = compiled.traffic()["sent_bytes"]
        out = compiled(mine.x, mine.graph)
        out.square().sum().backward()
        sent.append(compiled.traffic()["sent_bytes"] - before)
        expected = plain(values["x"], values["edge_index"])
        assert_close("output", out.detach(), expected.detach()[mine.node_ids])
    assert sent[0] >= sent[2] > 0 == sent[1] == sent[3], sent  # the first call also maps columns


@contextmanager
def other_transport(name: str, value: object) -> Iterator[None]:
    """Transports made meanwhile have another method or attribute; every rank runs this in a process of its own."""
    original = getattr(Transport, name, None)
    setattr(Transport, name, value)
    try:
        yield
    finally:
        if original is None:
            delattr(Transport, name)
        else:
            setattr(Transport, name, original)


def messages_posted_together_as_for_nccl(world: World) -> None:
    """In rings, where messages of one pair go both ways."""
    with other_transport("together", property(lambda self: True, lambda self, value: None)):
        compare(world, GAT, ("attr",), exchange="ring")
        compare(world, SAGE, (), "empty", exchange="sar")
        compare(world, GCN, ("w",), num_parts=5, exchange="ring")


def messages_by_way_of_copies_as_for_gpus_over_gloo(world: World) -> None:
    copied = lambda self, buffer, copied: buffer.clone() if copied else torch.empty_like(buffer)  # noqa: E731
    with other_transport("_carried", copied), machines(lambda rank: rank):
        compare(world, GAT, ("attr",), exchange="ring")
        compare(world, GAT, ("attr",), exchange="whole")
        compare(world, GIN, (), "random")


def rows_in_shared_memory(world: World) -> None:
    with frames_without_content():
        compare(world, GAT, ("attr",), "one row", exchange="whole")
        compare(world, GIN, (), "empty", exchange="whole")
        compare(world, SAGE, (), exchange="whole", placement="cover", objective="bytes")


def ranks_of_two_machines(world: World) -> None:
    """Some messages of an exchange lie in memory, the others go through the process group, and so do sums."""
    with machines(lambda rank: rank // 2) as near:
        compare(world, GAT, ("attr",), exchange="whole")
        compare(world, GIN, (), "empty", exchange="whole")
        compare(world, SAGE, (), "one row", exchange="whole", placement="cover")
        found = near()
        assert not found.are_all and [r in found for r in range(3)] == [[0, 1, 0], [1, 0, 0], [0, 0, 0]][world.rank]


def test_other_carriers(tmp_path: Path) -> None:
    launch(2, [messages_posted_together_as_for_nccl, messages_by_way_of_copies_as_for_gpus_over_gloo], tmp_path)
    checks = [messages_posted_together_as_for_nccl, ranks_of_two_machines, rows_in_shared_memory]
    launch(3, checks, tmp_path / "three")


def test_two_ranks(tmp_path: Path) -> None:
    checks = [gat_with_edge_features, gcn_with_edge_weight_and_one_row_rank, sage_max_and_empty_rank]
    checks += [edges_at_their_source, edges_by_covers, fewest_bytes_with_several_parts_a_process]
    launch(2, [*checks, gin_with_batch_norm_and_empty_rank, model_that_returns_the_loss, five_parts], tmp_path)


def test_two_ranks_in_other_ways(tmp_path: Path) -> None:
    launch(2, [in_a_ring, as_the_paper_does, data_that_change_on_one_rank], tmp_path)


def test_four_ranks(tmp_path: Path) -> None:
    checks = [gat_with_edge_features, gin_with_batch_norm, sage_max_and_empty_rank, five_parts]
    ways = [edges_at_their_source, edges_by_covers, data_that_change_on_one_rank, in_a_ring]
    launch(4, [*checks, *ways, attention_in_fewest_bytes], tmp_path)


def test_eight_ranks(tmp_path: Path) -> None:
    launch(8, [attention_in_fewest_bytes, edges_by_covers], tmp_path)
