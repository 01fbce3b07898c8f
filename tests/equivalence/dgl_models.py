"""DGL: its layers and user-defined message passing, called with a DGLGraph."""

from __future__ import annotations

from collections.abc import Callable

import dgl.function as fn
import torch
from dgl.nn import pytorch as dnn
from dgl.nn.functional import edge_softmax
from torch import Tensor, nn

from tests.equivalence.case import D_EDGE, Case, F

H = 4
ok = {"allow_zero_in_degree": True}
GX, GXE = "graph x", "graph x edge_attr"


class OnGraph(nn.Module):
    """A function of a layer, a graph and tensors."""

    def __init__(self, function: Callable, layer: nn.Module):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, graph, *tensors: Tensor):
        return self.function(self.layer, graph, *tensors)


def own(name: str, function: Callable, layer: Callable[[], nn.Module], inputs: str = GX, **flags) -> Case:
    return Case(f"DGL {name}", lambda: OnGraph(function, layer()), inputs, **flags)


def built_ins(layer, graph, x, edge_weight):
    with graph.local_scope():
        graph.ndata["h"] = layer(x)
        graph.edata["w"] = edge_weight[:, None]
        graph.update_all(fn.u_mul_e("h", "w", "m"), fn.sum("m", "out"))
        graph.update_all(fn.copy_u("h", "m"), fn.max("m", "top"))
        graph.apply_edges(fn.u_dot_v("h", "h", "score"))
        return graph.ndata["out"] / graph.in_degrees().clamp(min=1)[:, None], graph.ndata["top"], graph.edata["score"]


def attention(layer, graph, x):
    with graph.local_scope():
        graph.srcdata["z"] = graph.dstdata["z"] = layer(x)
        graph.apply_edges(lambda edges: {"e": (edges.src["z"] * edges.dst["z"]).sum(-1, keepdim=True)})
        graph.edata["a"] = edge_softmax(graph, graph.edata["e"])
        graph.update_all(fn.u_mul_e("z", "a", "m"), fn.sum("m", "h"))
        return graph.ndata["h"]


def mailbox(layer, graph, x):
    def message(edges):
        return {"m": layer(edges.src["x"]) - layer(edges.dst["x"]).sigmoid()}

    def fold(nodes):
        box = nodes.mailbox["m"]
        return {"out": torch.cat([box.mean(1), box.max(1).values, (box.softmax(1) * box).sum(1)], -1)}

    with graph.local_scope():
        graph.ndata["x"] = x
        graph.ndata["out"] = x.new_zeros(x.size(0), 3 * H)
        graph.update_all(message, fold)
        return graph.ndata["out"]


def mlp(inputs: int = F, outputs: int = H) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def gine() -> nn.Module:
    return nn.ModuleDict({"conv": dnn.GINEConv(nn.Linear(F, H), learn_eps=True), "edge": nn.Linear(D_EDGE, F)})


def layer(name: str, make: Callable[[], nn.Module], inputs: str = GX, **flags) -> Case:
    return Case(f"DGL {name}", make, inputs, **flags)


DGL: tuple[Case, ...] = (
    layer("GraphConv both", lambda: dnn.GraphConv(F, H, **ok)),
    layer("GraphConv weighted", lambda: dnn.GraphConv(F, 9, norm="right", **ok), "graph x edge_weight=edge_weight"),
    layer("SAGEConv mean", lambda: dnn.SAGEConv(F, H, "mean")),
    layer("SAGEConv pool", lambda: dnn.SAGEConv(F, H, "pool")),
    layer("SAGEConv gcn", lambda: dnn.SAGEConv(F, H, "gcn", feat_drop=0.3), draws=True, slow=True),
    layer("GATConv", lambda: dnn.GATConv(F, H, 2, residual=True, **ok)),
    layer("GATConv dropout", lambda: dnn.GATConv(F, H, 2, feat_drop=0.3, attn_drop=0.4, **ok), draws=True),
    layer("GATv2Conv", lambda: dnn.GATv2Conv(F, H, 2, **ok)),
    layer("GINConv", lambda: dnn.GINConv(nn.Linear(F, H), "max", learn_eps=True)),
    own("GINEConv", lambda m, g, x, e: m["conv"](g, x, m["edge"](e)), gine, GXE),
    layer("TAGConv", lambda: dnn.TAGConv(F, H, k=2)),
    layer("SGConv", lambda: dnn.SGConv(F, H, k=2, **ok)),
    layer("APPNPConv", lambda: dnn.APPNPConv(3, 0.1), "graph x edge_weight=edge_weight"),
    own("ChebConv", lambda m, g, x: m(g, x, lambda_max=[2.0]), lambda: dnn.ChebConv(F, H, 3)),
    layer("DotGatConv", lambda: dnn.DotGatConv(F, H, 2, **ok)),
    layer("AGNNConv", lambda: dnn.AGNNConv(**ok)),
    layer("EdgeConv", lambda: dnn.EdgeConv(F, H, batch_norm=True, **ok)),
    layer("GMMConv", lambda: dnn.GMMConv(F, H, D_EDGE, 2, "mean", residual=True, **ok), GXE),
    layer("NNConv", lambda: dnn.NNConv(F, H, nn.Linear(D_EDGE, F * H), "mean"), GXE),
    layer("GatedGraphConv", lambda: dnn.GatedGraphConv(F, 8, 2, 3), "graph x edge_type"),
    layer(
        "PNAConv",
        lambda: dnn.PNAConv(F, 8, ["mean", "max", "std"], ["identity", "amplification"], 2.5, edge_feat_size=D_EDGE),
        GXE,
    ),
    layer("GCN2Conv", lambda: dnn.GCN2Conv(F, layer=1, **ok), "graph x x0", slow=True),
    own("built-in functions", built_ins, lambda: nn.Linear(F, H), "graph x edge_weight"),
    own("attention by hand", attention, lambda: nn.Linear(F, H)),
    own("mailbox", mailbox, lambda: nn.Linear(F, H)),
)
