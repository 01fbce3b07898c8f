"""A benchmark's graph as DGL holds it, and what DGL's operators lack beside its message passing."""

from __future__ import annotations

import functools
import os

from torch import Tensor

from benchmarks.graphs import Graph


@functools.cache
def dgl_graph(graph: Graph, self_loops: bool = False):
    """A DGLGraph with int64 ids whose CSR and CSC exist: what DGL sorts at the first use is not timed.

    Args:
        self_loops: whether every node has exactly one self loop, instead of those of the graph.
    """
    os.environ.setdefault("DGLBACKEND", "pytorch")  # before the import: it prints advice to stderr when unset
    import dgl

    g = dgl.graph((graph.src, graph.dst), num_nodes=graph.num_nodes)
    if self_loops:
        g = dgl.add_self_loop(dgl.remove_self_loop(g))
    g.create_formats_()
    return g


def dgl_max(g, x: Tensor) -> Tensor:
    """Maximum over the sources of x [N, ...]; rows without edges are 0, as DGL's message passing leaves them."""
    import dgl.function as fn

    with g.local_scope():
        g.srcdata["x"] = x
        g.update_all(fn.copy_u("x", "m"), fn.max("m", "out"))
        return g.dstdata["out"]
