"""Random edge programs, and their run as kernels and in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy
import torch
import torch.fx as fx
from hypothesis import strategies as st
from torch import Tensor

from sarc.codegen.cuda_kernels import CudaKernel
from sarc.codegen.traversal import Traversal
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram, Operand, Result, fold_to_rows, new_accumulator, take_rows
from sarc.ir.space import Rows, Size, ValueType
from sarc.partition.columns import ColumnMap
from sarc.runtime.edge_block import EdgeBlock, run_in_torch

aten = torch.ops.aten
E, N = Rows("E"), Rows("N")
EDGES = Size(sympy.Symbol("E"))
SRC, DST = 0, 1
WIDTHS = (1, 3, 7, 17, 64, 100, 257)
HEADS = (1, 2, 3, 4, 8, 12)


class Writer:
    """A body being written: values of a few shapes over H heads and D features."""

    def __init__(self, heads: int, features: int, dtype: torch.dtype):
        self.h, self.d, self.dtype = heads, features, dtype
        self.graph = fx.Graph()
        self.operands: list[Operand] = []
        self.wide: list[fx.Node] = []
        self.narrow: list[fx.Node] = []
        for name, column in (("a", SRC), ("b", DST)):
            self.wide.append(self.operand(name, (E, heads, features), column))
        for name, column in (("u", SRC), ("s", SRC), ("t", DST), ("w", None)):
            self.narrow.append(self.operand(name, (E, heads), column))
        self.parameter = self.operand("p", (heads, features), None, axis=None)
        self.rng = self.operand("rng", (2,), None, axis=None, dtype=torch.int64)
        self.ops = 0

    def operand(self, name: str, dims: tuple, column: int | None, axis: int | None = 0, dtype=None) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta = {"type": ValueType(dims, dtype or self.dtype), "loc": ""}
        self.operands.append(Operand(len(self.operands), column, axis, node.meta["type"]))
        return node

    def call(self, target: object, args: tuple, dims: tuple, dtype: torch.dtype | None = None) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {"type": ValueType(dims, dtype or self.dtype), "loc": "model.py:1"}
        return node

    def spread(self, narrow: fx.Node) -> fx.Node:
        return self.call(aten.unsqueeze.default, (narrow, 2), (*narrow.meta["type"].dims, 1))

    def apply(self, op: str, x: fx.Node, y: fx.Node, s: fx.Node, t: fx.Node) -> None:
        """One instruction on wide values x, y and narrow ones s, t."""
        h, d = self.h, self.d
        wide, narrow = (E, h, d), (E, h)
        add = lambda node, into: into.append(node)  # noqa: E731
        if op in ("add", "mul", "sub"):
            add(self.call(getattr(aten, op).Tensor, (x, y), wide), self.wide)
        elif op in ("tanh", "relu", "sigmoid"):
            add(self.call(getattr(aten, op).default, (x,), wide), self.wide)
        elif op == "weigh":
            add(self.call(aten.mul.Tensor, (x, self.spread(s)), wide), self.wide)
        elif op == "parameter":
            add(self.call(aten.mul.Tensor, (x, self.parameter), wide), self.wide)
        elif op == "roll" and d > 1:
            tail = self.call(aten.slice.Tensor, (x, 2, 1, d, 1), (E, h, d - 1))
            head = self.call(aten.slice.Tensor, (x, 2, 0, 1, 1), (E, h, 1))
            add(self.call(aten.cat.default, ([tail, head], 2), wide), self.wide)
        elif op == "pad" and d > 1:
            part = self.call(aten.slice.Tensor, (x, 2, 1, d, 1), (E, h, d - 1))
            add(self.call(aten.slice_backward.default, (part, [EDGES, h, d], 2, 1, d, 1), wide), self.wide)
        elif op == "turn":
            turned = self.call(aten.permute.default, (x, [0, 2, 1]), (E, d, h))
            doubled = self.call(aten.mul.Tensor, (turned, turned), (E, d, h))
            add(self.call(aten.permute.default, (doubled, [0, 2, 1]), wide), self.wide)
        elif op == "regroup":
            flat = self.call(aten.view.default, (self.call(aten.tanh.default, (x,), wide), [-1, h * d]), (E, h * d))
            add(self.call(aten.view.default, (flat, [-1, h, d]), wide), self.wide)
        elif op == "over heads":
            mean = self.call(aten.sum.dim_IntList, (x, [1], True), (E, 1, d))
            add(self.call(aten.sub.Tensor, (x, mean), wide), self.wide)
        elif op == "drop":
            self.ops += 1
            draws = self.call(UNIFORM, (self.rng, [EDGES, h, d], self.ops), wide, torch.float32)
            kept = self.call(aten.lt.Scalar, (draws, 0.6), wide, torch.bool)
            add(self.call(aten.mul.Tensor, (x, kept), wide), self.wide)
        elif op == "drop narrow":
            self.ops += 1
            draws = self.call(UNIFORM, (self.rng, [EDGES, h], self.ops), narrow, torch.float32)
            kept = self.call(aten.ge.Scalar, (draws, 0.3), narrow, torch.bool)
            zero = self.call(aten.full.default, ([1], 0.0), (1,))
            add(self.call(aten.where.self, (kept, s, zero), narrow), self.narrow)
        elif op in ("dot", "largest"):
            product = self.call(aten.mul.Tensor, (x, y), wide)
            fold = aten.sum.dim_IntList if op == "dot" else aten.amax.default
            add(self.call(fold, (product, [2], False), narrow), self.narrow)
        elif op == "of heads":
            product = self.call(aten.mul.Tensor, (x, y), wide)
            sums = self.call(aten.sum.dim_IntList, (product, [1], False), (E, d))
            back = self.call(aten.unsqueeze.default, (sums, 1), (E, 1, d))
            add(self.call(aten.mul.Tensor, (x, back), wide), self.wide)
        elif op == "pick":
            add(self.call(aten.select.int, (x, 2, d // 2), narrow), self.narrow)
        elif op == "score":
            total = self.call(aten.add.Tensor, (s, t), narrow)
            add(self.call(aten.leaky_relu.default, (total, 0.2), narrow), self.narrow)
        elif op == "narrow":
            add(self.call(aten.mul.Tensor, (s, t), narrow), self.narrow)
        elif op == "softly":
            add(self.call(aten.tanh.default, (s,), narrow), self.narrow)
        elif op == "centre":
            sums = self.call(aten.sum.dim_IntList, (s, [1], True), (E, 1))
            add(self.call(aten.sub.Tensor, (s, sums), narrow), self.narrow)

    def program(self, name: str, values: Sequence[fx.Node], results: Sequence[Result]) -> EdgeProgram:
        self.graph.output(list(values))
        return EdgeProgram(name, "E", tuple(self.operands), tuple(results), self.graph, "model.py:1")


OPS = (
    "add", "mul", "sub", "tanh", "relu", "sigmoid", "weigh", "parameter", "roll", "pad", "turn", "regroup",
    "over heads", "drop", "drop narrow", "dot", "largest", "of heads", "pick", "score", "narrow", "softly", "centre",
)  # fmt: skip
ENDS = (
    "sum to src", "sum to dst", "amax to dst", "amin to src", "few to src", "few to dst", "amax few to dst", "contract",
    "contract few", "store", "store few",
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """An edge program by its instructions, so that a failure prints as what makes it again.

    Attributes:
        heads, features: H and D.
        steps: (operator, places of its operands among the wide and narrow values so far, modulo their number).
        ends: what becomes of the latest values.
        softmax: whether the rows of the destination have folds of their own, in place of `ends`.
    """

    heads: int
    features: int
    steps: tuple[tuple[str, int, int], ...]
    ends: tuple[str, ...]
    softmax: bool = False

    def program(self, dtype: torch.dtype) -> EdgeProgram:
        w = Writer(self.heads, self.features, dtype)
        for op, i, j in self.steps:
            x, y = w.wide[-1 - i % len(w.wide)], w.wide[-1 - j % len(w.wide)]
            s, t = w.narrow[-1 - i % len(w.narrow)], w.narrow[-1 - j % len(w.narrow)]
            w.apply(op, x, y, s, t)
        return _softmax(w) if self.softmax else _ending(w, self.ends)


def _ending(w: Writer, ends: Sequence[str]) -> EdgeProgram:
    values, results = [], []
    h, d = w.h, w.d
    for end in ends:
        few = "few" in end
        value = w.narrow[-1] if few else w.wide[-1]
        dims: tuple = (h,) if few else (h, d)
        if end.startswith("contract"):
            values.append(w.call(aten.sum.dim_IntList, (value, [0]), dims))
            results.append(Result("contract", "sum", None, None, ValueType(dims, w.dtype)))
        elif end.startswith("store"):
            values.append(value)
            results.append(Result("store", "", None, 0, ValueType((E, *dims), w.dtype)))
        else:
            fold = end.split()[0] if end.startswith("am") else "sum"
            values.append(value)
            results.append(Result("reduce", fold, SRC if "src" in end else DST, 0, ValueType((N, *dims), w.dtype)))
    return w.program("drawn", values, results)


def _softmax(w: Writer) -> EdgeProgram:
    """A softmax of the latest narrow value to the destination, the latest wide value weighed, and a row operation."""
    h, d = w.h, w.d
    score, value = w.narrow[-1], w.wide[-1]
    top = w.call(fold_to_rows, (score, DST, 0, "amax"), (N, h))
    shifted = w.call(aten.sub.Tensor, (score, w.call(take_rows, (top, DST, 0), (E, h))), (E, h))
    share = w.call(aten.exp.default, (shifted,), (E, h))
    total = w.call(fold_to_rows, (share, DST, 0, "sum"), (N, h))
    weighed = w.call(aten.mul.Tensor, (value, w.spread(share)), (E, h, d))
    mixed = w.call(fold_to_rows, (weighed, DST, 0, "sum"), (N, h, d))
    floor = w.call(aten.add.Tensor, (total, 1e-9), (N, h))
    out = w.call(aten.div.Tensor, (mixed, w.call(aten.unsqueeze.default, (floor, 2), (N, h, 1))), (N, h, d))
    squared = w.call(aten.mul.Tensor, (out, out), (N, h, d))
    length = w.call(aten.sum.dim_IntList, (squared, [2], True), (N, h, 1))
    scaled = w.call(aten.mul.Tensor, (w.call(aten.tanh.default, (length,), (N, h, 1)), out), (N, h, d))
    share_of = w.call(take_rows, (floor, DST, 0), (E, h))
    weight = w.call(aten.div.Tensor, (share, share_of), (E, h))
    again = w.call(fold_to_rows, (w.call(aten.mul.Tensor, (weight, weight), (E, h)), DST, 0, "sum"), (N, h))
    results = [
        Result("rows", "", DST, 0, ValueType((N, h, d), w.dtype)),
        Result("rows", "", DST, 0, ValueType((N, h), w.dtype)),
    ]
    return w.program("softmax", [scaled, again], results)


steps = st.tuples(st.sampled_from(OPS), st.integers(0, 3), st.integers(0, 3))
drawn_programs = st.builds(
    Drawn,
    st.sampled_from(HEADS),
    st.sampled_from(WIDTHS),
    st.lists(steps, min_size=1, max_size=6).map(tuple),
    st.lists(st.sampled_from(ENDS), min_size=1, max_size=4).map(tuple),
    st.booleans(),
)


@dataclass(frozen=True)
class DrawnGraph:
    """N nodes, random edges of a seed, and a hub: one node into which (and from which) many more edges go."""

    nodes: int
    edges: int
    hub: int
    seed: int

    def columns(self) -> dict[int, Tensor]:
        random = torch.Generator().manual_seed(self.seed)
        most = max(self.nodes - 2, 1)  # the last nodes stay without edges
        pairs = torch.randint(0, most, (2, self.edges), generator=random)
        into = torch.stack([torch.randint(0, self.nodes, (self.hub,), generator=random), torch.zeros(self.hub).long()])
        out_of = into.flip(0)[:, : self.hub // 2]
        both = torch.cat([pairs, into, out_of], 1)
        both = both[:, torch.randperm(both.shape[1], generator=random)]
        return {SRC: both[0].contiguous(), DST: both[1].contiguous()}


graphs = st.builds(
    DrawnGraph, st.integers(1, 40), st.sampled_from((0, 1, 9, 60, 300)), st.sampled_from((0, 0, 9, 40, 700)),
    st.integers(0, 99),
)  # fmt: skip


def tables(program: EdgeProgram, nodes: int, edges: int, seed: int = 5) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    found = []
    for operand in program.operands:
        if operand.type.dtype == torch.int64:
            found.append(torch.tensor([seed, 3]))
            continue
        rows = nodes if operand.column is not None else edges
        shape = [rows if isinstance(d, Rows) else d for d in operand.type.dims]
        found.append((torch.randn(shape, generator=random, dtype=torch.float64) * 0.7).to(operand.type.dtype))
    return found


def run_reference(program: EdgeProgram, columns: dict[int, Tensor], nodes: int, values: list[Tensor]) -> list[Tensor]:
    """The whole program in plain torch, every edge at once."""
    edges = columns[SRC].numel()
    sizes = {"N": nodes, "E": edges}
    used = sorted(program.columns_used("gather") | program.columns_used("reduce"))
    maps = {c: ColumnMap(False, columns[c]) for c in used}
    block = EdgeBlock(edges, None, None, maps, dict.fromkeys(used, nodes))
    results = [new_accumulator(r, sizes, torch.device("cpu")) for r in program.results]
    keys = torch.arange(edges) * 7 + 2**33
    run_in_torch(program, block, values, results, keys, sizes, sizes)
    return results


def run_kernel(
    program: EdgeProgram,
    columns: dict[int, Tensor],
    nodes: int,
    values: list[Tensor],
    load: Callable,
    parts: int = 1,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The program as a CUDA kernel on a device, whole or in `parts` blocks of edges."""
    device = torch.device(device)
    edges = columns[SRC].numel()
    sizes = {"N": nodes, "E": edges}
    keys = (torch.arange(edges) * 7 + 2**33).to(device)
    columns = {c: ids.to(device) for c, ids in columns.items()}
    values = [v.to(device) if v.is_floating_point() else v for v in values]  # seed and step stay on the CPU
    kernel = CudaKernel(program, load)
    if parts == 1:
        results = [_poisoned(new_accumulator(r, sizes, device), r) for r in program.results]
        orders: list[Traversal] = [kernel.traverse(o, None, edges, columns, nodes, device) for o in kernel.orders]
        kernel.launch(orders, values, results, keys, True)
        return results
    results = [new_accumulator(r, sizes, device) for r in program.results]
    for block in torch.arange(edges, device=device).chunk(parts):
        mine = {c: v[block] for c, v in columns.items()}
        orders = [kernel.traverse(o, block, block.numel(), mine, None, device) for o in kernel.orders]
        kernel.launch(orders, values, results, keys, False)
    return results


def _poisoned(into: Tensor, result: Result) -> Tensor:
    """A kernel that makes the whole of a result overwrites what is there."""
    return into if result.kind == "contract" else into.fill_(float("nan"))
