"""The hand-written attention loop (`native/attention.cpp`) as a differentiable function."""

from __future__ import annotations

from ctypes import c_float, c_int64

import torch
from torch import Tensor

from benchmarks.graphs import Graph
from benchmarks.native.library import load, pointer


class Yardstick:
    """Attention over one graph, called with el, er float32 [N, H] and z float32 [N, H, D].

    Args:
        graph: its edges are sorted by both ends here, once.
        heads, width: H, D; the loops are compiled for them.
        slope: of leaky_relu for negative scores.
        keep: whether results and scratch live in buffers that every call overwrites, instead of fresh tensors: what the
            loops cost without the memory's first touch. A result is then good until the next call.
    """

    def __init__(self, graph: Graph, heads: int, width: int, slope: float, keep: bool = False):
        self.graph, self.heads, self.slope = graph, heads, slope
        self.library = load("attention", HEADS=heads, HEAD_WIDTH=width)
        into, out = graph.by_destination, graph.by_source
        place = torch.empty(graph.num_edges, dtype=torch.int32)
        place[out.edge] = torch.arange(graph.num_edges, dtype=torch.int32)
        self.into, self.out, self.place = into, out, place[into.edge].contiguous()
        self.threads = torch.get_num_threads()
        self.kept: dict[str, Tensor] | None = {} if keep else None

    def __call__(self, el: Tensor, er: Tensor, z: Tensor) -> Tensor:
        return _Attention.apply(el, er, z, self)

    def empty(self, name: str, *size: int) -> Tensor:
        """An uninitialised float32 tensor: fresh, or the buffer of that name."""
        if self.kept is None:
            return torch.empty(size)
        if name not in self.kept:
            self.kept[name] = torch.empty(size)
        # Autograd marks what a function returns; the buffer itself stays unmarked.
        return self.kept[name].detach()

    def forward(self, el: Tensor, er: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The result [N, H, D] and lse [N, H]."""
        out, lse = self.empty("out", *z.shape), self.empty("lse", *el.shape)
        self.library.attention_forward(
            c_int64(self.graph.num_nodes),
            *map(pointer, (self.into.start, self.into.other, el, er, z, out, lse)),
            c_float(self.slope),
            self.threads,
        )
        return out, lse

    def backward(self, d_out: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of el, er and z; saved: el, er, z, out, lse."""
        el, er, z, out, lse = saved
        nodes, edges = self.graph.num_nodes, self.graph.num_edges
        # A destination's operands, er, lse and delta, in whole cache lines of 16 floats.
        targets = _aligned(self.empty("targets", nodes * _lines(3 * self.heads) * 16 + 16))
        d_score = self.empty("d_score", edges, self.heads)
        d_el, d_er, d_z = (self.empty(n, *x.shape) for n, x in (("d_el", el), ("d_er", er), ("d_z", z)))
        tensors = (el, er, z, out, lse, d_out.contiguous(), targets, d_score, d_el, d_er, d_z)
        self.library.attention_backward(
            c_int64(nodes),
            *map(pointer, (self.into.start, self.place, self.out.start, self.out.other, *tensors)),
            c_float(self.slope),
            self.threads,
        )
        return d_el, d_er, d_z


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, el: Tensor, er: Tensor, z: Tensor, loops: Yardstick) -> Tensor:
        out, lse = loops.forward(el, er, z)
        ctx.save_for_backward(el, er, z, out, lse)
        ctx.loops = loops
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return *ctx.loops.backward(d_out, *ctx.saved_tensors), None


def _lines(floats: int) -> int:
    return -(-floats // 16)


def _aligned(scratch: Tensor) -> Tensor:
    """The part of a float32 tensor that begins at a multiple of 64 bytes."""
    return scratch[(-scratch.data_ptr() % 64) // 4 :]
