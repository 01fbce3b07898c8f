"""PyG and DGL layers and calls that a compiled model cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sarc
from tests.errors.refusals import EDGES, PARTS, E, F, N, X, check_equal, check_golden, nothing_lost, readable, refusal

pyg = pytest.importorskip("torch_geometric.nn")


class Aggregates(nn.Module):
    def __init__(self, aggregation: nn.Module):
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)
        self.aggregation = aggregation.double()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.aggregation(self.lin(x)[edge_index[0]], edge_index[1], dim_size=x.size(0))


class Convolves(nn.Module):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv.double()

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.conv(x, edge_index)


class NearestNeighbours(nn.Module):
    """Edges made of features, as DynamicEdgeConv does."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        near = self.lin(x).argmax(1)
        return x + x[near]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "SortAggregation": lambda: Aggregates(pyg.SortAggregation(2)),
    "MedianAggregation": lambda: Aggregates(pyg.MedianAggregation()),
    "QuantileAggregation": lambda: Aggregates(pyg.QuantileAggregation(0.3)),
    "LSTMAggregation": lambda: Aggregates(pyg.LSTMAggregation(F, F)),
    "GRUAggregation": lambda: Aggregates(pyg.GRUAggregation(F, F)),
    "MulAggregation": lambda: Aggregates(pyg.MulAggregation()),
    "SAGEConv(median)": lambda: Convolves(pyg.SAGEConv(F, F, aggr="median")),
    "TopKPooling": lambda: Convolves(pyg.TopKPooling(F)),
    "DenseGCNConv": lambda: Convolves(pyg.DenseGCNConv(F, F)),
    "the layer itself": lambda: pyg.TopKPooling(F).double(),
    "neighbours by features": NearestNeighbours,
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_pyg_layer_refused(case: str) -> None:
    model = LAYERS[case]()
    compiled = sarc.compile(model, PARTS)
    with nothing_lost(model):
        check_golden("libraries", case, refusal(lambda: compiled(X, EDGES)))


@pytest.mark.parametrize("name", ["SoftmaxAggregation", "StdAggregation", "PowerMeanAggregation"])
def test_pyg_folds_work(name: str) -> None:
    model = Aggregates(getattr(pyg, name)())
    check_equal(sarc.compile(model, PARTS), model, X.abs() + 1, EDGES)


def test_every_operator_of_a_layer_carries_the_line_of_the_model_that_calls_it() -> None:
    compiled = sarc.compile(Convolves(pyg.GATConv(F, F)), PARTS)
    compiled(X, EDGES).sum().backward()
    stages = compiled._called().stages
    for stage in ("raised", "structure", "step", "joint", "forward", "backward"):
        lines = {node.meta["loc"] for node in stages[stage].graph.nodes if node.op == "call_function"}
        assert {readable(line) for line in lines} == {"<test_libraries.py: return self.conv(x, edge_index)>"}, stage


# ---- DGL -------------------------------------------------------------------------------------------------------------

dgl = pytest.importorskip("dgl")
fn = pytest.importorskip("dgl.function")
GRAPH = dgl.graph((EDGES[0], EDGES[1]), num_nodes=N)
DGL_PARTS = sarc.partition(GRAPH, num_parts=3, method="contiguous")


class Messages(nn.Module):
    """`step(graph, x)` while broken, else one update_all."""

    def __init__(self, step: Callable[[Any, Tensor], Any] | None = None):
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)
        self.step, self.broken = step, step is not None

    def forward(self, g: Any, x: Tensor) -> Any:
        with g.local_scope():
            g.ndata["h"] = self.lin(x)
            if self.broken:
                return self.step(g, x)
            g.update_all(fn.copy_u("h", "m"), fn.sum("m", "o"))
            return g.ndata["o"]


def sorted_mailbox(g: Any, x: Tensor) -> Tensor:
    g.update_all(fn.copy_u("h", "m"), lambda nodes: {"o": nodes.mailbox["m"].sort(1)[0][:, 0]})
    return g.ndata["o"]


def unknown_field(g: Any, x: Tensor) -> Tensor:
    g.apply_edges(fn.u_add_v("nope", "h", "e"))
    return x


STEPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "g.adj": lambda g, x: g.adj() @ x,
    "an unknown method": lambda g, x: g.frobnicate(),
    "a query of edges": lambda g, x: x if g.has_edges_between(0, 1) else -x,
    "a query of neighbours": lambda g, x: g.predecessors(3).sum() * x,
    "a subgraph": lambda g, x: g.in_subgraph([0]).num_nodes() * x,
    "another graph": lambda g, x: dgl.to_bidirected(g).num_edges() * x,
    "several edge types": lambda g, x: g.multi_update_all({}, "sum"),
    "an ordered traversal": lambda g, x: g.prop_nodes([[0]], None, None),
    "a sorted mailbox": sorted_mailbox,
    "an unknown field": unknown_field,
    "int(num_nodes)": lambda g, x: x / int(g.num_nodes()),
    "h @ h.T": lambda g, x: g.ndata["h"] @ g.ndata["h"].T,
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
def test_dgl_construct_refused(case: str) -> None:
    model = Messages(STEPS[case])
    functions = {name: getattr(dgl, name) for name in ("to_bidirected", "add_self_loop", "graph")}
    softmax = dgl.ops.edge_softmax, dgl.nn.functional.edge_softmax
    compiled = sarc.compile(model, DGL_PARTS)
    with nothing_lost(model):
        check_golden("libraries", f"DGL: {case}", refusal(lambda: compiled(GRAPH, X)))
    assert functions == {name: getattr(dgl, name) for name in functions}
    assert softmax == (dgl.ops.edge_softmax, dgl.nn.functional.edge_softmax)
    model.broken = False
    with torch.no_grad():
        torch.testing.assert_close(compiled(GRAPH, X), model(GRAPH, X))


def test_dgl_sizes_may_be_branched_on() -> None:
    model = Messages(lambda g, x: g.ndata["h"] * (2 if g.num_edges() > E - 1 and g.num_nodes() == N else 1))
    check_equal(sarc.compile(model, DGL_PARTS), model, GRAPH, X)


TWO_TYPES = dgl.heterograph({("a", "r", "b"): ([0], [1]), ("b", "s", "a"): ([0], [0])})
GRAPHS: dict[str, Callable[[], Any]] = {
    "a heterograph": lambda: TWO_TYPES,
    "a batch": lambda: dgl.batch([GRAPH, GRAPH]),
    "a block": lambda: dgl.to_block(GRAPH),
    "other edges": lambda: dgl.graph((EDGES[1], EDGES[0]), num_nodes=N),
    "an edge less": lambda: dgl.graph((EDGES[0, 1:], EDGES[1, 1:]), num_nodes=N),
    "a node more": lambda: dgl.graph((EDGES[0], EDGES[1]), num_nodes=N + 1),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_dgl_graph_refused(case: str) -> None:
    model = Messages()
    compiled = sarc.compile(model, DGL_PARTS)
    with nothing_lost(model):
        check_golden("libraries", f"DGL graph: {case}", refusal(lambda: compiled(GRAPHS[case](), X)))


def test_dgl_heterograph_is_no_graph_to_partition() -> None:
    check_golden("libraries", "DGL partition", refusal(lambda: sarc.partition(TWO_TYPES, num_parts=2)))
