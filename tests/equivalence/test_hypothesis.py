"""Random graphs, cut at random, under random models: every stage of the compiler computes what the plain module does.

Rungs: the interpreter of the raised and of the step program equals the plain module; differentiation and fusion keep
the interpreter's results and gradients; P parts in one process equal the plain module.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as f
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from sarc.runtime.replay import replay
from tests.equivalence.case import Case, Cut, F
from tests.equivalence.compare import assert_same, observe, pair
from tests.equivalence.model_lists import case_named
from tests.equivalence.rungs import Stages

H = 3


# --- graphs and cuts


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """A directed multigraph of 1 to 9 nodes, self loops and repeated edges likely, cut into 1 to N + 2 parts."""
    n = draw(st.integers(1, 9))
    node = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=16))
    num_parts = draw(st.integers(1, n + 2))
    owners = draw(st.lists(st.integers(0, num_parts - 1), min_size=n, max_size=n))
    return cut(edges, owners, num_parts)


def cut(edges: list[tuple[int, int]], owners: list[int], num_parts: int) -> Cut:
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    return Cut(edge_index, len(owners), torch.tensor(owners), num_parts)


NO_EDGES = cut([], [0, 1, 0], 2)
ONE_NODE = cut([(0, 0), (0, 0)], [0], 1)
ONE_NODE_NO_EDGES = cut([], [1], 3)
MORE_PARTS_THAN_NODES = cut([(0, 1), (1, 2), (2, 0), (0, 1)], [4, 2, 0], 5)
AN_EMPTY_PART = cut([(0, 1), (1, 0), (2, 2), (3, 1), (3, 1)], [0, 2, 2, 0, 0], 3)


# --- models from a grammar


@dataclass(frozen=True)
class Term:
    """One instruction: an operator and the places of its operands among the values so far (modulo their number)."""

    op: str
    a: int
    b: int


class Expression(nn.Module):
    """Runs terms on growing lists of node values and edge values [., H]; returns the last of each."""

    def __init__(self, terms: tuple[Term, ...]):
        super().__init__()
        self.terms = terms
        self.first, self.second = nn.Linear(F, H), nn.Linear(F, H)
        self.pair, self.mix = nn.Linear(2 * H, H), nn.Linear(H, H)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> tuple[Tensor, Tensor]:
        nodes, edges = [self.first(x), self.second(x).tanh()], [self.first(x)[edge_index[0]]]
        for term in self.terms:
            kind, _, name = term.op.partition(" ")
            rows = edges if kind == "edge" else nodes
            a, b = rows[term.a % len(rows)], rows[term.b % len(rows)]
            if kind in ("source", "target"):
                edges.append(a[edge_index[int(kind == "target")]])
            elif kind == "fold":
                rows = edges[term.a % len(edges)]
                nodes.append(fold(name, rows, edges[term.b % len(edges)], edge_index, x.size(0)))
            else:
                rows.append(self.rowwise(name, a, b, edge_weight))
        return nodes[-1], edges[-1].sum(-1)

    def rowwise(self, name: str, a: Tensor, b: Tensor, edge_weight: Tensor) -> Tensor:
        if name == "gate":
            return a.sigmoid() * b
        if name == "mix":
            return self.mix(a).tanh() + b
        if name == "pair":
            return self.pair(torch.cat([a, b], -1))
        if name == "product":
            return (a * b).sum(-1, keepdim=True) * a
        if name == "weighted":
            return a * edge_weight[:, None]
        if name == "centred":
            return b - a.mean(0)
        if name == "selected":
            return torch.where(a > 0, a, 0.1 * b)
        return f.dropout(a, 0.3, self.training)


def fold(name: str, rows: Tensor, logits: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Rows of edges folded to their targets, or (for "back") to their sources."""
    src, dst = edge_index
    zeros = torch.zeros(num_nodes, H, dtype=rows.dtype)
    index = dst.unsqueeze(-1).expand(-1, H)
    if name == "sum":
        return zeros.index_add(0, dst, rows)
    if name == "back":
        return zeros.index_add(0, src, rows)
    if name == "without loops":
        keep = src != dst
        return zeros.index_add(0, dst[keep], rows[keep])
    if name in ("mean", "amax", "amin"):
        return zeros.scatter_reduce(0, index, rows, name, include_self=False)
    top = torch.full_like(zeros, -torch.inf).scatter_reduce(0, index, logits, "amax")
    weights = (logits - top[dst]).exp()
    total = zeros.index_add(0, dst, weights)
    return zeros.index_add(0, dst, rows * weights / total[dst])


ROWWISE = ("gate", "mix", "pair", "product", "centred", "selected", "dropout")
FOLDS = ("sum", "back", "without loops", "mean", "amax", "amin", "softmax")
OPS = (
    *(f"node {name}" for name in ROWWISE),
    *(f"edge {name}" for name in (*ROWWISE, "weighted")),
    *(f"fold {name}" for name in FOLDS),
    "source",
    "target",
)

terms = st.builds(Term, st.sampled_from(OPS), st.integers(0, 5), st.integers(0, 5))
expressions = st.lists(terms, min_size=2, max_size=7).map(tuple)


def expression(found: tuple[Term, ...]) -> Case:
    return Case("expression", lambda: Expression(found), "x edge_index edge_weight")


# Two folds of which the second reads the first at both ends, between them a contraction: all that a layer can need.
TWO_FOLDS = (
    Term("target", 1, 0),
    Term("edge pair", 0, 1),
    Term("fold softmax", 1, 2),
    Term("node centred", 2, 0),
    Term("source", 3, 0),
    Term("edge gate", 3, 2),
    Term("fold without loops", 4, 0),
)

# Small models of the lists that hold on any graph (a batch norm needs two rows, a table of nodes as many as it has).
LISTED = (
    "GCNConv weighted",
    "GATConv dropout",
    "SAGEConv max",
    "self loops replaced",
    "index_put overwrite",
    "scatter_reduce mean",
    "nodes on the second axis",
    "edges by a mask",
    "pooled and back",
    "permutation input",
)


# --- the rungs


def check_rungs(case: Case, where: Cut) -> None:
    plain, compiled, values = pair(case, where)
    before = copy.deepcopy(plain)
    actual = observe(case, compiled, values)
    with replay(compiled):
        expected = observe(case, plain, values)
    assert_same(actual, expected)
    for stage, found in Stages(case, compiled, before, values).observed(set(expected)):
        if "gradient" not in "".join(found):
            expected_here = {k: v for k, v in expected.items() if not k.startswith("gradient")}
        else:
            expected_here = expected
        try:
            assert_same(found, expected_here)
        except AssertionError as error:
            raise AssertionError(f"{stage}: {error}") from None


@given(expressions, cuts())
@example(TWO_FOLDS, NO_EDGES)
@example(TWO_FOLDS, ONE_NODE)
@example(TWO_FOLDS, MORE_PARTS_THAN_NODES)
@example(TWO_FOLDS, AN_EMPTY_PART)
@example((Term("edge centred", 0, 0), Term("edge gate", 0, 1)), ONE_NODE_NO_EDGES)  # the mean of no edges
def test_expressions(found: tuple[Term, ...], where: Cut) -> None:
    check_rungs(expression(found), where)


@given(st.sampled_from(LISTED), cuts())
@example("GATConv dropout", NO_EDGES)
@example("GATConv dropout", ONE_NODE_NO_EDGES)
@example("GATConv dropout", MORE_PARTS_THAN_NODES)
@example("self loops replaced", AN_EMPTY_PART)
def test_listed_models(name: str, where: Cut) -> None:
    check_rungs(case_named(name), where)
