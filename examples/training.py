"""Full-batch training over the partitions of a graph: the options, the loop and the report of the train_*.py scripts.

Started by torchrun, every process trains on the rows of its own part. Started by plain python, one process holds the
whole graph and steps through all parts. The loop is the same, and so are the numbers it prints.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from models import SETTINGS, Settings, build_model, parameter_groups
from report import EpochLog, report
from torch import Tensor, nn

import sarc
import sarc.data
from sarc.partition import ranks_of_process

# The GCN and GAT papers divide the word counts of the citation graphs by their sum.
ROW_NORMALISED = ("cora", "citeseer")


@dataclass(frozen=True)
class Rows:
    """What this process calls the model and the losses with: its owned rows, or all rows in a single process.

    Attributes:
        graph: the model's second argument: edge_index int64 [2, E], or the shard's graph under torchrun.
        x, y, masks: float [N, F], int64 [N] and bool [N] ("train", "val", "test"); N_p rows under torchrun.
        partitions: the parts that this process runs.
    """

    graph: Any
    x: Tensor
    y: Tensor
    masks: dict[str, Tensor]
    partitions: Any
    num_classes: int


@dataclass(frozen=True)
class Run:
    """What one training run with one seed came to.

    Attributes:
        test_accuracy: at the epoch of the best validation accuracy.
        step_seconds: per epoch, forward, backward and optimizer step; evaluation is not counted.
        sent_bytes, all_reduce_bytes: mean per epoch of the same steps, sent by this process.
    """

    best_epoch: int
    val_accuracy: float
    test_accuracy: float
    step_seconds: list[float]
    sent_bytes: float
    all_reduce_bytes: float


def main(model: str) -> None:
    """Runs an example script whose `--model` defaults to `model`."""
    options = parse_options(model)
    with process_group() as (rank, world):
        rows = prepare_rows(options, rank, world)
        runs = [train(options, seed, rows, rank) for seed in range(options.seed, options.seed + options.seeds)]
        processes = gather_from_all(describe_process(rank, rows, runs))
        if rank == 0:
            report(runs, processes)


def parse_options(model: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=sorted(SETTINGS), default=model)
    parser.add_argument("--data", default="generated", help="generated, or a name sarc.data.load knows, such as cora")
    parser.add_argument("--nodes", type=int, default=4000, help="size of the generated graph")
    parser.add_argument("--parts", type=int, help="number of partitions; None: one a process, or 4 in one process")
    parser.add_argument("--method", default="metis", help="how the graph is cut: metis, random or contiguous")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--patience", type=int, default=100, help="epochs without a better validation accuracy")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and dropout")
    parser.add_argument("--seeds", type=int, default=1, help="train with this many seeds and report the mean")
    parser.add_argument("--curve", type=Path, help="write one JSON line an epoch to this file")
    for name, kind in (("hidden", int), ("heads", int), ("dropout", float), ("lr", float), ("weight-decay", float)):
        parser.add_argument(f"--{name}", type=kind, help="None: the model's own, see models.py")
    return parser.parse_args()


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """This process's rank and the world size: (0, 1) unless torchrun started it."""
    if "LOCAL_RANK" not in os.environ:
        yield 0, 1
        return
    sarc.init_distributed()
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def prepare_rows(options: argparse.Namespace, rank: int, world: int) -> Rows:
    """Loads the graph, cuts it, and keeps what this process needs.

    The graph is small, so every process loads it whole and cuts it alike. For a graph that is not, cut it once with
    `parts.save(folder, ...)` and let each process read its own file with `sarc.load_shard(folder)`.
    """
    if options.data == "generated":
        data = sarc.data.labelled_graph(options.nodes, seed=0)
    else:
        data = sarc.data.load(options.data)
    x = normalise_rows(data.x) if data.name in ROW_NORMALISED else data.x
    masks = {"train": data.train_mask, "val": data.val_mask, "test": data.test_mask}
    num_parts = options.parts or (world if dist.is_initialized() else 4)
    parts = sarc.partition(
        data.edge_index, num_nodes=data.num_nodes, num_parts=num_parts, method=options.method, seed=0
    )
    if rank == 0:
        print(
            f"{options.model} on {data.name}: {data.num_nodes} nodes, {data.edge_index.shape[1]} edges, "
            f"{data.num_classes} classes; {num_parts} partitions ({parts.method}), {world} process(es)"
        )
    if not dist.is_initialized():
        return Rows(data.edge_index, x, data.y, masks, parts, data.num_classes)
    mine = ranks_of_process(num_parts, rank, world)  # one part, or several where there are more parts than processes
    shard = parts.shard(mine, x=x, y=data.y, **{f"{name}_mask": mask for name, mask in masks.items()})
    masks = {"train": shard.train_mask, "val": shard.val_mask, "test": shard.test_mask}
    return Rows(shard.graph, shard.x, shard.y, masks, shard.partitions, data.num_classes)


def normalise_rows(x: Tensor) -> Tensor:
    """Rows of x float [N, F], word counts, divided by their sum."""
    return x / x.sum(dim=1, keepdim=True).clamp(min=1)


def train(options: argparse.Namespace, seed: int, rows: Rows, rank: int) -> Run:
    """Trains one model from `seed` until the epochs or the patience are used up."""
    settings = choose_settings(options)
    torch.manual_seed(seed)
    model = build_model(options.model, rows.x.shape[1], rows.num_classes, settings)
    compiled = sarc.compile(model, rows.partitions)
    optimizer = torch.optim.Adam(parameter_groups(model, settings), lr=settings.lr)

    best = (0, 0.0, 0.0)  # epoch, validation accuracy, test accuracy
    step_seconds = []
    sent = {"sent_bytes": 0, "all_reduce_bytes": 0}
    with EpochLog(options.epochs, seed, options.curve, silent=rank != 0) as log:
        for epoch in range(1, options.epochs + 1):
            before, started = dict(compiled.traffic()), time.perf_counter()
            loss = train_step(compiled, optimizer, rows)
            step_seconds.append(time.perf_counter() - started)
            after = compiled.traffic()
            sent = {key: count + after[key] - before[key] for key, count in sent.items()}

            accuracy = evaluate(compiled, rows)
            if accuracy["val"] > best[1]:
                best = (epoch, accuracy["val"], accuracy["test"])
            log.add(epoch, step_seconds[-1], loss, accuracy)
            # Every process sees the same accuracies, so all of them stop together.
            if epoch - best[0] >= options.patience:
                break
    epochs = max(1, len(step_seconds))
    return Run(*best, step_seconds, sent["sent_bytes"] / epochs, sent["all_reduce_bytes"] / epochs)


def choose_settings(options: argparse.Namespace) -> Settings:
    given = {name: getattr(options, name) for name in ("hidden", "heads", "dropout", "lr", "weight_decay")}
    return replace(SETTINGS[options.model], **{name: value for name, value in given.items() if value is not None})


def train_step(compiled: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows) -> float:
    """One epoch: one step on all training rows. Returns the loss, the same on every process."""
    compiled.train()
    optimizer.zero_grad()
    out = compiled(rows.x, rows.graph)
    loss = sarc.cross_entropy(out, rows.y, rows.masks["train"])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def evaluate(compiled: nn.Module, rows: Rows) -> dict[str, float]:
    """Accuracy on each mask, the same on every process."""
    compiled.eval()
    out = compiled(rows.x, rows.graph)
    return {name: float(sarc.accuracy(out, rows.y, mask)) for name, mask in rows.masks.items()}


def describe_process(rank: int, rows: Rows, runs: list[Run]) -> dict[str, Any]:
    """What this process held and sent, for the report: rows, bytes, bytes per epoch."""
    parts = [rows.partitions.parts[p] for p in sorted(rows.partitions.parts)]
    kibibyte = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss differs
    return {
        "rank": rank,
        "parts": [part.rank for part in parts],
        "owned_nodes": sum(part.node_ids.numel() for part in parts),
        "halo_rows": sum(ids.numel() for part in parts for ids in part.halo_ids),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibyte,
        "sent_bytes": statistics.mean(run.sent_bytes for run in runs),
        "all_reduce_bytes": statistics.mean(run.all_reduce_bytes for run in runs),
    }


def gather_from_all(description: dict[str, Any]) -> list[dict[str, Any]]:
    if not dist.is_initialized():
        return [description]
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, description)
    return everything
