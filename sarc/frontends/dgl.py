"""DGL models: a graph object that records message passing as plain torch ops, and the redirection that goes with it.

A DGL layer calls the graph it is given. Handing it a `RecordingGraph` in place of a `dgl.DGLGraph`, inside
`redirect_dgl()`, turns every call into index_select, index_add and scatter_reduce on two index tensors, which
torch.fx then sees like any other op:

    graph = record_graph(dgl_graph)                      # or RecordingGraph(src, dst, num_nodes)
    with redirect_dgl():
        out = layer(graph, x)                            # == layer(dgl_graph, x), forward and gradients

Importing this module does not import dgl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sarc.errors import GraphError
from sarc.frontends.dgl_graph import RecordingGraph
from sarc.frontends.dgl_redirect import redirect_dgl

if TYPE_CHECKING:
    from dgl import DGLGraph

__all__ = ["RecordingGraph", "record_graph", "redirect_dgl"]


def record_graph(graph: DGLGraph) -> RecordingGraph:
    """Recording stand-in for `graph`: its edges in edge-id order, its features, its answer to zero in-degree checks.

    Raises GraphError for blocks, graphs of several node or edge types, and batches of graphs.
    """
    if graph.is_block or not graph.is_homogeneous:
        raise GraphError(
            f"expected a homogeneous DGLGraph, got node types {graph.ntypes} and edge types {graph.etypes}"
            f"{' (a block)' if graph.is_block else ''}: convert it with dgl.to_homogeneous(g)"
        )
    if graph.batch_size != 1:
        raise GraphError(f"expected a single DGLGraph, got a batch of {graph.batch_size}: compile for one graph")
    src, dst = graph.edges(order="eid")
    return RecordingGraph(
        src.long(),
        dst.long(),
        graph.num_nodes(),
        graph.ndata,
        graph.edata,
        zero_in_degree=bool((graph.in_degrees() == 0).any()),
    )
