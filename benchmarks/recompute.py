"""What a lower peak costs in time: `python -m benchmarks.recompute`.

A training step of three layers under `objective="memory"`, as planned and with everything saved: in turn, each in a
process of its own, since what one leaves in the heap is not the other's; quartiles, and the median ratio.
`benchmarks.memory` measures what the same step saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

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
@click.option("--repeat", default=15, show_default=True, help="Steps of each, after those that warm up.")
def main(nodes: int, degree: int, kind: str, model: str, threads: int, repeat: int) -> None:
    """Time of a training step by what is kept between its passes."""
    with ExitStack() as running:
        steps, peaks = {}, {}
        for name, budget in BUDGETS.items():
            pipe = running.enter_context(child(nodes, degree, kind, model, threads, budget))
            peaks[name], steps[name] = pipe.recv(), asks(pipe)
        taken = interleave(steps, lambda k: None, repeat)
    print(f"{model}, {kind}, N={nodes:,} E={nodes * degree:,}, {threads} threads, {repeat} steps of each in turn")
    for name, seconds in taken.items():
        (low, middle, high), peak = quartiles(seconds), peaks[name] / MEBI
        print(f"{name:17} {middle:.3f} s a step ({low:.3f} to {high:.3f}), predicted peak {peak:.1f} MiB")
    print(f"as planned takes {median_ratio(*taken.values()):.3f} times as long")


@contextmanager
def child(*settings: Any) -> Iterator[Connection]:
    """The pipe to a process that trains (see `train`); it ends with the block."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=train, args=(there, *settings), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join()


def asks(pipe: Connection) -> Callable[[], None]:
    """A step of the process at the other end."""

    def step() -> None:
        pipe.send(None)
        pipe.recv()

    return step


def train(
    pipe: Connection, nodes: int, degree: int, kind: str, model: str, threads: int, budget: float | None
) -> None:
    """Sends the predicted peak, and then does a step whenever it is asked to, until the pipe closes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    graph, net = make_graph(kind, nodes, degree), Net(model)
    x, y = torch.randn(nodes, WIDTH), torch.randint(CLASSES, (nodes,))
    compiled = sarc.compile(net, 1, objective="memory", memory_budget=budget)
    compiled(x, graph.edge_index)
    (memory,) = compiled.plan().memory
    pipe.send(memory.peak)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        cross_entropy(compiled(x, graph.edge_index), y).backward()
        pipe.send(None)


if __name__ == "__main__":
    main()
