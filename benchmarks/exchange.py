"""Bytes and time of a training epoch over ranks, by way of exchanging rows.

    torchrun --standalone --nproc-per-node 4 -m benchmarks.exchange
    torchrun --standalone --nproc-per-node 4 -m benchmarks.exchange --only GAT --exchange sar --exchange auto

Three layers of equal width and a last one to 47 classes, 50,000 nodes, 1,050,000 edges (one in 21 a self loop), parts
from METIS, x without a gradient. "sar" is the scheme of the SAR paper (arXiv 2111.06483). A rank uses one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
import torch.distributed as dist
from torch import Tensor, nn

import sarc
from benchmarks.graphs import KINDS, Graph, draw
from benchmarks.options import Options, set_threads
from benchmarks.report import Report
from sarc.ir.exchange import EXCHANGES

CLASSES = 47
WARM_UPS = 2
WAITING = ("Wait", "Finish", "AllReduce", "AllToAll", "PostRecv", "Send")
COLUMNS = ("exchange", "sent MiB", "planned MiB", "messages", "all-reduced MiB", "ms", "low", "high", "exchange ms",
           "error")  # fmt: skip


class Model(nn.Module):
    """Layers with relu between them."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, graph).relu()
        return self.layers[-1](x, graph)


def models(width: int, heads: int) -> dict[str, Model]:
    """The models, by name; parameters from seed 0."""
    from torch_geometric.nn import GATConv, GCNConv, SAGEConv

    torch.manual_seed(0)
    head = width // heads
    return {
        "GAT": Model([
            GATConv(width, head, heads, add_self_loops=False),
            GATConv(width, head, heads, add_self_loops=False),
            GATConv(width, CLASSES, heads, concat=False, add_self_loops=False),
        ]),
        "SAGE": Model([SAGEConv(width, width), SAGEConv(width, width), SAGEConv(width, CLASSES)]),
        "GCN": Model([GCNConv(width, width), GCNConv(width, width), GCNConv(width, CLASSES)]),
    }  # fmt: skip


@dataclass(frozen=True)
class Epochs:
    """What a number of epochs took on this rank.

    Attributes:
        sent, planned: bytes to other ranks an epoch, counted by the transport, and by the plan.
        messages: to other ranks, an epoch.
        all_reduced: bytes this rank put into all-reduces, an epoch.
        seconds: of each timed epoch.
        exchanging: seconds of one epoch spent posting messages and waiting for them.
        loss: after the last epoch.
    """

    sent: float
    planned: int
    messages: float
    all_reduced: float
    seconds: list[float]
    exchanging: float
    loss: float


def train(compiled: nn.Module, shard: sarc.Shard, repeat: int) -> Epochs:
    """Train for some epochs; every rank calls it."""
    optimizer = torch.optim.Adam(compiled.parameters(), lr=1e-3)

    def epoch() -> Tensor:
        optimizer.zero_grad()
        loss = sarc.cross_entropy(compiled(shard.x, shard.graph), shard.y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    for _ in range(WARM_UPS):
        loss = epoch()
    before, seconds = compiled.traffic(), []
    for _ in range(repeat):
        dist.barrier()
        started = time.perf_counter()
        loss = epoch()
        seconds.append(time.perf_counter() - started)
    sent = {key: (value - before[key]) / repeat for key, value in compiled.traffic().items()}
    with sarc.profile(memory=False) as measured:
        epoch()
    spent = sum(
        end - start
        for run in measured.runs
        for kind, start, end in zip(run.kinds, run.starts, run.ends, strict=True)
        if kind in WAITING
    )
    exchanging = spent / dist.get_world_size()  # rank 0 holds the runs of all
    return Epochs(
        sent["sent_bytes"], compiled.plan().sent_bytes, sent["messages"], sent["all_reduce_bytes"], seconds,
        exchanging, float(loss),
    )  # fmt: skip


def run(graph: Graph, options: Options, exchanges: tuple[str, ...], report: Report) -> None:
    """Every model with every way of exchanging; rank 0 reports means over ranks."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(graph.num_nodes, options.width, generator=random)
    y = torch.randint(CLASSES, (graph.num_nodes,), generator=random)
    parts = sarc.partition(graph.edge_index, num_nodes=graph.num_nodes, num_parts=dist.get_world_size(), seed=0)
    shard = parts.shard(dist.get_rank(), x=x, y=y)
    for name in models(options.width, options.heads):
        if not options.wants(name):
            continue
        losses: list[float] = []
        for exchange in exchanges:
            model = models(options.width, options.heads)[name]
            compiled = sarc.compile(model, shard.partitions, exchange=exchange, backend=options.backend)
            mine = train(compiled, shard, options.repeat)
            everyone: list[Epochs] = [mine] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
            losses.append(mine.loss)
            if dist.get_rank() == 0:
                report.add(graph=f"{graph}, {dist.get_world_size()} ranks", case=name, **row(exchange, everyone),
                           error=abs(mine.loss - losses[0]))  # fmt: skip
        if dist.get_rank() == 0:
            report.show()


def row(exchange: str, everyone: list[Epochs]) -> dict[str, object]:
    """Means over ranks; times are those of the slowest rank of each epoch."""
    mib = 1 << 20
    slowest = sorted(map(max, zip(*(e.seconds for e in everyone), strict=True)))
    low, high = slowest[len(slowest) // 4], slowest[(3 * len(slowest)) // 4]
    return {
        "exchange": exchange,
        "sent MiB": statistics.fmean(e.sent for e in everyone) / mib,
        "planned MiB": statistics.fmean(e.planned for e in everyone) / mib,
        "messages": statistics.fmean(e.messages for e in everyone),
        "all-reduced MiB": statistics.fmean(e.all_reduced for e in everyone) / mib,
        "ms": 1e3 * statistics.median(slowest),
        "low": 1e3 * low,
        "high": 1e3 * high,
        "exchange ms": 1e3 * everyone[0].exchanging,
    }


def with_self_loops(graph: Graph) -> Graph:
    """The graph with a self loop a node behind its edges."""
    loops = torch.arange(graph.num_nodes)
    return replace(graph, src=torch.cat([graph.src, loops]), dst=torch.cat([graph.dst, loops]))


def graphs(options: Options, kind: str) -> Iterator[Graph]:
    nodes = options.nodes or 50_000
    yield with_self_loops(draw(kind, nodes, nodes * options.degree))


@click.command
@click.option("--nodes", type=click.IntRange(1), help="N; default: 50,000.")
@click.option("--degree", default=20, show_default=True, help="E / N, without self loops.")
@click.option("--width", default=128, show_default=True)
@click.option("--heads", default=4, show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@click.option("--graph", type=click.Choice(list(KINDS)), default="uniform", show_default=True)
@click.option("--only", multiple=True, metavar="MODEL", help="GAT, SAGE or GCN; may be repeated.")
@click.option("--exchange", "exchanges", multiple=True, type=click.Choice(EXCHANGES), default=("sar", "ring", "auto"))
@click.option("--backend", default="auto", show_default=True, help="Of sarc.compile.")
@click.option("--json", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write results.")
def main(exchanges: tuple[str, ...], graph: str, **given) -> None:
    """Bytes and time of an epoch over ranks; start it with torchrun."""
    options = Options(graph=graph, threads=1, **given)
    set_threads(1)
    sarc.init_distributed()
    report = Report("exchange", options, COLUMNS)
    for drawn in graphs(options, graph):
        run(drawn, options, exchanges, report)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
