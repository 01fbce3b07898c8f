"""Models that the tests of the command line name as tests/commands/models.py:NAME."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 6


class Sum(nn.Module):
    """One linear layer and one sum over neighbours."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.lin = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.lin(x)
        return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])


class Weighted(Sum):
    def forward(self, x: Tensor, edge_index: Tensor, strength: Tensor) -> Tensor:  # type: ignore[override]
        h = self.lin(x)
        return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]] * strength[:, None])


class Dropped(Sum):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, self.training), edge_index)


class Pairs(Sum):
    """Every node against every other: refused."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.lin(x)
        return h @ h.t()


class Needs(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)


def attention() -> nn.Module:
    from torch_geometric.nn import GAT

    return GAT(WIDTH, 4, 2, 3, heads=2)


def with_arguments() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0], [1, 2, 3, 4, 5, 6, 7, 0, 4]])
    return Sum(), (torch.rand(8, WIDTH), edge_index)


made = Sum()
a_number = 7
