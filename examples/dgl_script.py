"""An ordinary DGL script, and the one line that makes it train over partitions.

python examples/dgl_script.py               the plain model
python examples/dgl_script.py --parts 4     the same numbers, over four partitions
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("DGLBACKEND", "pytorch")

import dgl
import dgl.function as fn
import torch
import torch.nn.functional as F
from dgl.nn.functional import edge_softmax
from torch import Tensor, nn

import sarc


class Attention(nn.Module):
    """One head of attention, with DGL's message passing."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs, bias=False)
        self.left, self.right = nn.Linear(outputs, 1), nn.Linear(outputs, 1)

    def forward(self, g: dgl.DGLGraph, x: Tensor) -> Tensor:
        with g.local_scope():
            z = self.lin(x)
            g.ndata["z"], g.ndata["l"], g.ndata["r"] = z, self.left(z), self.right(z)
            g.apply_edges(fn.u_add_v("l", "r", "score"))
            g.edata["a"] = edge_softmax(g, F.leaky_relu(g.edata["score"], 0.2))
            g.update_all(fn.u_mul_e("z", "a", "m"), fn.sum("m", "out"))
            return g.ndata["out"]


class Net(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = Attention(features, 32), Attention(32, classes)

    def forward(self, g: dgl.DGLGraph, x: Tensor) -> Tensor:
        return self.second(g, F.elu(self.first(g, x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=0, help="partitions; 0 runs the plain model")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()

    data = sarc.data.labelled_graph(2000, seed=0)
    g = dgl.graph((data.edge_index[0], data.edge_index[1]), num_nodes=data.num_nodes)
    torch.manual_seed(0)
    model = Net(data.num_features, data.num_classes)
    if options.parts:
        model = sarc.compile(model, options.parts)  # the one line
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    for epoch in range(1, options.epochs + 1):
        optimizer.zero_grad()
        out = model(g, data.x)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        if epoch % 10 == 0:
            accuracy = (out.argmax(1) == data.y)[data.test_mask].float().mean()
            print(f"epoch {epoch}: loss {loss:.4f}, test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
