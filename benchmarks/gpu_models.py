"""Layers that `gpu_check` compiles: plain torch, so that they need no library, with PyG's mathematics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as f


def softmax_to(scores: Tensor, dst: Tensor, num_nodes: int) -> Tensor:
    """Shares of the edges [E, H] into one node."""
    spread = dst.view(-1, 1).expand_as(scores)
    top = scores.new_full((num_nodes, scores.size(1)), float("-inf")).scatter_reduce(0, spread, scores.detach(), "amax")
    share = (scores - top[dst]).exp()
    total = share.new_zeros(num_nodes, scores.size(1)).index_add(0, dst, share) + 1e-16
    return share / total[dst]


class Sum(nn.Module):
    """The sum over in-neighbours."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])


class WeightedSum(nn.Module):
    """The sum over in-neighbours, each edge with a weight of its own that needs no gradient."""

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]] * weight.unsqueeze(-1))


class Max(nn.Module):
    """The maximum over in-neighbours; 0 where there are none."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        spread = edge_index[1].view(-1, 1).expand(-1, x.size(1))
        return torch.zeros_like(x).scatter_reduce(0, spread, x[edge_index[0]], "amax", include_self=False)


class AttentionCore(nn.Module):
    """GAT without its linear map: x [N, H * D] is what is attended to."""

    def __init__(self, heads: int, features: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.features, self.dropout = heads, features, dropout
        self.of_source = nn.Parameter(torch.randn(heads, features) / features**0.5)
        self.of_target = nn.Parameter(torch.randn(heads, features) / features**0.5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        z = x.view(-1, self.heads, self.features)
        scores = (z * self.of_source).sum(-1)[src] + (z * self.of_target).sum(-1)[dst]
        share = softmax_to(f.leaky_relu(scores, 0.2), dst, x.size(0))
        share = f.dropout(share, self.dropout, self.training)
        return torch.zeros_like(z).index_add(0, dst, z[src] * share.unsqueeze(-1)).flatten(1)


class AttentionV2Core(nn.Module):
    """GATv2 without its linear maps: one table at both ends."""

    def __init__(self, heads: int, features: int):
        super().__init__()
        self.heads, self.features = heads, features
        self.vector = nn.Parameter(torch.randn(heads, features) / features**0.5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        z = x.view(-1, self.heads, self.features)
        scores = (f.leaky_relu(z[src] + z[dst], 0.2) * self.vector).sum(-1)
        share = softmax_to(scores, dst, x.size(0))
        return torch.zeros_like(z).index_add(0, dst, z[src] * share.unsqueeze(-1)).flatten(1)


class TransformerCore(nn.Module):
    """Dot-product attention without its linear maps: queries, keys and values are one table."""

    def __init__(self, heads: int, features: int):
        super().__init__()
        self.heads, self.features = heads, features

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        z = x.view(-1, self.heads, self.features)
        share = softmax_to((z[src] * z[dst]).sum(-1) / self.features**0.5, dst, x.size(0))
        return torch.zeros_like(z).index_add(0, dst, z[src] * share.unsqueeze(-1)).flatten(1)
