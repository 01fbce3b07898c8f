"""Whole layers, F to F, dense part included: forward and forward+backward, with the gradients of x and the parameters.

    python -m benchmarks.layers
    python -m benchmarks.layers --only GAT --only PNA --no-torch-compile --no-memory

sarc compiles the PyG layer; DGL's has equal mathematics and the same parameters (`dgl_layers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import sarc
from benchmarks.contestants import TRAVERSALS, Case, Contestant, OnGraph
from benchmarks.graphs import Graph
from benchmarks.options import SIZES, Options, command
from benchmarks.pyg_layers import layers
from benchmarks.race import COLUMNS, race
from benchmarks.report import Report


@command
def main(options: Options) -> None:
    """Whole layers against PyG, PyG with torch.compile, and DGL: time, peak memory, bytes between the passes."""
    report = Report("layers", options, COLUMNS)
    for case in cases(options):
        race(case, options, report, memory_of="benchmarks.layers")


def cases(options: Options) -> Iterator[Case]:
    """One case a graph and layer."""
    for graph in options.graphs(SIZES[:1]):
        for name, layer in layers().items():
            if not options.wants(name):
                continue
            torch.manual_seed(0)
            module = layer.make(options.width, options.heads, graph)
            yield Case(
                name,
                graph,
                (torch.empty(graph.num_nodes, options.width, requires_grad=True),),
                OnGraph(module, graph.edge_index),
                tuple(contestants(module, graph, options.backend)),
                parameters=tuple(module.parameters()),
                width=options.width if layer.traversals else 0,
                traversals=layer.traversals or TRAVERSALS,
                tolerance=layer.tolerance,
            )


def contestants(module: nn.Module, graph: Graph, backend: str) -> Iterator[Contestant]:
    """The libraries' forms of a PyG layer; they share its parameters."""
    from torch_geometric.nn import GCNConv

    from benchmarks.dgl_layers import as_dgl

    edges = graph.edge_index
    yield Contestant("sarc", lambda: OnGraph(sarc.compile(module, 1, backend=backend), edges))
    yield Contestant(
        "sarc, least memory", lambda: OnGraph(sarc.compile(module, 1, backend=backend, objective="memory"), edges)
    )
    yield Contestant("DGL", lambda: OnGraph(as_dgl(module), graph))
    yield Contestant("PyG", lambda: OnGraph(module, edges))
    if isinstance(module, GCNConv):
        yield Contestant("PyG, norm kept", lambda: OnGraph(with_kept_norm(module), edges))
    yield Contestant("PyG + torch.compile", lambda: OnGraph(torch.compile(module, dynamic=False), edges))


def with_kept_norm(module: nn.Module) -> nn.Module:
    """A GCN layer that computes its edge weights at the first call only, on the same parameters."""
    from torch_geometric.nn import GCNConv

    kept = GCNConv(module.in_channels, module.out_channels, cached=True)
    kept.lin, kept.bias = module.lin, module.bias
    return kept


if __name__ == "__main__":
    main()
