"""The models of the examples: ordinary PyG modules, and the settings they are trained with by default.

Nothing here knows of partitions: each forward takes the features x [N, F] and edge_index [2, E] of a whole graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of one model; `heads` is read by the GAT only."""

    hidden: int
    heads: int
    dropout: float
    lr: float
    weight_decay: float
    decay_first_layer_only: bool = False


# GAT: Velickovic et al., arXiv 1710.10903, section 3.3. GCN: Kipf and Welling, arXiv 1609.02907, section 5.2, with a
# wider hidden layer.
SETTINGS: dict[str, Settings] = {
    "gat": Settings(hidden=8, heads=8, dropout=0.6, lr=0.005, weight_decay=5e-4),
    "gcn": Settings(hidden=64, heads=1, dropout=0.5, lr=0.01, weight_decay=5e-4, decay_first_layer_only=True),
    "sage": Settings(hidden=64, heads=1, dropout=0.5, lr=0.01, weight_decay=5e-4),
}


class GAT(nn.Module):
    """Two attention layers with dropout on features and attention weights; the output layer averages its heads."""

    def __init__(self, num_features: int, num_classes: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = GATConv(num_features, hidden, heads=heads, dropout=dropout)
        self.conv2 = GATConv(hidden * heads, num_classes, heads=1, concat=False, dropout=dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index)


class GCN(nn.Module):
    """Two graph convolutions; self loops and the symmetric normalisation are computed inside forward."""

    def __init__(self, num_features: int, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = GCNConv(num_features, hidden)
        self.conv2 = GCNConv(hidden, num_classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        x = self.conv1(x, edge_index).relu()
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index)


class SAGE(nn.Module):
    """Two GraphSAGE layers with mean aggregation."""

    def __init__(self, num_features: int, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = SAGEConv(num_features, hidden, aggr="mean")
        self.conv2 = SAGEConv(hidden, num_classes, aggr="mean")

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.conv1(x, edge_index).relu()
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index)


def build_model(name: str, num_features: int, num_classes: int, settings: Settings) -> nn.Module:
    """The model called `name` ("gat", "gcn" or "sage"), freshly initialised."""
    if name == "gat":
        return GAT(num_features, num_classes, settings.hidden, settings.heads, settings.dropout)
    model = {"gcn": GCN, "sage": SAGE}[name]
    return model(num_features, num_classes, settings.hidden, settings.dropout)


def parameter_groups(model: nn.Module, settings: Settings) -> Iterator[dict[str, object]]:
    """Groups for the optimizer: weight decay on every layer, or on the first one only."""
    for name, layer in model.named_children():
        decay = settings.weight_decay if name == "conv1" or not settings.decay_first_layer_only else 0.0
        yield {"params": list(layer.parameters()), "weight_decay": decay}
