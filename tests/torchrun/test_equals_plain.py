"""Ranks equal the plain module: outputs, all gradients, buffers, in float64 at 1e-10."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torchrun.cases import GAT, GCN, GIN, SAGE, Loss, compare
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


def test_two_ranks(tmp_path: Path) -> None:
    checks = [gat_with_edge_features, gcn_with_edge_weight_and_one_row_rank, sage_max_and_empty_rank]
    checks += [edges_at_their_source, edges_by_covers, fewest_bytes_with_several_parts_a_process]
    launch(2, [*checks, gin_with_batch_norm_and_empty_rank, model_that_returns_the_loss, five_parts], tmp_path)


def test_four_ranks(tmp_path: Path) -> None:
    checks = [gat_with_edge_features, gin_with_batch_norm, sage_max_and_empty_rank, five_parts]
    launch(4, [*checks, edges_at_their_source, edges_by_covers], tmp_path)
