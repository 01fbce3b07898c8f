"""The gather roof: how fast rows of a table are read in the order of a graph's edges.

    python -m benchmarks.roof

For each table [N, W] float32: GB/s (1e9 bytes a second) of rows read, E W 4 bytes, by the hand-written loops of
`native/gather.cpp`. "in" visits edges by destination and reads sources, as a forward pass does; "out" visits them by
source and reads destinations, as a backward pass does. "sum" adds the rows of a destination and writes them, "only"
just reads. The roof of a direction is the best of its loops.
"""

from __future__ import annotations

import functools
from ctypes import c_int64
from dataclasses import dataclass

import torch

from benchmarks.graphs import Compressed, Graph
from benchmarks.native.library import load, pointer
from benchmarks.options import Options, command
from benchmarks.report import Report
from benchmarks.timing import interleave, quartiles

AHEAD = (0, 4, 8, 16)
WIDTHS = (64, 128, 256)


@dataclass(frozen=True)
class Roof:
    """Best measured gather rates of a graph's table, in bytes a second, by direction."""

    read_in: float
    read_out: float

    def seconds(self, table_bytes_per_row: int, num_edges: int, traversals: tuple[int, int]) -> float:
        """Least time of so many traversals (in, out) in which every edge reads one row."""
        into, out = traversals
        return num_edges * table_bytes_per_row * (into / self.read_in + out / self.read_out)


@command
def main(options: Options) -> None:
    """The rate at which rows are gathered in the order of a graph's edges, by table size."""
    report = Report("gather roof", options, ("loop", "direction", "GB/s", "ms", "low", "high"))
    for graph in options.graphs():
        for width in sorted({*WIDTHS, options.width}):
            for direction, loop, seconds in measure(graph, width, options.threads, options.repeat):
                low, middle, high = quartiles(seconds)
                report.add(
                    graph=str(graph),
                    case=f"width {width}, table {graph.num_nodes * width * 4 / 1e6:.0f} MB",
                    loop=loop,
                    direction=direction,
                    **{"GB/s": graph.num_edges * width * 4 / middle / 1e9},
                    ms=middle * 1e3,
                    low=low * 1e3,
                    high=high * 1e3,
                )
            report.show()


@functools.cache
def roof(graph: Graph, width: int, threads: int, repeat: int = 5) -> Roof:
    """The roof of a table [N, width] float32."""
    best = {"in": float("inf"), "out": float("inf")}
    for direction, _, seconds in measure(graph, width, threads, repeat):
        best[direction] = min(best[direction], quartiles(seconds)[1])
    size = graph.num_edges * width * 4
    return Roof(size / best["in"], size / best["out"])


def measure(graph: Graph, width: int, threads: int, repeat: int) -> list[tuple[str, str, list[float]]]:
    """Direction, loop and seconds of every loop, repetitions interleaved."""
    table = torch.randn(graph.num_nodes, width)
    sums, scratch = torch.empty(graph.num_nodes, width), torch.empty(threads, width)
    library = load("gather", WIDTH=width)
    num_nodes = c_int64(graph.num_nodes)

    def loop(edges: Compressed, function, out: torch.Tensor, ahead: int):
        start, other = pointer(edges.start), pointer(edges.other)
        return lambda: function(num_nodes, start, other, pointer(table), pointer(out), ahead, threads)

    steps = {}
    for direction, edges in (("in", graph.by_destination), ("out", graph.by_source)):
        _check(graph, edges, table, sums, loop(edges, library.gather_sum, sums, 0))
        for ahead in AHEAD:
            name = f"prefetch {ahead}" if ahead else "no prefetch"
            steps[direction, f"sum, {name}"] = loop(edges, library.gather_sum, sums, ahead)
            steps[direction, f"only, {name}"] = loop(edges, library.gather_only, scratch, ahead)
    times = interleave(steps, lambda k: None, repeat)
    return [(direction, name, times[direction, name]) for direction, name in steps]


def _check(graph: Graph, edges: Compressed, table, sums, run) -> None:
    """The loop sums what plain torch sums: on the first 8 columns, to keep the edge tensor small."""
    run()
    row = torch.repeat_interleave(torch.arange(graph.num_nodes), edges.start.diff())
    expected = torch.zeros(graph.num_nodes, min(8, table.shape[1]))
    expected.index_add_(0, row, table[:, :8][edges.other.long()])
    error = (sums[:, :8] - expected).norm() / expected.norm().clamp(min=1e-30)
    if not error < 1e-5:
        raise RuntimeError(f"the gather loop is wrong: relative error {error:.1e}")


if __name__ == "__main__":
    main()
