"""Training over ranks: the same curve as one process, dropout on; losses, modes and gradients outside the model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sarc
from tests.torchrun.cases import CLASSES, GAT, GCN, GIN, assert_close, data, shard, whole
from tests.torchrun.launch import World, launch

pytestmark = pytest.mark.torchrun

SEED = 5
# Sums over rows are taken in another order: a few roundings of float32 in the loss, amplified by three steps of Adam.
FLOAT32 = 2e-5


def curve(world: World) -> list[float]:
    """Losses of four steps of a GAT with dropout in float32; in the test's own process, of P parts in one process."""
    values = {k: v.float() if v.is_floating_point() else v for k, v in data().items()}
    torch.manual_seed(SEED)
    model = GAT(dropout=0.5)
    if world.rank < 0:
        compiled = sarc.compile(model, whole(values, world.size), seed=SEED)
        x, graph, attr, y, mask = (values[k] for k in ("x", "edge_index", "attr", "y", "train_mask"))
    else:
        mine = shard(values, world)
        compiled = sarc.compile(model, mine.partitions, seed=SEED if world.rank == 0 else 123)
        x, graph, attr, y, mask = mine.x, mine.graph, mine.attr, mine.y, mine.train_mask
    optimizer = torch.optim.Adam(compiled.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = sarc.cross_entropy(compiled(x, graph, attr), y, mask)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def a_rank_without_training_rows(world: World) -> None:
    values = data()
    mine = shard(values, world)
    mask = mine.train_mask if world.rank else torch.zeros_like(mine.train_mask)
    everywhere = values["train_mask"].clone()
    everywhere[shard(values, World(0, world.size, world.folder)).node_ids] = False
    torch.manual_seed(0)
    model = GCN().double()
    plain = copy.deepcopy(model)
    compiled = sarc.compile(model, mine.partitions)
    sarc.cross_entropy(compiled(mine.x, mine.graph, mine.w), mine.y, mask).backward()
    out = plain(values["x"], values["edge_index"], values["w"])
    F.cross_entropy(out[everywhere], values["y"][everywhere]).backward()
    for (name, got), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert_close(name, got.grad, wanted.grad)


def several_forwards_before_one_backward_and_eval(world: World) -> None:
    values, mine = data(), shard(data(), world)
    torch.manual_seed(0)
    model = GIN().double()
    plain = copy.deepcopy(model)
    compiled = sarc.compile(model, mine.partitions)
    total = sum(sarc.mse_loss(compiled(mine.x * k, mine.graph), torch.zeros(mine.x.shape[0], CLASSES)) for k in (1, 2))
    total.backward()
    wanted = sum((plain(values["x"] * k, values["edge_index"])).square().mean() for k in (1, 2))
    wanted.backward()
    assert_close("loss", total.detach(), wanted.detach())
    for (name, got), reference in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert_close(name, got.grad, reference.grad)
    for (name, got), reference in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert_close(name, got, reference)
    compiled.eval()
    plain.eval()
    with torch.no_grad():
        out = compiled(mine.x, mine.graph)
        assert not out.requires_grad
        assert_close("eval", out, plain(values["x"], values["edge_index"])[mine.node_ids])


def losses_are_the_same_on_every_rank(world: World) -> list[float]:
    values, mine = data(), shard(data(), world)
    logits = torch.randn(values["x"].shape[0], CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y, mask, ids = values["y"].clone(), values["train_mask"], mine.node_ids
    y[mask.nonzero()[0]] = -100
    binary = (logits > 0.3).double()
    rows = logits[ids].requires_grad_()
    found = [
        sarc.cross_entropy(rows, y[ids], mask[ids]),
        sarc.binary_cross_entropy(rows, binary[ids], mask[ids]),
        sarc.mse_loss(rows, binary[ids]),
        sarc.mean(rows.square().sum(dim=1), mask[ids]),
        sarc.accuracy(rows, y[ids], mask[ids]),
    ]
    reference = logits.clone().requires_grad_()
    wanted = [
        F.cross_entropy(reference[mask], y[mask]),
        F.binary_cross_entropy_with_logits(reference[mask], binary[mask]),
        F.mse_loss(reference, binary),
        reference.square().sum(dim=1)[mask].mean(),
        (reference.argmax(dim=1) == y)[mask].double().mean(),
    ]
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert_close(f"loss {k}", a.detach(), b.detach())
    sum(found[:4]).backward()
    sum(wanted[:4]).backward()
    assert_close("gradient", rows.grad, reference.grad[ids])
    return [float(f) for f in found]


def parameters_outside_the_compiled_module(world: World) -> None:
    values, mine = data(), shard(data(), world)
    torch.manual_seed(0)
    head, unused = nn.Linear(CLASSES, 2).double(), nn.Linear(2, 2).double()
    model = GCN().double()
    plain, plain_head = copy.deepcopy(model), copy.deepcopy(head)
    compiled = sarc.compile(model, mine.partitions)
    out = head(compiled(mine.x, mine.graph, mine.w))
    if world.rank == 0:  # a gradient that only one rank has
        out = out + unused(out) * 0
    sarc.mean(out.square()).backward()
    sarc.all_reduce_gradients(nn.ModuleList([head, unused]))
    plain_head(plain(values["x"], values["edge_index"], values["w"])).square().mean().backward()
    for (name, got), wanted in zip(head.named_parameters(), plain_head.parameters(), strict=True):
        assert_close(name, got.grad, wanted.grad)
    for (name, got), wanted in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert_close(name, got.grad, wanted[1].grad)
    assert unused.weight.grad is not None, "a gradient of one rank must reach all"


def a_rank_may_freeze_nothing_alone(world: World) -> None:
    """An input gradient asked for on one rank only is computed on all."""
    mine = shard(data(), world)
    torch.manual_seed(0)
    compiled = sarc.compile(GCN().double(), mine.partitions)
    x = mine.x.clone().requires_grad_(world.rank == 0)
    sarc.mean(compiled(x, mine.graph, mine.w)).backward()
    assert (x.grad is not None) == (world.rank == 0)


def test_two_ranks(tmp_path: Path) -> None:
    checks = [losses_are_the_same_on_every_rank, a_rank_without_training_rows, parameters_outside_the_compiled_module]
    checks += [several_forwards_before_one_backward_and_eval, a_rank_may_freeze_nothing_alone]
    values = launch(2, checks, tmp_path)
    losses = [v["losses_are_the_same_on_every_rank"] for v in values]
    assert losses[0] == losses[1]


def test_loss_curve_of_four_ranks_equals_one_process(tmp_path: Path) -> None:
    ranks = [v["curve"] for v in launch(4, [curve], tmp_path)]
    assert all(losses == ranks[0] for losses in ranks), "every rank has the same loss"
    assert ranks[0] == pytest.approx(curve(World(-1, 4, tmp_path)), rel=FLOAT32)
    assert ranks[0] == pytest.approx(curve(World(-1, 1, tmp_path)), rel=FLOAT32)
    assert len(set(ranks[0])) == 4, "the parameters move"
