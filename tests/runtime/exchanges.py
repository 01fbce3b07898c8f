"""Models, graphs and a counting transport for the tests of exchanges."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, SAGEConv, TransformerConv

from sarc.ir.schedule import Message, Schedule
from sarc.runtime.executor import Executor
from sarc.runtime.transport import Transport

FEATURES = 4


class Layer(nn.Module):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


LAYERS = {
    "gat": lambda: GATConv(FEATURES, 3, heads=2),
    "gatv2": lambda: GATv2Conv(FEATURES, 3, heads=2),
    "transformer": lambda: TransformerConv(FEATURES, 3, heads=2),
    "sage": lambda: SAGEConv(FEATURES, 3),
    "sage max": lambda: SAGEConv(FEATURES, 3, aggr="max"),
    "gcn": lambda: GCNConv(FEATURES, 3),
}


def build(layer: str) -> nn.Module:
    torch.manual_seed(0)
    return Layer(LAYERS[layer]()).double()


@st.composite
def cut_graphs(draw) -> tuple[Tensor, Tensor, int]:
    """edge_index int64 [2, E], assignment int64 [N] and P: parts may be empty or own one row, edges may repeat."""
    nodes = draw(st.integers(1, 24))
    edges = draw(st.integers(0, 60))
    num_parts = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    edge_index = torch.randint(0, nodes, (2, edges), generator=generator)
    # Square roots make early parts rare: some are empty, some own a single row.
    owner = (torch.rand(nodes, generator=generator) ** draw(st.sampled_from([0.3, 1.0])) * num_parts).long()
    return edge_index, owner.clamp_(max=num_parts - 1), num_parts


def run_step(compiled: nn.Module, x: Tensor, edge_index: Tensor) -> None:
    out = compiled(x.requires_grad_(), edge_index)
    out.square().sum().backward()


def schedules(compiled, stage: str, num_parts: int) -> list[Schedule]:
    return [compiled.schedule(rank, stage) for rank in range(num_parts)]


def messages(moves: list[tuple[str, Message]]) -> dict[int, list[int]]:
    """Bytes of every message by peer, in order, of what a schedule sends or receives."""
    found: dict[int, list[int]] = defaultdict(list)
    for _, message in moves:
        found[message.peer].append(message.nbytes)
    return dict(found)


class Observer:
    """Counts what passes a transport, out of the planner's sight, and the chunk storages alive meanwhile.

    Attributes:
        sent: bytes by (stage, part), counted as `nbytes` of the buffers handed to the transport.
        most_alive: most chunk storages of one part alive at any transport call.
    """

    def __init__(self) -> None:
        self.sent: dict[tuple[str, int], int] = defaultdict(int)
        self.most_alive = 0
        self._stage: dict[int, str] = {}
        self._chunks: dict[int, list[weakref.ref]] = defaultdict(list)

    def note_chunk(self, part: int, chunk: Tensor) -> None:
        self._chunks[part].append(weakref.ref(chunk.untyped_storage()))

    def note_call(self, part: int) -> None:
        # A storage object lives as long as some tensor's view of it is held; dead ones are dropped from the list.
        self._chunks[part] = [c for c in self._chunks[part] if c() is not None]
        self.most_alive = max(self.most_alive, len(self._chunks[part]))


@contextmanager
def observe() -> Iterator[Observer]:
    """Wraps the transport's two entries and the executor's allocation while the block runs."""
    seen = Observer()
    send, receive, new_chunk = Transport.send, Transport.receive, Executor._new_chunk

    def counting_send(self, src, dst, buffer, what, run=0):
        seen.note_call(src)
        seen.sent["backward" if "(backward)" in what else "forward", src] += buffer.nbytes
        return send(self, src, dst, buffer, what, run)

    def counting_receive(self, src, dst, buffer, what, run=0):
        seen.note_call(dst)
        return receive(self, src, dst, buffer, what, run)

    def noting_new_chunk(self, name, nbytes):
        chunk = new_chunk(self, name, nbytes)
        seen.note_chunk(self.state.rank, chunk)
        return chunk

    Transport.send, Transport.receive, Executor._new_chunk = counting_send, counting_receive, noting_new_chunk
    try:
        yield seen
    finally:
        Transport.send, Transport.receive, Executor._new_chunk = send, receive, new_chunk
