"""The attention part of GAT: el, er [N, H] and z [N, H, D] to the weighted sum [N, H, D], without the dense part.

python -m benchmarks.attention
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

import sarc
from benchmarks.attention_yardstick import Yardstick
from benchmarks.contestants import Case, Contestant, Function, OnGraph
from benchmarks.dgl_graph import dgl_graph
from benchmarks.graphs import Graph
from benchmarks.options import Options, command
from benchmarks.race import COLUMNS, race
from benchmarks.report import Report

SLOPE = 0.2


@command
def main(options: Options) -> None:
    """Attention part of GAT, forward and forward+backward, against DGL, torch operators and a loop by hand."""
    report = Report("attention", options, COLUMNS)
    for case in cases(options):
        race(case, options, report, memory_of="benchmarks.attention")


def cases(options: Options) -> Iterator[Case]:
    """One case a graph."""
    heads, width = options.heads, options.width // options.heads
    for graph in options.graphs():
        nodes = graph.num_nodes
        sizes = ((nodes, heads), (nodes, heads), (nodes, heads, width))
        plain = OnGraph(Attention(), graph.edge_index)
        yield Case(
            f"{heads} x {width}",
            graph,
            tuple(torch.empty(size, requires_grad=True) for size in sizes),
            plain,
            (
                Contestant("sarc", lambda graph=graph: sarc_attention(graph, options.backend)),
                Contestant("DGL", lambda graph=graph: dgl_attention(graph)),
                Contestant("torch operators", lambda plain=plain: plain),
                Contestant("torch operators + torch.compile", lambda plain=plain: torch.compile(plain, dynamic=False)),
                Contestant("by hand", lambda graph=graph: Yardstick(graph, heads, width, SLOPE)),
                Contestant(
                    "by hand, buffers kept", lambda graph=graph: Yardstick(graph, heads, width, SLOPE, keep=True)
                ),
            ),
            width=options.width,
        )


class Attention(nn.Module):
    """GAT's attention in the operators that PyG's layer runs."""

    def forward(self, el: Tensor, er: Tensor, z: Tensor, edge_index: Tensor) -> Tensor:
        from torch_geometric.utils import scatter, softmax

        src, dst = edge_index
        score = leaky_relu(el[src] + er[dst], SLOPE)
        share = softmax(score, dst, num_nodes=z.size(0))
        return scatter(z[src] * share.unsqueeze(-1), dst, 0, z.size(0), "sum")


def sarc_attention(graph: Graph, backend: str) -> Function:
    return OnGraph(sarc.compile(Attention(), 1, backend=backend), graph.edge_index)


def dgl_attention(graph: Graph) -> Function:
    """As DGL's GATConv: u_add_v, edge_softmax, u_mul_e and sum."""
    from dgl.nn.functional import edge_softmax
    from dgl.ops import u_add_v, u_mul_e_sum

    g = dgl_graph(graph)

    def run(el: Tensor, er: Tensor, z: Tensor) -> Tensor:
        score = leaky_relu(u_add_v(g, el.unsqueeze(-1), er.unsqueeze(-1)), SLOPE)
        return u_mul_e_sum(g, z, edge_softmax(g, score))

    return run


if __name__ == "__main__":
    main()
