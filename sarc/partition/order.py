"""Locality order: a numbering of the nodes in which neighbours stand close together."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse.csgraph
import torch
from torch import Tensor

from sarc.partition.methods import symmetric_adjacency
from sarc.partition.read_graph import read_graph


def locality_order(edge_index: Any, num_nodes: int | None = None) -> Tensor:
    """The reverse Cuthill-McKee order of a graph, int64 [N]: the node that stands at each place.

    An aggregation reads the rows of a node's neighbours: numbered alike, they are read again while they are in the
    cache. Parts keep the order of node ids, so a graph renumbered once (`sarc.data.GraphData.reordered`) has local rows
    in every part. Graphs without structure gain nothing.

    Args:
        edge_index, num_nodes: as `sarc.partition` takes them.

    Raises:
        GraphError: the graph is malformed.

    Source: Cuthill and McKee, Reducing the bandwidth of sparse symmetric matrices (ACM, 1969); reversed by George
    (1971).
    """
    graph = read_graph(edge_index, num_nodes)
    adjacency = symmetric_adjacency(graph.edge_index, graph.num_nodes)
    order = scipy.sparse.csgraph.reverse_cuthill_mckee(adjacency, symmetric_mode=True)
    return torch.from_numpy(order.astype(np.int64))
