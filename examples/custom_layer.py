"""A layer of one's own in plain PyTorch: no base class, no registration, nothing of sarc inside.

    python examples/custom_layer.py

Gated sums over neighbours, with edge features. sarc sees gathers, row-wise operators and two folds (a sum and a maximum
over destinations), and compiles those. verify=True runs the plain model beside the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sarc


class GatedSum(nn.Module):
    """out_i = W h_i + sum_j sigmoid(G [h_i, h_j, e_ij]) * (V h_j), then a maximum over neighbours beside it."""

    def __init__(self, width: int, edge_width: int) -> None:
        super().__init__()
        self.own, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.gate = nn.Linear(2 * width + edge_width, width)

    def forward(self, h: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        gate = torch.sigmoid(self.gate(torch.cat([h[dst], h[src], edge_attr], dim=1)))
        message = gate * self.value(h)[src]
        total = torch.zeros_like(h).index_add(0, dst, message)
        top = torch.zeros_like(h).scatter_reduce(0, dst[:, None].expand_as(message), message, "amax")
        return self.own(h) + total + top


class Net(nn.Module):
    def __init__(self, features: int, edge_width: int, classes: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(features, 16), nn.Linear(16, classes)
        self.layers = nn.ModuleList(GatedSum(16, edge_width) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h, edge_index, edge_attr).relu()
        return self.out(h)


def main() -> None:
    data = sarc.data.labelled_graph(1000, seed=0)
    edge_attr = torch.rand(data.num_edges, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    compiled = sarc.compile(Net(data.num_features, 3, data.num_classes), 4, verify=True)
    optimizer = torch.optim.Adam(compiled.parameters(), lr=0.005)
    for epoch in range(1, 21):
        optimizer.zero_grad()
        out = compiled(data.x, data.edge_index, edge_attr)
        loss = sarc.cross_entropy(out, data.y, data.train_mask)
        loss.backward()
        optimizer.step()
        if epoch % 10 == 0:
            print(f"epoch {epoch}: loss {loss:.4f}, accuracy {sarc.accuracy(out, data.y, data.test_mask):.3f}")
    print(compiled.plan())


if __name__ == "__main__":
    main()
