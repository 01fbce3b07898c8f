"""What a lower peak costs in time: `python -m benchmarks.recompute`.

A training step of three layers under `objective="memory"`, as planned and with everything saved, in turn in one
process; medians, and their ratio. `benchmarks.memory` measures what the same step saves.
"""

from __future__ import annotations

import math
import statistics
import time

import click
import torch
from torch.nn.functional import cross_entropy

import sarc
from benchmarks.memory import CLASSES, MEBI, WIDTH, Net, make_graph

BUDGETS = {"as planned": None, "everything saved": math.inf}


@click.command()
@click.option("--nodes", default=100_000, show_default=True)
@click.option("--degree", default=20, show_default=True, help="E / N.")
@click.option("--graph", "kind", default="community", show_default=True)
@click.option("--model", default="GAT", show_default=True, help="GAT or SAGE.")
@click.option("--threads", default=1, show_default=True)
@click.option("--steps", default=9, show_default=True, help="Of each, after two that warm up.")
def main(nodes: int, degree: int, kind: str, model: str, threads: int, steps: int) -> None:
    """Time of a training step by what is kept between its passes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    graph, net = make_graph(kind, nodes, degree), Net(model)
    x, y = torch.randn(nodes, WIDTH), torch.randint(CLASSES, (nodes,))
    compiled = {
        name: sarc.compile(net, 1, objective="memory", memory_budget=budget) for name, budget in BUDGETS.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in compiled}
    for step in range(2 + steps):
        for name, module in compiled.items():
            begin = time.perf_counter()
            out = module(x, graph.edge_index)
            loss = cross_entropy(out, y)
            del out
            loss.backward()
            if step >= 2:
                taken[name].append(time.perf_counter() - begin)
    print(f"{model}, {kind}, N={nodes:,} E={nodes * degree:,}, {threads} threads, {steps} steps of each in turn")
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    for name, module in compiled.items():
        (memory,) = module.plan().memory
        print(f"{name:17} {seconds[name]:.3f} s a step, predicted peak {memory.peak / MEBI:.1f} MiB")
    first, second = seconds.values()
    print(f"as planned takes {first / second:.3f} times as long")


if __name__ == "__main__":
    main()
