"""Graphs to measure on, drawn from a seed, with edges in random order as files have them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Compressed:
    """Edges grouped by one end.

    Attributes:
        start: int64 [N + 1]; edges of row i are start[i] to start[i + 1].
        other: int32 [E]; the other end of each edge.
        edge: int64 [E]; which edge of the graph stands here.
    """

    start: Tensor
    other: Tensor
    edge: Tensor


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed multigraph: src, dst int64 [E]."""

    kind: str
    num_nodes: int
    src: Tensor
    dst: Tensor

    @property
    def num_edges(self) -> int:
        return self.src.numel()

    def __str__(self) -> str:
        return f"{self.kind} N={self.num_nodes:,} E={self.num_edges:,}"

    @functools.cached_property
    def edge_index(self) -> Tensor:
        """int64 [2, E]: sources, destinations."""
        return torch.stack([self.src, self.dst])

    @functools.cached_property
    def by_destination(self) -> Compressed:
        return _compress(self.dst, self.src, self.num_nodes)

    @functools.cached_property
    def by_source(self) -> Compressed:
        return _compress(self.src, self.dst, self.num_nodes)


def _compress(row: Tensor, other: Tensor, num_nodes: int) -> Compressed:
    order = torch.argsort(row, stable=True)
    start = torch.zeros(num_nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=num_nodes), 0, out=start[1:])
    return Compressed(start, other[order].int(), order)


def power_law(num_nodes: int, num_edges: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sources floor(u^2 N), u uniform, relabelled at random; destinations uniform. The top 1 % send 10 % of edges."""
    rank = (torch.rand(num_edges, generator=random, dtype=torch.float64) ** 2 * num_nodes).long()
    label = torch.randperm(num_nodes, generator=random)
    return label[rank.clamp_(max=num_nodes - 1)], torch.randint(num_nodes, (num_edges,), generator=random)


def uniform(num_nodes: int, num_edges: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Both ends uniform and independent."""
    src, dst = torch.randint(num_nodes, (2, num_edges), generator=random)
    return src, dst


def rmat(num_nodes: int, num_edges: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """R-MAT (Chakrabarti, Zhan and Faloutsos, SDM 2004) with Graph500's 0.57, 0.19, 0.19, 0.05; hubs at both ends.

    Nodes beyond a number that is no power of two fold onto the first ones; labels are random.
    """
    src = torch.zeros(num_edges, dtype=torch.int64)
    dst = torch.zeros(num_edges, dtype=torch.int64)
    for _ in range(max(1, (num_nodes - 1).bit_length())):
        draw = torch.rand(num_edges, generator=random)
        src = 2 * src + (draw >= 0.76)
        dst = 2 * dst + (((draw >= 0.57) & (draw < 0.76)) | (draw >= 0.95))
    label = torch.randperm(num_nodes, generator=random)
    return label[src % num_nodes], label[dst % num_nodes]


def community(num_nodes: int, num_edges: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Dense communities of about 256 consecutive nodes that hold 90 % of the edges: rows that a cache keeps."""
    src, dst = uniform(num_nodes, num_edges, random)
    size = min(256, num_nodes)
    near = dst // size * size + torch.randint(size, (num_edges,), generator=random)
    inside = torch.rand(num_edges, generator=random) < 0.9
    return torch.where(inside, near.clamp_(max=num_nodes - 1), src), dst


KINDS: dict[str, Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "power-law": power_law,
    "rmat": rmat,
    "uniform": uniform,
    "community": community,
}


def draw(kind: str, num_nodes: int, num_edges: int, seed: int = 0) -> Graph:
    """A graph of a kind in KINDS; the same arguments give the same graph. Its edges are in random order."""
    random = torch.Generator().manual_seed(seed)
    src, dst = KINDS[kind](num_nodes, num_edges, random)
    order = torch.randperm(num_edges, generator=random)
    return Graph(kind, num_nodes, src[order].contiguous(), dst[order].contiguous())
