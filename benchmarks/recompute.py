"""What a lower peak costs in time: `python -m benchmarks.recompute`.

A training step of three layers under `objective="memory"`, as planned and with everything saved, in turn in one
process; quartiles, and the median ratio. `benchmarks.memory` measures what the same step saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import click
import torch
from torch.nn.functional import cross_entropy

import sarc
from benchmarks.memory import CLASSES, MEBI, WIDTH, Net, make_graph
from benchmarks.timing import interleave, median_ratio, quartiles

BUDGETS = {"as planned": None, "everything saved": math.inf}


@click.command()
@click.option("--nodes", default=100_000, show_default=True)
@click.option("--degree", default=20, show_default=True, help="E / N.")
@click.option("--graph", "kind", default="community", show_default=True)
@click.option("--model", default="GAT", show_default=True, help="GAT or SAGE.")
@click.option("--threads", default=1, show_default=True)
@click.option("--repeat", default=9, show_default=True, help="Steps of each, after those that warm up.")
def main(nodes: int, degree: int, kind: str, model: str, threads: int, repeat: int) -> None:
    """Time of a training step by what is kept between its passes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    graph, net = make_graph(kind, nodes, degree), Net(model)
    x, y = torch.randn(nodes, WIDTH), torch.randint(CLASSES, (nodes,))
    compiled = {
        name: sarc.compile(net, 1, objective="memory", memory_budget=budget) for name, budget in BUDGETS.items()
    }

    def step(module: sarc.CompiledModule) -> Callable[[], None]:
        return lambda: cross_entropy(module(x, graph.edge_index), y).backward()

    taken = interleave({name: step(module) for name, module in compiled.items()}, lambda k: None, repeat)
    print(f"{model}, {kind}, N={nodes:,} E={nodes * degree:,}, {threads} threads, {repeat} steps of each in turn")
    for name, module in compiled.items():
        (memory,), (low, middle, high) = module.plan().memory, quartiles(taken[name])
        peak = memory.peak / MEBI
        print(f"{name:17} {middle:.3f} s a step ({low:.3f} to {high:.3f}), predicted peak {peak:.1f} MiB")
    print(f"as planned takes {median_ratio(*taken.values()):.3f} times as long")


if __name__ == "__main__":
    main()
