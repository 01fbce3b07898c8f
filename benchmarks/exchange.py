"""Bytes and time of a training epoch over ranks, by way of exchanging rows.

    torchrun --standalone --nproc-per-node 4 -m benchmarks.exchange
    torchrun --standalone --nproc-per-node 4 -m benchmarks.exchange --only GAT --exchange sar --objective bytes

Three layers of equal width and a last one to 47 classes, 50,000 nodes, 1,050,000 edges (one in 21 a self loop), parts
from METIS, x without a gradient. "sar" is the scheme of the SAR paper (arXiv 2111.06483). A rank uses one thread; "DGL"
is the whole graph in rank 0 with `--dgl-threads` threads, while the others wait.
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
from benchmarks.dgl_layers import as_dgl
from benchmarks.graphs import KINDS, Graph, draw
from benchmarks.options import Options, set_threads
from benchmarks.report import Report
from sarc.ir.exchange import EXCHANGES
from sarc.ir.placement import OBJECTIVES

CLASSES = 47
WARM_UPS = 2
WAITING = ("Wait", "Finish", "AllReduce", "AllToAll", "PostRecv", "Send")
COLUMNS = (
    "exchange", "objective", "prefetch", "of DGL's time", "sent MiB",
    "of sar", "once MiB", "kept MiB", "planned MiB", "messages",
    "all-reduced MiB", "ms", "low", "high", "exchange ms", "cpu ms", "error",
)  # fmt: skip


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
        once, kept: bytes sent once for what is made of x alone, and kept of it.
        messages: to other ranks, an epoch.
        all_reduced: bytes this rank put into all-reduces, an epoch.
        seconds: of each timed epoch.
        computing: seconds of processor time an epoch, of all threads of this rank.
        exchanging: seconds of one epoch spent posting messages and waiting for them.
        loss: after the last epoch.
    """

    sent: float
    planned: int
    once: int
    kept: int
    messages: float
    all_reduced: float
    seconds: list[float]
    computing: float
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
    before, seconds, busy = compiled.traffic(), [], time.process_time()
    for _ in range(repeat):
        dist.barrier()
        started = time.perf_counter()
        loss = epoch()
        seconds.append(time.perf_counter() - started)
    busy = (time.process_time() - busy) / repeat
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
    plan = compiled.plan()
    once = sum(e.sent_bytes for e in plan.prologue_exchanges)
    kept = sum(nbytes for _, _, nbytes in plan.prologue)
    return Epochs(
        sent["sent_bytes"], plan.sent_bytes, once, kept, sent["messages"], sent["all_reduce_bytes"], seconds, busy,
        exchanging, float(loss),
    )  # fmt: skip


def train_whole(model: nn.Module, x: Tensor, y: Tensor, graph: Graph, threads: int, repeat: int) -> tuple[float, float]:
    """Train on the whole graph with DGL on rank 0 while the others wait; median seconds of an epoch, last loss."""
    found = [0.0, 0.0]
    if dist.get_rank() == 0:
        set_threads(threads)
        layers = Model([as_dgl(layer) for layer in model.layers])  # type: ignore[union-attr]
        optimizer, seconds = torch.optim.Adam(layers.parameters(), lr=1e-3), []
        for _ in range(WARM_UPS + repeat):
            started = time.perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(layers(x, graph), y)
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - started)
        found = [statistics.median(seconds[WARM_UPS:]), loss.item()]
        set_threads(1)
    dist.broadcast_object_list(found, 0)
    return found[0], found[1]


def run(
    graph: Graph,
    options: Options,
    exchanges: tuple[str, ...],
    objectives: tuple[str, ...],
    prefetches: tuple[int, ...],
    dgl_threads: int,
    report: Report,
) -> None:
    """Every model with every way of exchanging; rank 0 reports means over ranks."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(graph.num_nodes, options.width, generator=random)
    y = torch.randint(CLASSES, (graph.num_nodes,), generator=random)
    parts = sarc.partition(graph.edge_index, num_nodes=graph.num_nodes, num_parts=dist.get_world_size(), seed=0)
    shard, where = parts.shard(dist.get_rank(), x=x, y=y), f"{graph}, {dist.get_world_size()} ranks"
    for name in models(options.width, options.heads):
        if not options.wants(name):
            continue
        losses: list[float] = []
        base = whole = 0.0
        if dgl_threads:
            model = models(options.width, options.heads)[name]
            whole, loss = train_whole(model, x, y, graph, dgl_threads, options.repeat)
            losses.append(loss)
            if dist.get_rank() == 0:
                report.add(graph=where, case=name, exchange="DGL, whole graph", ms=1e3 * whole)
        for exchange, objective, prefetch in ways(exchanges, objectives, prefetches):
            model = models(options.width, options.heads)[name]
            settings = {"exchange": exchange, "objective": objective, "prefetch": prefetch}
            compiled = sarc.compile(model, shard.partitions, backend=options.backend, **settings)
            mine = train(compiled, shard, options.repeat)
            everyone: list[Epochs] = [mine] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
            losses.append(mine.loss)
            if dist.get_rank() == 0:
                found = row(exchange, everyone)
                base = found["sent MiB"] if exchange == "sar" else base  # type: ignore[assignment]
                found["of sar"] = found["sent MiB"] / base if base else None  # type: ignore[operator]
                found |= {"objective": objective, "prefetch": prefetch, "error": abs(mine.loss - losses[0])}
                found["of DGL's time"] = statistics.median(slowest_of(everyone)) / whole if whole else None
                report.add(graph=where, case=name, **found)
        if dist.get_rank() == 0:
            report.show()


def ways(
    exchanges: tuple[str, ...], objectives: tuple[str, ...], prefetches: tuple[int, ...]
) -> list[tuple[str, str, int]]:
    """Ways to exchange with each objective and prefetch; the paper's scheme knows no objective."""
    each = [(e, o) for e in exchanges for o in (objectives[:1] if e == "sar" else objectives)]
    return [(e, o, p) for e, o in each for p in prefetches]


def slowest_of(everyone: list[Epochs]) -> list[float]:
    """Seconds of the slowest rank of each epoch, in order."""
    return sorted(map(max, zip(*(e.seconds for e in everyone), strict=True)))


def row(exchange: str, everyone: list[Epochs]) -> dict[str, object]:
    """Means over ranks; times are those of the slowest rank of each epoch."""
    mib = 1 << 20
    slowest = slowest_of(everyone)
    low, high = slowest[len(slowest) // 4], slowest[(3 * len(slowest)) // 4]
    return {
        "exchange": exchange,
        "sent MiB": statistics.fmean(e.sent for e in everyone) / mib,
        "planned MiB": statistics.fmean(e.planned for e in everyone) / mib,
        "once MiB": statistics.fmean(e.once for e in everyone) / mib,
        "kept MiB": statistics.fmean(e.kept for e in everyone) / mib,
        "messages": statistics.fmean(e.messages for e in everyone),
        "all-reduced MiB": statistics.fmean(e.all_reduced for e in everyone) / mib,
        "ms": 1e3 * statistics.median(slowest),
        "low": 1e3 * low,
        "high": 1e3 * high,
        "cpu ms": 1e3 * statistics.fmean(e.computing for e in everyone),
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
@click.option("--exchange", "exchanges", multiple=True, type=click.Choice(EXCHANGES), default=("sar", "ring", "auto"),
              show_default=True)
@click.option("--objective", "objectives", multiple=True, type=click.Choice(OBJECTIVES), default=("time", "bytes"))
@click.option("--backend", default="auto", show_default=True, help="Of sarc.compile.")
@click.option("--prefetch", "prefetches", multiple=True, type=click.IntRange(0), default=(1,), show_default=True,
              help="Chunks posted ahead; may be repeated.")
@click.option("--dgl-threads", default=2, show_default=True, help="Of DGL on the whole graph; 0 leaves it out.")
@click.option("--json", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write results.")
def main(
    exchanges: tuple[str, ...],
    objectives: tuple[str, ...],
    graph: str,
    prefetches: tuple[int, ...],
    dgl_threads: int,
    **given,
) -> None:
    """Bytes and time of an epoch over ranks; start it with torchrun."""
    options = Options(graph=graph, threads=1, **given)
    set_threads(1)
    sarc.init_distributed()
    report = Report("exchange", options, COLUMNS)
    for drawn in graphs(options, graph):
        run(drawn, options, exchanges, objectives, prefetches, dgl_threads, report)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
