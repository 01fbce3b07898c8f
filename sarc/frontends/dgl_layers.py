"""Layers of DGL that look at values to decide what to do, written without looking.

Each function has the signature of what it replaces in `redirect_dgl()` and gives the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sarc.frontends.dgl_graph import RecordingGraph
from sarc.frontends.dgl_messages import fold


def edge_weight_norm(layer: Any, graph: RecordingGraph, edge_weight: Tensor) -> Tensor:
    """dgl.nn.EdgeWeightNorm.forward on `edge_weight` [E]: w_uv / sqrt(out_u in_v), or w_uv / in_v.

    DGL raises for weights <= 0 with norm "both"; here they give the nan or inf that the formula gives.
    """
    if edge_weight.dim() > 1:
        raise ValueError(f"expected scalar edge weights [E], got shape {tuple(edge_weight.shape)}")
    if layer._norm == "none":
        return edge_weight
    in_weight = fold("sum", edge_weight, graph.dst, graph.num_nodes()) + layer._eps
    if layer._norm != "both":
        return edge_weight * graph.at_edges(1.0 / in_weight, "v")
    out_weight = fold("sum", edge_weight, graph.src, graph.num_nodes()) + layer._eps
    return graph.at_edges(out_weight.pow(-0.5), "u") * graph.at_edges(in_weight.pow(-0.5), "v") * edge_weight


def gated_graph_conv(layer: Any, graph: RecordingGraph, feat: Tensor, etypes: Tensor | None = None) -> Tensor:
    """dgl.nn.GatedGraphConv.forward on `feat` [N, F] and `etypes` int64 [E].

    DGL picks the edges of each type; here each type's messages run along all edges, masked.
    """
    feat = torch.cat([feat, feat.new_zeros((feat.shape[0], layer._out_feats - feat.shape[1]))], -1)
    for _ in range(layer._n_steps):
        if etypes is None:
            messages = graph.at_edges(layer.linears[0](feat), "u")
        else:
            typed = [
                torch.where((etypes == etype).unsqueeze(1), graph.at_edges(linear(feat), "u"), 0.0)
                for etype, linear in enumerate(layer.linears)
            ]
            messages = sum(typed[1:], typed[0])
        feat = layer.gru(fold("sum", messages, graph.dst, graph.num_nodes()), feat)
    return feat


def gather_mm(a: Tensor, b: Tensor, *, idx_b: Tensor) -> Tensor:
    """dgl.ops.gather_mm: row i of `a` [R, F] times matrix `idx_b[i]` of `b` [T, F, G]: [R, G]."""
    return torch.bmm(a.unsqueeze(1), b.index_select(0, idx_b)).squeeze(1)
