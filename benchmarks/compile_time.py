"""Compile time of a 3-layer GAT, from the first call to its schedules, for graphs of growing size.

    python benchmarks/compile_time.py

Prints seconds of the passes (capture to edge programs) and of binding to the graph (structure program, column maps,
schedules), for N = 1k, 10k and 100k nodes in 4 parts of one process. The passes do not see N. Then how long a new
process takes for `sarc dump` of such a model, beside what it starts with: the imports of torch, of what the model's
file imports, and of sarc; medians of five processes each.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch_geometric.nn.models import GAT

import sarc
from sarc.pipeline import Pipeline

PROCESSES = 5
COLD = {
    "import torch": ["-c", "import torch"],
    "import torch, torch_geometric.nn": ["-c", "import torch_geometric.nn"],
    "the same and sarc": ["-c", "import torch_geometric.nn, sarc"],
    "sarc dump": ["-m", "sarc", "dump", f"{__file__}:ThreeLayers", "--parts", "4"],
}


class ThreeLayers(GAT):
    """128 features, two hidden layers of 4 heads of 32, 16 classes."""

    def __init__(self) -> None:
        super().__init__(128, 128, 3, 16, heads=4)


def main() -> None:
    table = Table(title="3-layer GAT, 4 parts in one process")
    for column in ("nodes", "edges", "passes s", "binding s"):
        table.add_column(column, justify="right")
    GAT(8, 8, 1)  # the first module pays for imports
    for nodes in (1_000, 10_000, 100_000):
        data = sarc.data.labelled_graph(nodes, seed=0)
        parts = sarc.partition(data.edge_index, num_nodes=nodes, num_parts=4, method="contiguous")
        model = GAT(data.x.shape[1], 64, 3, data.num_classes, heads=4)
        passes, whole = measure(model, parts, data)
        table.add_row(str(nodes), str(data.edge_index.shape[1]), f"{passes:.2f}", f"{whole - passes:.2f}")
    Console().print(table)
    cold = Table(title=f"a new process, medians of {PROCESSES}")
    cold.add_column("what it runs")
    cold.add_column("seconds", justify="right")
    for what, command in COLD.items():
        cold.add_row(what, f"{median(seconds_of(command) for _ in range(PROCESSES)):.2f}")
    Console().print(cold)


def seconds_of(command: list[str]) -> float:
    """Wall time of a new Python process that runs `command`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(model: torch.nn.Module, parts, data) -> tuple[float, float]:
    """Seconds in the passes, and seconds of the first call less those of the second."""
    spent = [0.0]

    def timed(function):
        def run(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - started

        return run

    compiled = sarc.compile(model, parts)
    for name in ("front", "back"):
        setattr(compiled._compiler, name, timed(getattr(Pipeline(), name)))
    started = time.perf_counter()
    compiled(data.x, data.edge_index)
    first = time.perf_counter() - started
    started = time.perf_counter()
    compiled(data.x, data.edge_index)
    return spent[0], first - (time.perf_counter() - started)


if __name__ == "__main__":
    main()
