"""An ordinary PyG script, and the one line that makes it train over partitions.

python examples/pyg_script.py               the plain model
python examples/pyg_script.py --parts 4     the same numbers, over four partitions
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

import sarc


class Net(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = SAGEConv(features, 32), SAGEConv(32, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=0, help="partitions; 0 runs the plain model")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()

    data = sarc.data.labelled_graph(2000, seed=0)
    torch.manual_seed(0)
    model = Net(data.num_features, data.num_classes)
    if options.parts:
        model = sarc.compile(model, options.parts)  # the one line
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    for epoch in range(1, options.epochs + 1):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        if epoch % 10 == 0:
            model.eval()
            with torch.no_grad():
                correct = model(data.x, data.edge_index).argmax(1) == data.y
            print(f"epoch {epoch}: loss {loss:.4f}, test accuracy {correct[data.test_mask].float().mean():.3f}")


if __name__ == "__main__":
    main()
