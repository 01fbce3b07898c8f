"""A graph as a DGLGraph."""

from __future__ import annotations

from typing import Any

from sarc.data.graph_data import GraphData


def to_dgl(graph: GraphData) -> Any:
    """A homogeneous DGLGraph with the same nodes and edges, edge ids in the order of `edge_index`; without features.

    Raises:
        ImportError: DGL is not installed.
    """
    import dgl

    return dgl.graph((graph.edge_index[0], graph.edge_index[1]), num_nodes=graph.num_nodes)
