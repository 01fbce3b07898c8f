"""PyTorch Geometric: its layers, and its model zoo with every norm, jumping knowledge and residuals."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch_geometric.nn as g
from torch import Tensor, nn
from torch_geometric.nn import aggr

from tests.equivalence.case import CLASSES, D_EDGE, Case, F

H = 4
DEGREES = torch.tensor([1, 2, 5, 9, 4, 2, 1])
EA = "x edge_index edge_attr=edge_attr"
EW = "x edge_index edge_weight"


def mlp(inputs: int = F, outputs: int = H) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


class WithAttention(nn.Module):
    """Several outputs of several spaces."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = g.GATConv(F, H), nn.Linear(H, 3)

    def forward(self, x: Tensor, edge_index: Tensor):
        h, (_, alpha) = self.conv(x, edge_index, return_attention_weights=True)
        return self.head(h), alpha, h.mean()


class Pooling(nn.Module):
    """Graph norm, attention pooling and global pools by a batch vector, and back to the nodes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = g.GCNConv(F, H), g.GraphNorm(H)
        self.pool = aggr.AttentionalAggregation(nn.Linear(H, 1))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor):
        h = self.norm(self.conv(x, edge_index), batch)
        return self.pool(h, batch), g.global_max_pool(h, batch), g.global_mean_pool(h, batch)[batch]


class Aggregated(nn.Module):
    def __init__(self, pool: nn.Module):
        super().__init__()
        self.lin, self.pool = nn.Linear(F, H), pool

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        return self.pool(self.lin(x), batch)


class Typed(g.MessagePassing):
    """A user's own layer: gates, edge features and the degree of the destination in the message."""

    def __init__(self):
        super().__init__(aggr="add", node_dim=0)
        self.lin, self.gate = nn.Linear(F, H), nn.Linear(2 * F + D_EDGE, 1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        size = g.global_add_pool(x.new_ones(edge_index.size(1), 1), edge_index[1], x.size(0))
        return self.propagate(edge_index, x=x, size=None, edge_attr=edge_attr, degree=size)

    def message(self, x_i: Tensor, x_j: Tensor, edge_attr: Tensor, degree_i: Tensor) -> Tensor:
        gate = self.gate(torch.cat([x_i, x_j, edge_attr], -1)).sigmoid()
        return gate * self.lin(x_j) / degree_i.clamp(min=1)

    def update(self, out: Tensor, x: Tensor) -> Tensor:
        return out + self.lin(x)


class AttentionPart(g.SuperGATConv):
    """Always as in evaluation: training also samples negative edges, which are new pairs of nodes at every call."""

    def train(self, mode: bool = True) -> AttentionPart:
        return super().train(False)


class Residual(nn.Module):
    """Pre-activation residual blocks of GENConv, as DeepGCN stacks them."""

    def __init__(self, block: str):
        super().__init__()
        self.first = nn.Linear(F, 8)
        self.layers = nn.ModuleList(
            g.DeepGCNLayer(g.GENConv(8, 8, num_layers=1), nn.LayerNorm(8), nn.ReLU(), block, dropout=0.0)
            for _ in range(2)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, edge_index)
        return h


def zoo(kind: str, **settings) -> Callable[[], nn.Module]:
    extra = (
        {"aggregators": ["mean", "max"], "scalers": ["identity", "amplification"], "deg": DEGREES}
        if kind == "PNA"
        else {}
    )
    return lambda: getattr(g.models, kind)(F, 8, 2, CLASSES, **extra, **settings)


def norm_case(kind: str, norm: str, slow: bool = True) -> Case:
    return Case(f"{kind} with {norm} norm", zoo(kind, norm=norm), slow=slow)


def jk_case(kind: str, jk: str, slow: bool = True) -> Case:
    return Case(f"{kind} with jumping knowledge {jk}", zoo(kind, jk=jk, norm="batch"), slow=slow)


KINDS = ("GCN", "GraphSAGE", "GAT", "GIN", "PNA", "EdgeCNN")
# One zoo model stands for each norm and each jumping knowledge in the short run; all pairs are in the long one.
NORMS = {"batch": "GCN", "layer": "GraphSAGE", "pair": "GIN", "graph": "GraphSAGE", "instance": "PNA"}
JUMPS = {"cat": "GCN", "max": "GraphSAGE", "lstm": "EdgeCNN", "last": "GIN"}

PYG: tuple[Case, ...] = (
    Case("GCNConv", lambda: g.GCNConv(F, H)),
    Case("GCNConv weighted", lambda: g.GCNConv(F, H), EW),
    Case("GCNConv improved", lambda: g.GCNConv(F, H, improved=True), slow=True),
    Case("GCNConv without self loops", lambda: g.GCNConv(F, H, add_self_loops=False, bias=False), EW, slow=True),
    Case("SAGEConv mean", lambda: g.SAGEConv(F, H)),
    Case("SAGEConv max", lambda: g.SAGEConv(F, H, aggr="max")),
    Case("SAGEConv sum", lambda: g.SAGEConv(F, H, aggr="sum"), slow=True),
    Case("SAGEConv project", lambda: g.SAGEConv(F, H, project=True, normalize=True)),
    Case("SAGEConv several aggregations", lambda: g.SAGEConv(F, H, aggr=["mean", "max", "std"]), slow=True),
    Case("SAGEConv softmax aggregation", lambda: g.SAGEConv(F, H, aggr=aggr.SoftmaxAggregation(learn=True))),
    Case("GATConv", lambda: g.GATConv(F, H, heads=2)),
    Case("GATConv dropout", lambda: g.GATConv(F, H, heads=2, dropout=0.5), draws=True),
    Case("GATConv edge features", lambda: g.GATConv(F, H, heads=2, edge_dim=D_EDGE), EA),
    Case("GATConv averaged heads", lambda: g.GATConv(F, H, heads=3, concat=False, residual=True), slow=True),
    Case("GATv2Conv", lambda: g.GATv2Conv(F, H, heads=2)),
    Case("GATv2Conv edge features", lambda: g.GATv2Conv(F, H, heads=2, edge_dim=D_EDGE, share_weights=True), EA),
    Case("TransformerConv", lambda: g.TransformerConv(F, H, heads=2, beta=True)),
    Case(
        "TransformerConv edge features",
        lambda: g.TransformerConv(F, H, heads=2, edge_dim=D_EDGE, dropout=0.2),
        EA,
        True,
    ),
    Case("GINConv", lambda: g.GINConv(mlp(), train_eps=True)),
    Case("GINEConv", lambda: g.GINEConv(mlp(), edge_dim=D_EDGE), EA),
    Case(
        "PNAConv",
        lambda: g.PNAConv(F, H, ["mean", "max", "min", "std"], ["identity", "amplification", "attenuation"], DEGREES),
    ),
    Case(
        "PNAConv edge features",
        lambda: g.PNAConv(
            F, H, ["mean", "max", "var", "sum"], ["identity", "linear"], DEGREES, edge_dim=D_EDGE, towers=2
        ),
        EA,
        slow=True,
    ),
    Case("EdgeConv", lambda: g.EdgeConv(nn.Linear(2 * F, H))),
    Case("EdgeConv with batch norm on edges", lambda: g.EdgeConv(mlp(2 * F))),
    Case("GENConv", lambda: g.GENConv(F, H, learn_t=True)),
    Case("GENConv powermean", lambda: g.GENConv(F, H, aggr="powermean", learn_p=True), slow=True),
    Case("GENConv edge features", lambda: g.GENConv(F, H, edge_dim=D_EDGE, msg_norm=True), EA, slow=True),
    Case("ResGatedGraphConv", lambda: g.ResGatedGraphConv(F, H)),
    Case("GatedGraphConv", lambda: g.GatedGraphConv(8, 2)),
    Case("ChebConv", lambda: g.ChebConv(F, H, 3)),
    Case("ChebConv weighted", lambda: g.ChebConv(F, H, 3), EW, slow=True),
    Case("TAGConv", lambda: g.TAGConv(F, H)),
    Case("SGConv", lambda: g.SGConv(F, H, K=2)),
    Case("APPNP", lambda: g.APPNP(3, 0.1, dropout=0.3), draws=True),
    Case("ARMAConv", lambda: g.ARMAConv(F, H, num_stacks=2, num_layers=2)),
    Case("GCN2Conv", lambda: g.GCN2Conv(F, 0.1, 0.5, 1), "x x0 edge_index"),
    Case("FAConv", lambda: g.FAConv(F), "x x0 edge_index"),
    Case("SuperGATConv attention part", lambda: AttentionPart(F, H, heads=2)),
    Case("MFConv", lambda: g.MFConv(F, H, max_degree=3)),
    Case("LEConv", lambda: g.LEConv(F, H), slow=True),
    Case("AGNNConv", lambda: g.AGNNConv()),
    Case("FeaStConv", lambda: g.FeaStConv(F, H, 2), slow=True),
    Case("LGConv", lambda: g.LGConv(), slow=True),
    Case("NNConv", lambda: g.NNConv(F, H, nn.Linear(D_EDGE, F * H)), EA),
    Case("GMMConv", lambda: g.GMMConv(F, H, D_EDGE, 2), EA, slow=True),
    Case("CGConv", lambda: g.CGConv(F, D_EDGE), EA, slow=True),
    Case("FiLMConv", lambda: g.FiLMConv(F, H), slow=True),
    Case("GraphConv", lambda: g.GraphConv(F, H), EW, slow=True),
    Case("RGCNConv", lambda: g.RGCNConv(F, H, 3), "x edge_index edge_type"),
    Case("own MessagePassing", Typed, EA),
    Case("attention returned", WithAttention),
    Case("pooling by batch", Pooling, "x edge_index batch"),
    Case("SoftmaxAggregation by batch", lambda: Aggregated(aggr.SoftmaxAggregation(learn=True)), "x batch"),
    Case(
        "MultiAggregation by batch",
        lambda: Aggregated(aggr.MultiAggregation(["mean", "var", "min"])),
        "x batch",
        slow=True,
    ),
    Case("DeepGCN residual", lambda: Residual("res+")),
    Case("DeepGCN plain residual", lambda: Residual("res"), slow=True),
    *(norm_case(k, n, slow=k != usual) for n, usual in NORMS.items() for k in KINDS),
    *(jk_case(k, j, slow=k != usual) for j, usual in JUMPS.items() for k in KINDS),
    Case("GCN with dropout", zoo("GCN", dropout=0.5, norm="batch"), draws=True, slow=True),
    Case("GAT v2 with dropout", zoo("GAT", heads=4, dropout=0.3, v2=True, jk="cat"), draws=True, slow=True),
)
