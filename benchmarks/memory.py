"""Peak memory of a training step, by number of parts: `python -m benchmarks.memory`.

Every number is of processes of their own whose allocator returns freed memory at once: the highest resident size during
one step (forward, loss, backward) less that before it, after two steps that warm up. What is loaded before (graph,
features, parameters, what was bound to the graph) is not in it, and sarc's pool of free blocks is emptied beforehand.
With P ranks the largest of them counts; in one process with P parts, the part that holds most, by tracked tensors.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from benchmarks.graphs import Graph, draw
from benchmarks.peak import REPOSITORY, TIGHT, high_water, resident, settle

CLASSES, WIDTH, HEADS, COMMUNITIES = 47, 128, 4, 64
ACROSS = 0.6
CONTESTANTS = ("sarc", "sarc, all saved", "DGL", "PyG")
MEBI = 1 << 20


class Net(nn.Module):
    """Three layers, relu between them; attention averages its heads in the last one."""

    def __init__(self, kind: str):
        super().__init__()
        from torch_geometric.nn import GATConv, SAGEConv

        def layer(out: int, last: bool) -> nn.Module:
            if kind == "SAGE":
                return SAGEConv(WIDTH, out)
            return GATConv(WIDTH, out if last else out // HEADS, heads=HEADS, concat=not last, add_self_loops=False)

        self.convs = nn.ModuleList([layer(WIDTH, False), layer(WIDTH, False), layer(CLASSES, True)])

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        for conv in self.convs[:-1]:
            x = conv(x, graph).relu()
        return self.convs[-1](x, graph)


class AveragedGat(nn.Module):
    """DGL's attention with averaged heads, on the parameters of PyG's."""

    def __init__(self, layer: Any):
        super().__init__()
        from dgl.nn import GATConv

        self.conv = GATConv(layer.in_channels, layer.out_channels, layer.heads, allow_zero_in_degree=True, bias=False)
        self.conv.fc, self.conv.attn_l, self.conv.attn_r = layer.lin, layer.att_src, layer.att_dst
        self.bias, self.concat = layer.bias, layer.concat

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        from benchmarks.dgl_graph import dgl_graph

        out = self.conv(dgl_graph(graph), x)
        return (out.flatten(1) if self.concat else out.mean(1)) + self.bias


def make_graph(kind: str, nodes: int, degree: int) -> Graph:
    """ "rmat", or "community": equal blocks of consecutive nodes, 60 % of the edges between different ones."""
    if kind != "community":
        return draw(kind, nodes, nodes * degree)
    random = torch.Generator().manual_seed(0)
    size = -(-nodes // COMMUNITIES)
    dst = torch.randint(nodes, (nodes * degree,), generator=random)
    anywhere = torch.randint(nodes, dst.shape, generator=random)
    near = (dst // size * size + torch.randint(size, dst.shape, generator=random)).clamp_(max=nodes - 1)
    across = torch.rand(dst.shape, generator=random) < ACROSS
    return Graph("community", nodes, torch.where(across, anywhere, near), dst)


def child(given: dict[str, Any]) -> dict[str, float]:
    """One process's measurement."""
    import sarc

    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    graph = make_graph(given["graph"], given["nodes"], given["degree"])
    parts, ranked, name = given["parts"], given["ranks"], given["contestant"]
    model: nn.Module = Net(given["model"])
    x, y = torch.randn(graph.num_nodes, WIDTH), torch.randint(CLASSES, (graph.num_nodes,))
    compiled = None
    call: Any = graph.edge_index
    if name.startswith("sarc"):
        owner = torch.arange(graph.num_nodes) * parts // graph.num_nodes
        cut = sarc.partition(graph.edge_index, num_nodes=graph.num_nodes, assignment=owner, num_parts=parts)
        budget = float("inf") if "all saved" in name else None
        if ranked:
            sarc.init_distributed()
            shard = cut.shard(int(os.environ["RANK"]), x=x, y=y)
            x, y, call, cut = shard.x, shard.y, shard.graph, shard.partitions
            del graph, shard
        options = {"exchange": given["exchange"], "objective": "memory"}
        model = compiled = sarc.compile(model, cut, memory_budget=budget, **options)
        del cut
    elif name == "DGL":
        from benchmarks.dgl_layers import as_dgl

        convs = [AveragedGat(c) if given["model"] == "GAT" else as_dgl(c) for c in model.convs]  # type: ignore
        model.convs, call = nn.ModuleList(convs), graph

    def forward() -> Tensor:
        out = model(x, call)
        return sarc.cross_entropy(out, y) if ranked else nn.functional.cross_entropy(out, y)

    seconds = []
    for _ in range(2 + given["steps"]):
        begin = time.perf_counter()
        forward().backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - begin)
    found: dict[str, float] = {"seconds": statistics.median(seconds[2:])} if given["steps"] else {}
    if compiled is not None:
        plans = compiled.plan().memory
        found["predicted"] = max(p.peak for p in plans)
        with sarc.profile() as measured:
            forward().backward()
        model.zero_grad()
        runs = [r.memory for r in measured.runs if r.memory is not None]
        found["tracked"] = max((m.peak - m.loaded for m in runs), default=0)
        del measured, runs
        compiled.release_memory()
    settle()
    before = resident("Rss")
    Path("/proc/self/clear_refs").write_text("5")
    loss = forward()
    ctypes.CDLL(None).malloc_trim(0)
    found["saved"] = resident("Rss") - before
    loss.backward()
    found["peak"] = high_water() - before
    return found


def measure(**given: Any) -> dict[str, float]:
    """The largest of every number over the processes of one configuration.

    Raises:
        RuntimeError: a process failed; with the last line of what it said.
    """
    ranks = given["ranks"] or 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, **TIGHT, "OMP_NUM_THREADS": str(given["threads"])}
        env |= {k: str(v) for k, v in world.items()} if given["ranks"] else {}
        command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(given)]
        started.append(
            subprocess.Popen(command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True)
        )
    said = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError((errors.strip().splitlines() or ["no message"])[-1])
    found = [json.loads(out.strip().splitlines()[-1]) for out, _ in said]
    return {key: max(each[key] for each in found) for key in found[0]}


def exponent(parts: Sequence[int], peaks: Sequence[float]) -> float:
    """Slope of log peak against log P, by least squares: -1 is memory that falls as 1/P."""
    xs, ys = [math.log(p) for p in parts], [math.log(v) for v in peaks]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((a - mean_x) ** 2 for a in xs)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True)) / over if over else 0.0


@click.command()
@click.option("--nodes", default=100_000, show_default=True)
@click.option("--degree", default=50, show_default=True, help="E / N.")
@click.option("--graph", "graphs", multiple=True, default=("community", "rmat"), show_default=True)
@click.option("--model", "models", multiple=True, default=("SAGE", "GAT"), show_default=True)
@click.option("--parts", "counts", multiple=True, type=int, default=(1, 2, 4, 8, 16), show_default=True)
@click.option("--contestant", "contestants", multiple=True, default=CONTESTANTS, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of each process.")
@click.option("--exchange", default="ring", show_default=True, help="Of sarc.compile; ring holds no halo whole.")
@click.option("--steps", default=0, show_default=True, help="Steps timed after two that warm up.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows, as they come.")
@click.option("--child", hidden=True)
def main(
    nodes, degree, graphs, models, counts, contestants, threads, exchange, steps, file, child: str | None
) -> None:
    """Peak memory of a training step of SAGE and GAT: whole graph, P ranks, P parts in one process."""
    if child is not None:
        print(json.dumps(globals()["child"](json.loads(child))))
        return
    rows: list[dict[str, Any]] = []

    def save() -> None:
        if file is not None:
            about = {"nodes": nodes, "degree": degree, "threads": threads, "exchange": exchange}
            file.write_text(json.dumps({**about, "rows": rows}, indent=1))

    def add(**given: Any) -> float | None:
        row = dict(given)
        try:
            row |= measure(**given, nodes=nodes, degree=degree, threads=threads, exchange=exchange, steps=steps)
        except RuntimeError as failure:
            row["note"] = str(failure)
        rows.append(row)
        save()
        sizes = "  ".join(f"{k} {row[k] / MEBI:8.1f}" for k in ("peak", "saved", "tracked", "predicted") if k in row)
        how = "ranks" if given["ranks"] else "parts in one process"
        head = f"{given['graph']:9} {given['model']:4} {given['contestant']:15} {given['parts']:2} {how:20}"
        took = f"  {row['seconds']:.2f} s a step" if "seconds" in row else ""
        print(f"{head} {sizes}{took} {row.get('note', '')}", flush=True)
        return row.get("peak" if given["ranks"] else "tracked")

    print(f"MiB of a step beyond what is loaded; N={nodes:,} E={nodes * degree:,} F={WIDTH}, {threads} threads")
    for graph in graphs:
        for model in models:
            about = {"graph": graph, "model": model}
            for contestant in contestants:
                add(**about, contestant=contestant, parts=1, ranks=0)
            for kind in ("ranks", "parts"):
                peaks = [add(**about, contestant="sarc", parts=p, ranks=p if kind == "ranks" else 0) for p in counts]
                known = [(p, v) for p, v in zip(counts, peaks, strict=True) if v]
                if len(known) > 1:
                    slope = exponent(*zip(*known, strict=True))
                    print(f"{graph:9} {model:4} peak of one of P {kind} ~ P^{slope:.2f}")
                    rows.append({**about, "of": kind, "exponent": slope})
    save()


if __name__ == "__main__":
    main()
