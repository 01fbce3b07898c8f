"""PyG's layers that the benchmarks run: F floats in and out, 4 heads of F / 4 where there are heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.contestants import FORWARD, TRAINING, TRAVERSALS
from benchmarks.graphs import Graph


@dataclass(frozen=True)
class Layer:
    """A layer of the table.

    Attributes:
        make: the layer, from F, H and the graph (whose degrees PNA wants).
        traversals: reads of a row of F floats that every edge needs, by destination and by source (see `Case`); None
            where it depends on how the layer is computed.
        tolerance: of `Case.error`.
    """

    make: Callable[[int, int, Graph], nn.Module]
    traversals: dict[str, tuple[int, int]] | None
    tolerance: float = 1e-4


def layers() -> dict[str, Layer]:
    """By name. GAT and GATv2 run without added self loops, on the edges as they are; GCN adds them, as always."""
    import torch_geometric.nn as g

    return {
        "GCN": Layer(lambda f, h, graph: g.GCNConv(f, f), TRAVERSALS),
        "SAGE mean": Layer(lambda f, h, graph: g.SAGEConv(f, f), TRAVERSALS),
        "SAGE max": Layer(lambda f, h, graph: g.SAGEConv(f, f, aggr="max"), TRAVERSALS),
        # Among millions of logits a few lie within rounding of the leaky ReLU's kink: their slope is either one.
        "GAT": Layer(lambda f, h, graph: g.GATConv(f, f // h, heads=h, add_self_loops=False), TRAVERSALS, 1e-3),
        # Backward: the source needs the other end's features and gradient, the destination the sources' features again.
        "GATv2": Layer(
            lambda f, h, graph: g.GATv2Conv(f, f // h, heads=h, add_self_loops=False),
            {FORWARD: (1, 0), TRAINING: (2, 2)},
        ),
        # Keys and values of the sources; backward: queries and gradients of the destinations, keys once more.
        "Transformer": Layer(
            lambda f, h, graph: g.TransformerConv(f, f // h, heads=h), {FORWARD: (2, 0), TRAINING: (3, 2)}
        ),
        # A variance as the difference of two means cancels digits.
        "PNA": Layer(
            lambda f, h, graph: g.PNAConv(f, f, ["mean", "max", "std"], ["identity"], degrees(graph)), None, 1e-2
        ),
        "GIN": Layer(
            lambda f, h, graph: g.GINConv(nn.Sequential(nn.Linear(f, f), nn.ReLU(), nn.Linear(f, f))), TRAVERSALS
        ),
    }


def degrees(graph: Graph) -> torch.Tensor:
    """int64 [largest in-degree + 1]: how many nodes have each in-degree."""
    return torch.bincount(torch.bincount(graph.dst, minlength=graph.num_nodes))
