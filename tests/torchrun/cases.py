"""Graphs, models and the comparison with the plain module on every rank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

import sarc
from sarc.partition import Partitions, Shard, ranks_of_process
from sarc.runtime import neighbours
from tests.torchrun.launch import World

NODES, EDGES, FEATURES, CLASSES = 30, 120, 5, 3


def graph(seed: int = 0, nodes: int = NODES, edges: int = EDGES) -> Tensor:
    """A directed graph int64 [2, E] with self loops, repeated edges and an isolated last node."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, nodes - 1, (2, edges), generator=generator)
    edge_index[:, 0] = 3  # a self loop
    edge_index[:, 1] = edge_index[:, 2]
    return edge_index


def data(seed: int = 0, nodes: int = NODES, edges: int = EDGES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    return {
        "edge_index": graph(seed, nodes, edges),
        "x": torch.randn(nodes, FEATURES, generator=generator, dtype=torch.float64),
        "y": torch.randint(0, CLASSES, (nodes,), generator=generator),
        "train_mask": torch.rand(nodes, generator=generator) < 0.5,
        "w": torch.rand(edges, generator=generator, dtype=torch.float64),
        "attr": torch.randn(edges, 2, generator=generator, dtype=torch.float64),
    }


def assignment(num_parts: int, kind: str = "random", nodes: int = NODES) -> Tensor:
    """Owner of every node int64 [N]; "empty": part 1 owns nothing; "one row": part 1 owns one row."""
    owner = torch.randint(0, num_parts, (nodes,), generator=torch.Generator().manual_seed(num_parts))
    if kind in ("empty", "one row"):
        owner[owner == 1] = 0
    if kind == "one row":
        owner[3] = 1
    return owner


def whole(values: dict[str, Tensor], num_parts: int, kind: str = "random") -> Partitions:
    owner = assignment(num_parts, kind, values["x"].shape[0])
    return sarc.partition(values["edge_index"], num_nodes=owner.numel(), num_parts=num_parts, assignment=owner)


def shard(values: dict[str, Tensor], world: World, kind: str = "random", num_parts: int | None = None) -> Shard:
    """This rank's rows of the data."""
    num_parts = num_parts or world.size
    parts = whole(values, num_parts, kind)
    mine = ranks_of_process(num_parts, world.rank, world.size)
    nodes = {k: values[k] for k in ("x", "y", "train_mask")}
    return parts.shard(mine, edge={k: values[k] for k in ("w", "attr")}, **nodes)


class GAT(nn.Module):
    """Attention with edge features, self loops added by the layer, and dropout."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.conv1 = GATConv(FEATURES, 4, heads=2, edge_dim=2, dropout=dropout)
        self.conv2 = GATConv(8, CLASSES, heads=2, concat=False, dropout=dropout)

    def forward(self, x, edge_index, attr):
        return self.conv2(F.elu(self.conv1(x, edge_index, attr)), edge_index)


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GCNConv(FEATURES, 6), GCNConv(6, CLASSES)

    def forward(self, x, edge_index, w):
        return self.conv2(self.conv1(x, edge_index, w).tanh(), edge_index, w)


class SAGE(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(FEATURES, CLASSES, aggr="max")

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


class GIN(nn.Module):
    """BatchNorm contracts the nodes; in train mode it updates its running buffers."""

    def __init__(self):
        super().__init__()
        self.conv = GINConv(nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES)))

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


class Loss(nn.Module):
    """Returns the loss of the selected rows, and the logits."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(FEATURES, CLASSES)

    def forward(self, x, edge_index, y, mask):
        out = self.conv(x, edge_index)
        return F.cross_entropy(out[mask], y[mask]), out


@contextmanager
def machines(machine_of: Callable[[int], int]) -> Iterator[Callable[[], neighbours.Neighbours]]:
    """Ranks that meet meanwhile are neighbours only where they have one machine; gives what they meet as."""
    connect, met = neighbours._connect, dict(neighbours._MET)

    def on_one_machine(group, rank):
        found = connect(group, rank)
        return {r: c for r, c in found.items() if machine_of(r) == machine_of(rank) or c.close()}

    neighbours._connect = on_one_machine
    neighbours._MET.clear()
    try:
        yield neighbours.meet
    finally:
        neighbours._connect = connect
        neighbours._MET.update(met)


@contextmanager
def frames_without_content() -> Iterator[None]:
    """However small, what is sent to a neighbour lies in shared memory."""
    inline, neighbours.INLINE = neighbours.INLINE, 0
    try:
        yield
    finally:
        neighbours.INLINE = inline


def compare(
    world: World, build: Callable[[], nn.Module], names: tuple[str, ...], kind: str = "random", num_parts=None,
    **options,
) -> None:
    """Outputs, parameter gradients, input gradients and buffers of the ranks equal the plain module's, in float64.

    The second step sends the bytes that `plan()` names.
    """
    values = data()
    torch.manual_seed(world.rank)  # another model on every rank: compile gives all of them rank 0's parameters
    model = build().double()
    mine = shard(values, world, kind, num_parts)
    compiled = sarc.compile(model, mine.partitions, **options)
    plain = copy.deepcopy(model)
    for step in range(2):  # the second call finds everything bound
        expected, wanted = observe(plain, values, values["edge_index"], names, torch.arange(NODES))
        before = compiled.traffic()["sent_bytes"]
        found, got = observe(compiled, {**mine.node, **mine.edge}, mine.graph, names, mine.node_ids)
        sent = compiled.traffic()["sent_bytes"] - before
        assert not step or sent == compiled.plan().sent_bytes, f"a step sends {sent} B"
        assert_close("output", found["output"], _rows(expected["output"], mine.node_ids))
        for name, gradient in wanted.items():
            ids = mine.node_ids if name == "x" else mine.edge_ids if name in ("w", "attr") else None
            assert_close(f"gradient of {name}", got[name], gradient if ids is None else gradient[ids])
        for (name, buffer), (_, reference) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
            assert_close(f"buffer {name}", buffer, reference)
        everything = compiled.gather(found["output"]) if found["output"].dim() else None
        assert (everything is not None) == (world.rank == 0 and found["output"].dim() > 0)
        if everything is not None:
            assert_close("gathered output", everything, expected["output"])


def observe(module: nn.Module, values: dict[str, Tensor], graph_argument: Any, names: tuple[str, ...], ids: Tensor):
    """Output and gradients of one call, for cotangents that do not depend on the partition."""
    values = {k: v.detach().clone() for k, v in values.items()}
    floats = [k for k in ("x", *names) if values[k].is_floating_point()]
    for k in floats:
        values[k].requires_grad_()
    module.zero_grad()
    out = module(values["x"], graph_argument, *(values[k] for k in names))
    if isinstance(out, tuple):  # a loss: every rank differentiates the same number
        out = out[0]
        out.backward()
    else:
        cotangent = torch.randn(NODES, CLASSES, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        (out * cotangent[ids]).sum().backward()
    gradients = {k: values[k].grad for k in floats} | {n: p.grad for n, p in module.named_parameters()}
    return {"output": out.detach()}, gradients


def _rows(whole_rows: Tensor, ids: Tensor) -> Tensor:
    return whole_rows[ids] if whole_rows.dim() else whole_rows


def assert_close(what: str, actual: Tensor, expected: Tensor, bound: float = 1e-10) -> None:
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    error = float((actual.double() - expected.double()).abs().max()) / max(1.0, float(expected.abs().max()))
    assert error <= bound, f"{what}: error {error:.2e}, allowed {bound:.0e}"
