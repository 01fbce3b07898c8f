"""Random edge programs: expressions over source, destination, edge and replicated operands, ending in several folds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.fx as fx
from hypothesis import strategies as st

from sarc.ir.edge_program import EdgeProgram, Operand, Result, fold_to_rows, take_rows
from sarc.ir.space import Rows, ValueType

aten = torch.ops.aten
SOURCE, TARGET = 0, 1
EDGES, NODES = Rows("E"), Rows("N")

# Of bounded values: what comes out of a chain of them stays where float64 is exact to the tests' tolerance.
ONE = [aten.neg.default, aten.tanh.default, aten.relu.default, aten.abs.default, aten.sigmoid.default, aten.sin.default]
TWO = [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default]
FOLDS = ["sum", "amax", "amin"]


class _Draft:
    """A body under construction: `values` are its edge values, with at most (heads, width) features."""

    def __init__(self, draw: Callable, dtype: torch.dtype, heads: int, width: int):
        self.draw, self.dtype, self.heads, self.width = draw, dtype, heads, width
        self.body = fx.Graph()
        self.operands: list[Operand] = []
        self.values: list[fx.Node] = []

    def typed(self, node: fx.Node, dims: tuple, dtype: torch.dtype | None = None) -> fx.Node:
        node.meta = {"type": ValueType(dims, dtype or self.dtype), "loc": "model.py:1"}
        return node

    def operand(self, column: int | None, features: tuple[int, int]) -> None:
        node = self.body.placeholder(f"x{len(self.operands)}")
        self.typed(node, (EDGES, *features))
        self.operands.append(Operand(len(self.operands), column, 0, node.meta["type"]))
        self.values.append(node)

    def call(self, target: object, args: tuple, features: tuple, dtype: torch.dtype | None = None) -> fx.Node:
        return self.typed(self.body.call_function(target, args), (EDGES, *features), dtype)

    def pick(self) -> fx.Node:
        return self.draw(st.sampled_from(self.values))

    def step(self, own_folds: bool) -> None:
        """One more value."""
        kind = self.draw(st.sampled_from(["one", "two", "two", "where", "dot", *(["own fold"] * own_folds)]))
        a, b = self.pick(), self.pick()
        first, both = features(a), tuple(max(p, q) for p, q in zip(features(a), features(b), strict=True))
        if kind == "one":
            self.values.append(self.call(self.draw(st.sampled_from(ONE)), (a,), first))
        elif kind == "two":
            made = self.call(self.draw(st.sampled_from(TWO)), (a, b), both)
            self.values.append(self.call(aten.tanh.default, (made,), both) if made.target is aten.mul.Tensor else made)
        elif kind == "where":
            mask = self.call(aten.gt.Scalar, (a, 0.25), first, torch.bool)
            self.values.append(self.call(aten.where.self, (mask, a, b), both))
        elif kind == "dot":
            made = self.call(aten.sum.dim_IntList, (a, [2], True), (first[0], 1))
            self.values.append(self.call(aten.sin.default, (made,), (first[0], 1)))
        else:
            self.values.append(self.own_fold(a, self.draw(st.sampled_from(FOLDS))))

    def own_fold(self, value: fx.Node, fold: str) -> fx.Node:
        """A fold of a value to the rows of TARGET, read for each edge again."""
        rows = self.typed(self.body.call_function(fold_to_rows, (value, TARGET, 0, fold)), (NODES, *features(value)))
        rows = self.typed(self.body.call_function(aten.sin.default, (rows,)), (NODES, *features(value)))
        return self.call(take_rows, (rows, TARGET, 0), features(value))


def features(node: fx.Node) -> tuple[int, int]:
    return node.meta["type"].dims[1:]


@st.composite
def edge_programs(draw: Callable, dtype: torch.dtype = torch.float64) -> EdgeProgram:
    """An edge program over columns SOURCE and TARGET of nodes N; every operand and value is [rows, heads, width]."""
    heads, width = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.sampled_from([1, 3, 7, 17, 64, 100, 257]))
    draft = _Draft(draw, dtype, heads, width)
    shapes = st.sampled_from([(heads, width), (heads, 1), (1, width), (1, 1)])
    draft.operand(SOURCE, (heads, width))
    for _ in range(draw(st.integers(1, 4))):
        draft.operand(draw(st.sampled_from([SOURCE, TARGET, None])), draw(shapes))
    own_folds = draw(st.booleans())
    for _ in range(draw(st.integers(1, 7))):
        draft.step(own_folds)
    results, roots = [], []
    for _ in range(draw(st.integers(1, 3))):
        root = draft.values[-1] if not roots else draft.pick()
        kind = draw(st.sampled_from(["reduce", "reduce", "reduce", "store", "contract"]))
        dims = root.meta["type"].dims
        if kind == "reduce":
            column = TARGET if own_folds else draw(st.sampled_from([SOURCE, TARGET]))
            fold = draw(st.sampled_from(FOLDS))
            results.append(Result("reduce", fold, column, 0, ValueType((NODES, *dims[1:]), dtype)))
        elif kind == "store":
            results.append(Result("store", "", None, 0, ValueType(dims, dtype)))
        else:
            node = draft.body.call_function(aten.sum.dim_IntList, (root, [0]))
            root = draft.typed(node, dims[1:])
            results.append(Result("contract", "sum", None, None, ValueType(dims[1:], dtype)))
        roots.append(root)
    draft.body.output(roots)
    return EdgeProgram("edges0", "E", tuple(draft.operands), tuple(results), draft.body, "model.py:1")


@st.composite
def folds_elsewhere(draw: Callable, dtype: torch.dtype = torch.float64) -> EdgeProgram:
    """An edge program whose folds to TARGET's rows are read by what is folded to SOURCE's, as in a softmax's gradient.

    Its results: a wide sum at the source, which reads no such fold, and folds at either end of numbers that do.
    """
    heads, width = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([9, 12, 17, 47, 64, 100]))
    draft = _Draft(draw, dtype, heads, width)
    draft.operand(SOURCE, (heads, width))
    draft.operand(TARGET, draw(st.sampled_from([(heads, width), (1, width)])))
    for column in (SOURCE, TARGET, draw(st.sampled_from([SOURCE, TARGET, None]))):
        draft.operand(column, (heads, 1))
    narrow = draft.values[2:]
    for _ in range(draw(st.integers(0, 3))):
        draft.step(False)
    early = draft.call(aten.mul.Tensor, (draft.values[0], draft.pick()), (heads, width))
    bounded = draft.call(aten.tanh.default, (early,), (heads, width))
    dot = draft.call(aten.sum.dim_IntList, (bounded, [2], True), (heads, 1))
    draft.values = [draft.call(aten.sin.default, (dot,), (heads, 1)), *narrow]
    for _ in range(draw(st.integers(0, 3))):
        draft.step(False)
    folded = draft.call(aten.add.Tensor, (dot, draft.pick()), (heads, 1))
    # Each edge reads the row's sum: what rounding leaves of it is added up once more.
    folded = draft.call(aten.mul.Tensor, (folded, 2.0**-16), (heads, 1))
    own = draft.own_fold(folded, draw(st.sampled_from(FOLDS)))
    draft.values.append(own)
    for _ in range(draw(st.integers(0, 3))):
        draft.step(draw(st.booleans()))
    late = draft.call(aten.add.Tensor, (draft.values[-1], own), (heads, 1))
    rows = ValueType((NODES, heads, 1), dtype)
    found = [
        (Result("reduce", "sum", SOURCE, 0, ValueType((NODES, heads, width), dtype)), early),
        (Result("reduce", draw(st.sampled_from(FOLDS)), TARGET, 0, rows), late),
        (Result("reduce", draw(st.sampled_from(FOLDS)), SOURCE, 0, rows), late),
        (Result("store", "", None, 0, ValueType((EDGES, heads, 1), dtype)), late),
    ]
    found = draw(st.permutations(found[: draw(st.sampled_from([3, 4]))]))
    draft.body.output([root for _, root in found])
    results = tuple(result for result, _ in found)
    return EdgeProgram("edges0", "E", tuple(draft.operands), results, draft.body, "model.py:1")


@st.composite
def columns(draw: Callable) -> tuple[int, torch.Tensor]:
    """(N, int64 [2, E]): rows without edges, repeated edges, rows of several blocks."""
    nodes = draw(st.integers(1, 12))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    edges = torch.randint(nodes, (2, draw(st.sampled_from([0, 1, 5, 40, 63, 200]))), generator=random)
    hub = draw(st.sampled_from([0, 0, 64, 65, 300, 20_000]))
    into = torch.stack([torch.randint(nodes, (hub,), generator=random), torch.full((hub,), nodes - 1)])
    return nodes, torch.cat([edges, into], dim=1)[:, torch.randperm(edges.shape[1] + hub, generator=random)]
