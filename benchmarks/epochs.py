"""Training epochs of 3-layer models: forward, cross entropy on 60 % of the nodes, backward, Adam.

    python -m benchmarks.epochs

sarc compiles the stack of PyG layers; DGL's has the same mathematics (`dgl_layers.py`). Every contestant starts from
the same parameters, and is timed if its logits, and what three epochs of plain gradient descent change of them, are
those of plain PyG. Adam cannot tell: it divides a gradient by its own size, so one that is nothing but rounding moves a
parameter as far as any other.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import sarc
from benchmarks.contestants import TRAVERSALS, Contestant, Function, OnGraph, Step, distance
from benchmarks.graphs import Graph
from benchmarks.layers import with_kept_norm
from benchmarks.options import SIZES, Options, command
from benchmarks.pyg_layers import layers
from benchmarks.race import COLUMNS, race
from benchmarks.report import Report

DEPTH = 3
CLASSES = 16
CHECKED_EPOCHS, CHECKED_RATE = 3, 0.1
MODELS = {"GCN": "GCN", "SAGE": "SAGE mean", "GAT": "GAT"}


@command
def main(options: Options) -> None:
    """Training epochs of 3-layer GCN, SAGE and GAT against PyG, PyG with torch.compile, and DGL."""
    report = Report("training epochs", options, COLUMNS)
    for case in cases(options):
        race(case, options, report)


@dataclass(frozen=True, eq=False)
class Training:
    """A model to train on a graph; what a race asks of a case.

    Attributes:
        model: the layers of PyG, as every contestant finds them.
        x: float32 [N, F].
        y: int64 [N], a class a node; the first 60 % of the nodes, whose numbers mean nothing, are trained on.
    """

    name: str
    graph: Graph
    model: nn.Module
    x: Tensor
    y: Tensor
    contestants: tuple[Contestant, ...]
    width: int
    traversals: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {"epoch": tuple(DEPTH * n for n in TRAVERSALS["forward+backward"])}
    )
    tolerance: float = 1e-3

    def refresh(self, seed: int) -> None:
        """Nothing: an epoch leaves other parameters than it found."""

    def steps(self, function: Function) -> dict[str, Step]:
        """One training epoch; returns its loss."""
        return {"epoch": self._epoch(function, torch.optim.Adam(function.parameters(), lr=1e-3))}

    def error(self, function: Function, only_forward: bool = False) -> float:
        """The larger ||a - b|| / ||b|| of the first logits and of their change in some epochs, b those of plain PyG."""
        return max(distance(a, b, 0.0) for a, b in zip(self._change(function), self._expected))

    def _epoch(self, function: Function, optimizer: torch.optim.Optimizer) -> Step:
        trained = torch.arange(self.x.shape[0]) < 0.6 * self.x.shape[0]

        def epoch() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(function(self.x)[trained], self.y[trained])
            loss.backward()
            optimizer.step()
            return loss.detach()

        return epoch

    @functools.cached_property
    def _expected(self) -> tuple[Tensor, Tensor]:
        return self._change(OnGraph(copy.deepcopy(self.model), self.graph.edge_index))

    def _change(self, function: Function) -> tuple[Tensor, Tensor]:
        """Logits [N, C] of the first parameters, and what gradient descent changes of them."""
        epoch = self._epoch(function, torch.optim.SGD(function.parameters(), lr=CHECKED_RATE))
        before = self._logits(function)
        for _ in range(CHECKED_EPOCHS):
            epoch()
        return before, self._logits(function) - before

    def _logits(self, function: Function) -> Tensor:
        with torch.no_grad():
            return function(self.x).clone()  # a contestant may use its buffers again


class Stack(nn.Module):
    """Layers called with x and a graph, relu between them, and a linear layer to the classes."""

    def __init__(self, convs: list[nn.Module], head: nn.Module):
        super().__init__()
        self.convs, self.head = nn.ModuleList(convs), head

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, graph).relu()
        return self.head(x)

    def each(self, change: Callable[[nn.Module], nn.Module]) -> Stack:
        """The stack of other forms of the layers, parameters copied."""
        mine = copy.deepcopy(self)
        return Stack([change(conv) for conv in mine.convs], mine.head)


def cases(options: Options) -> Iterator[Training]:
    """One case a graph and model."""
    for graph in options.graphs(SIZES[:1]):
        for name, layer in MODELS.items():
            if not options.wants(name):
                continue
            torch.manual_seed(0)
            make = layers()[layer].make
            convs = [make(options.width, options.heads, graph) for _ in range(DEPTH)]
            model = Stack(convs, nn.Linear(options.width, CLASSES))
            x = torch.randn(graph.num_nodes, options.width)
            y = torch.randint(CLASSES, (graph.num_nodes,))
            given = tuple(contestants(name, model, graph, options.backend))
            yield Training(name, graph, model, x, y, given, options.width)


def contestants(name: str, model: Stack, graph: Graph, backend: str) -> Iterator[Contestant]:
    """The libraries' forms of a stack, each with parameters of its own."""
    from benchmarks.dgl_layers import as_dgl

    edges, mine = graph.edge_index, lambda: copy.deepcopy(model)
    yield Contestant("sarc", lambda: OnGraph(sarc.compile(mine(), 1, backend=backend), edges))
    yield Contestant("DGL", lambda: OnGraph(model.each(as_dgl), graph))
    yield Contestant("PyG", lambda: OnGraph(mine(), edges))
    if name == "GCN":
        yield Contestant("PyG, norm kept", lambda: OnGraph(model.each(with_kept_norm), edges))
    yield Contestant("PyG + torch.compile", lambda: OnGraph(torch.compile(mine(), dynamic=False), edges))


if __name__ == "__main__":
    main()
