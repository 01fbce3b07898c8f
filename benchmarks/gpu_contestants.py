"""Who runs a layer of `gpu_check`: sarc, plain torch, torch.compile, cuSPARSE, and PyG and DGL where they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sarc
from sarc.partition.layout import Partitions

Contestant = tuple[str, Callable[[], nn.Module]]
OF_LIBRARY = "sarc, PyG's layer"


@dataclass(frozen=True)
class Given:
    """What all contestants run.

    Attributes:
        name: of the layer.
        model: it, in plain torch, on the device.
        edge_index: int64 [2, E] on the device.
        more: further arguments: the weights of the edges.
        parts: the graph for sarc.
        nodes: N.
        backend: sarc's.
    """

    name: str
    model: nn.Module
    edge_index: Tensor
    more: tuple[Tensor, ...]
    parts: Partitions
    nodes: int
    backend: str


def contestants(given: Given, heads: int, features: int) -> Iterator[Contestant]:
    """Names, and functions that make a module; those that are not there do not come."""
    yield "sarc", lambda: sarc.compile(given.model, given.parts, backend=given.backend)
    if given.name in ("sum", "weighted sum"):
        edges = given.edge_index
        values = given.more[0] if given.more else torch.ones(edges.shape[1], device=edges.device)
        yield "torch.sparse", lambda: _Sparse(edges, values, given.nodes)
    yield from _of_pyg(given, heads, features)
    yield from _of_dgl(given, heads, features)
    yield "plain torch", lambda: given.model
    yield "torch.compile", lambda: torch.compile(given.model)


def rival_of(who: str) -> str:
    """Whose numbers a contestant's are held against: libraries' layers have linear maps that plain torch's have not."""
    return OF_LIBRARY if who.startswith(("PyG", "DGL")) else "sarc"


def _of_pyg(given: Given, heads: int, features: int) -> Iterator[Contestant]:
    """PyG's own layer, linear maps included, plain and compiled."""
    try:
        from torch_geometric import nn as pyg
    except ImportError:
        return
    width = heads * features
    layer: nn.Module = {
        "attention": lambda: pyg.GATConv(width, features, heads=heads, bias=False),
        "attention v2": lambda: pyg.GATv2Conv(width, features, heads=heads, bias=False, share_weights=True),
        "transformer": lambda: pyg.TransformerConv(width, features, heads=heads, bias=False, root_weight=False),
        "max": lambda: pyg.SimpleConv("max"),
        "sum": lambda: pyg.SimpleConv("sum"),
        "weighted sum": lambda: pyg.SimpleConv("sum"),
    }[given.name]()
    layer = layer.to(given.edge_index.device)
    yield OF_LIBRARY, lambda: sarc.compile(layer, given.parts, backend=given.backend)
    yield "PyG", lambda: layer
    yield "PyG, torch.compile", lambda: torch.compile(layer)


def _of_dgl(given: Given, heads: int, features: int) -> Iterator[Contestant]:
    """DGL's layer or operator, on a graph whose formats exist; its transformer is no layer."""
    try:
        import dgl
        from dgl import nn as layers
    except Exception:  # a library that is there and does not load is as good as none
        return
    if given.name == "transformer":
        return
    width = heads * features
    make: Callable[[], Callable[..., Tensor]] = {
        "attention": lambda: layers.GATConv(width, features, heads, bias=False, allow_zero_in_degree=True),
        "attention v2": lambda: layers.GATv2Conv(
            width, features, heads, bias=False, share_weights=True, allow_zero_in_degree=True
        ),
        "max": lambda: dgl.ops.copy_u_max,
        "sum": lambda: dgl.ops.copy_u_sum,
        "weighted sum": lambda: dgl.ops.u_mul_e_sum,
    }[given.name]

    def build() -> nn.Module:
        graph = dgl.graph(tuple(given.edge_index), num_nodes=given.nodes)
        graph.create_formats_()
        return _Dgl(make(), graph, width).to(given.edge_index.device)

    yield "DGL", build


class _Dgl(nn.Module):
    """A DGL layer or operator, called as the others are."""

    def __init__(self, run: Callable[..., Tensor], graph, width: int):
        super().__init__()
        self.run, self.graph, self.width = run, graph, width

    def forward(self, x: Tensor, edge_index: Tensor, *weights: Tensor) -> Tensor:
        return self.run(self.graph, x, *(w.unsqueeze(-1) for w in weights)).reshape(-1, self.width)


class _Sparse(nn.Module):
    """cuSPARSE through torch.sparse: both orders are prepared, as cached descriptors would be."""

    def __init__(self, edge_index: Tensor, values: Tensor, nodes: int):
        super().__init__()
        both = [torch.sparse_coo_tensor(e, values, (nodes, nodes)) for e in (edge_index.flip(0), edge_index)]
        self.forth, self.back = (m.coalesce().to_sparse_csr() for m in both)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return _Product.apply(x, self.forth, self.back)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, forth: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return forth @ x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back @ grad, None, None
