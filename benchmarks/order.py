"""What a locality order is worth: a copy sum over graphs whose nodes are numbered at random, and renumbered.

    python -m benchmarks.order

Medians of nine runs each, in turn; a grid stands for meshes and road maps, the other graphs are `benchmarks.graphs`'s.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sarc
from benchmarks.graphs import draw
from benchmarks.ops import CopySum

WIDTH, REPEAT, THREADS = 128, 9, 2


def main() -> None:
    torch.set_num_threads(THREADS)
    table = Table(title=f"copy sum, width {WIDTH}")
    for column in ("graph", "nodes", "edges", "at random ms", "in order ms", "times faster", "ordering s"):
        table.add_column(column, justify="right")
    for name, nodes, edges in graphs():
        edges = torch.randperm(nodes, generator=torch.Generator().manual_seed(0))[edges]
        started = time.perf_counter()
        order = sarc.locality_order(edges, nodes)
        spent = time.perf_counter() - started
        before, after = measure(nodes, [edges, order.argsort()[edges]])
        table.add_row(
            name, f"{nodes:,}", f"{edges.shape[1]:,}", f"{before * 1e3:.1f}", f"{after * 1e3:.1f}",
            f"{before / after:.2f}", f"{spent:.2f}",
        )  # fmt: skip
    Console().print(table)


def graphs() -> list[tuple[str, int, Tensor]]:
    """(name, N, edge_index)."""
    drawn = [(kind, 100_000, draw(kind, 100_000, 2_000_000).edge_index) for kind in ("community", "rmat", "uniform")]
    return [*drawn, ("grid", 632 * 632, grid(632))]


def grid(side: int) -> Tensor:
    """A square of nodes, each joined to up to four neighbours, both ways."""
    node = torch.arange(side * side).view(side, side)
    across = torch.stack([node[:, :-1].reshape(-1), node[:, 1:].reshape(-1)])
    down = torch.stack([node[:-1].reshape(-1), node[1:].reshape(-1)])
    return torch.cat([across, down, across.flip(0), down.flip(0)], 1)


def measure(nodes: int, numberings: list[Tensor]) -> list[float]:
    """Median seconds of a sum over each."""
    x = torch.randn(nodes, WIDTH)
    sums = [(sarc.compile(CopySum(), 1), edges) for edges in numberings]
    times: list[list[float]] = [[] for _ in sums]
    with torch.no_grad():
        for compiled, edges in sums:
            compiled(x, edges)
        for _ in range(REPEAT):
            for (compiled, edges), found in zip(sums, times, strict=True):
                started = time.perf_counter()
                compiled(x, edges)
                found.append(time.perf_counter() - started)
    return [median(found) for found in times]


if __name__ == "__main__":
    main()
