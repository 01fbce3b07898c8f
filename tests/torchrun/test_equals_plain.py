"""Ranks equal the plain module: outputs, all gradients, buffers, in float64 at 1e-10."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torchrun.cases import GAT, GCN, GIN, SAGE, Loss, compare
from tests.torchrun.launch import World, launch

pytestmark = pytest.mark.torchrun


def gat_with_edge_features(world: World) -> None:
    compare(world, GAT, ("attr",))


def gcn_with_edge_weight(world: World) -> None:
    compare(world, GCN, ("w",))


def sage_max(world: World) -> None:
    compare(world, SAGE, ())


def gin_with_batch_norm(world: World) -> None:
    compare(world, GIN, ())


def model_that_returns_the_loss(world: World) -> None:
    compare(world, Loss, ("y", "train_mask"))


def empty_rank(world: World) -> None:
    compare(world, GCN, ("w",), "empty")
    compare(world, GIN, (), "empty")


def one_row_rank(world: World) -> None:
    compare(world, GCN, ("w",), "one row")
    compare(world, GAT, ("attr",), "one row")


def more_parts_than_ranks(world: World) -> None:
    compare(world, GCN, ("w",), num_parts=5)
    compare(world, GIN, (), num_parts=5)


def test_two_ranks(tmp_path: Path) -> None:
    checks = [gat_with_edge_features, gcn_with_edge_weight, sage_max, gin_with_batch_norm]
    launch(2, [*checks, model_that_returns_the_loss, empty_rank, one_row_rank, more_parts_than_ranks], tmp_path)


def test_four_ranks(tmp_path: Path) -> None:
    launch(4, [gat_with_edge_features, gin_with_batch_norm, model_that_returns_the_loss, one_row_rank], tmp_path)
