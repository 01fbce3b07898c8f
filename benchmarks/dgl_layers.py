"""DGL's form of a PyG layer: the same mathematics on the same parameters.

Where DGL has the layer, it is DGL's; else the layer is written in DGL's message passing, as its user would. All are
called with x [N, F] and a benchmark's graph.
"""

from __future__ import annotations

import math

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from benchmarks.dgl_graph import dgl_graph, dgl_max
from benchmarks.graphs import Graph


def as_dgl(layer: nn.Module) -> nn.Module:
    """The DGL module of a PyG layer."""
    forms: list[tuple[type[nn.Module], type[nn.Module]]] = [
        (pyg.GCNConv, Gcn),
        (pyg.GATv2Conv, Gatv2),
        (pyg.GATConv, Gat),
        (pyg.SAGEConv, SageMean if getattr(layer, "aggr", None) == "mean" else SageMax),
        (pyg.TransformerConv, Transformer),
        (pyg.PNAConv, Pna),
        (pyg.GINConv, Gin),
    ]
    return next(form(layer) for kind, form in forms if isinstance(layer, kind))


class Gcn(nn.Module):
    """GraphConv; PyG normalises both ends by the in-degree, so the norm is applied outside."""

    def __init__(self, layer: pyg.GCNConv):
        super().__init__()
        from dgl.nn import GraphConv

        self.conv = GraphConv(layer.in_channels, layer.out_channels, norm="none", weight=False, bias=False)
        self.lin, self.bias = layer.lin, layer.bias

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        g = dgl_graph(graph, self_loops=True)
        norm = g.in_degrees().float().rsqrt().unsqueeze(-1)
        return self.conv(g, self.lin(x) * norm) * norm + self.bias


class SageMean(nn.Module):
    def __init__(self, layer: pyg.SAGEConv):
        super().__init__()
        from dgl.nn import SAGEConv

        self.conv = SAGEConv(layer.in_channels, layer.out_channels, "mean", bias=False)
        self.conv.fc_neigh, self.conv.fc_self = layer.lin_l, layer.lin_r

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        return self.conv(dgl_graph(graph), x)


class SageMax(nn.Module):
    """DGL's "pool" has a layer before the maximum that PyG's has not."""

    def __init__(self, layer: pyg.SAGEConv):
        super().__init__()
        self.neigh, self.self = layer.lin_l, layer.lin_r

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        return self.neigh(dgl_max(dgl_graph(graph), x)) + self.self(x)


class Gat(nn.Module):
    def __init__(self, layer: pyg.GATConv):
        super().__init__()
        from dgl.nn import GATConv

        self.conv = GATConv(
            layer.in_channels,
            layer.out_channels,
            layer.heads,
            negative_slope=layer.negative_slope,
            allow_zero_in_degree=True,
            bias=layer.concat,
        )
        self.conv.fc, self.conv.attn_l, self.conv.attn_r = layer.lin, layer.att_src, layer.att_dst
        self.concat = layer.concat
        if self.concat:
            self.conv.bias = layer.bias
        else:
            self.mean_bias = layer.bias

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        heads = self.conv(dgl_graph(graph), x)
        return heads.flatten(1) if self.concat else heads.mean(1) + self.mean_bias


class Gatv2(nn.Module):
    """DGL's has no bias after the sum."""

    def __init__(self, layer: pyg.GATv2Conv):
        super().__init__()
        from dgl.nn import GATv2Conv

        self.conv = GATv2Conv(
            layer.in_channels,
            layer.out_channels,
            layer.heads,
            negative_slope=layer.negative_slope,
            allow_zero_in_degree=True,
        )
        self.conv.fc_src, self.conv.fc_dst, self.conv.attn = layer.lin_l, layer.lin_r, layer.att
        self.bias = layer.bias

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        return self.conv(dgl_graph(graph), x).flatten(1) + self.bias


class Transformer(nn.Module):
    """u_dot_v, edge_softmax, u_mul_e and sum."""

    def __init__(self, layer: pyg.TransformerConv):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        from dgl.nn.functional import edge_softmax
        from dgl.ops import u_dot_v, u_mul_e_sum

        g, heads, width = dgl_graph(graph), self.layer.heads, self.layer.out_channels
        lins = (self.layer.lin_query, self.layer.lin_key, self.layer.lin_value)
        query, key, value = (lin(x).view(-1, heads, width) for lin in lins)
        share = edge_softmax(g, u_dot_v(g, key, query) / math.sqrt(width))
        return u_mul_e_sum(g, value, share).flatten(1) + self.layer.lin_skip(x)


class Pna(nn.Module):
    """One tower, mean, max and std. The layer on both ends is split into one for each end, so that it runs on nodes."""

    def __init__(self, layer: pyg.PNAConv):
        super().__init__()
        self.width, self.pre, self.post, self.lin = layer.F_in, layer.pre_nns[0][0], layer.post_nns[0], layer.lin

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        from dgl.ops import copy_e_max, copy_e_sum, u_add_v

        g = dgl_graph(graph)
        target = nn.functional.linear(x, self.pre.weight[:, : self.width], self.pre.bias)
        source = nn.functional.linear(x, self.pre.weight[:, self.width :])
        message = u_add_v(g, source, target)
        count = g.in_degrees().clamp(min=1).unsqueeze(-1)
        mean = copy_e_sum(g, message) / count
        variance = copy_e_sum(g, message * message) / count - mean * mean
        std = variance.clamp(min=1e-5).sqrt()
        std = std.masked_fill(std <= math.sqrt(1e-5), 0.0)
        most = copy_e_max(g, message)
        most = torch.where(torch.isinf(most), 0.0, most)  # rows without edges
        return self.lin(self.post(torch.cat([x, mean, most, std], dim=-1)))


class Gin(nn.Module):
    def __init__(self, layer: pyg.GINConv):
        super().__init__()
        from dgl.nn import GINConv

        self.conv = GINConv(layer.nn, "sum")

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        return self.conv(dgl_graph(graph), x)
