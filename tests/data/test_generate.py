"""The generated graph is simple, symmetric, reproducible, and has the statistics asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarc.data import labelled_graph
from sarc.errors import GraphError


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_simple_symmetric_and_split(data):
    num_nodes = data.draw(st.integers(1, 30))
    num_classes = data.draw(st.integers(1, num_nodes))
    degree = data.draw(st.floats(0, 40))
    homophily = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    exponent = data.draw(st.sampled_from([None, 1.5, 2.5]))
    graph = labelled_graph(num_nodes, num_classes, degree, 3, homophily=homophily, degree_exponent=exponent, seed=1)
    edges = [tuple(e) for e in graph.edge_index.t().tolist()]
    assert len(set(edges)) == len(edges) <= num_nodes * max(degree, 1) + 1
    assert all(u != v and (v, u) in set(edges) and 0 <= u < num_nodes for u, v in edges)
    assert edges == sorted(edges, key=lambda e: (e[1], e[0]))
    assert sorted(graph.y.unique().tolist()) == list(range(num_classes))
    assert graph.x.shape == (num_nodes, 3) and graph.x.dtype == torch.float32
    assert torch.equal(
        graph.train_mask.int() + graph.val_mask.int() + graph.test_mask.int(), torch.ones(num_nodes).int()
    )
    if num_classes > 1 and homophily in (0.0, 1.0):
        same = graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]
        assert same.eq(homophily == 1.0).all()


def test_statistics():
    graph = labelled_graph(20_000, 5, 12, 16, homophily=0.7, feature_signal=4.0, train_fraction=0.1, val_fraction=0.3)
    source, destination = graph.edge_index
    degree = torch.bincount(destination, minlength=20_000).double()
    assert graph.num_edges == 240_000 and degree.mean() == 12
    assert (graph.y[source] == graph.y[destination]).double().mean() == pytest.approx(0.7, abs=0.01)
    assert degree.max() > 200  # heavy tail: sqrt(N * average_degree) = 490 is the cut
    assert degree.max() < 490 * 1.2
    flat = labelled_graph(20_000, 5, 12, 4, degree_exponent=None)
    assert torch.bincount(flat.edge_index[1]).max() < 40
    assert int(graph.train_mask.sum()) == 2000 and int(graph.val_mask.sum()) == 6000
    centres = torch.stack([graph.x[graph.y == c].mean(0) for c in range(5)])
    assert (torch.cdist(graph.x, centres).argmin(1) == graph.y).double().mean() > 0.8


def test_the_same_seed_gives_the_same_graph():
    once, again, other = (labelled_graph(500, seed=seed) for seed in (3, 3, 4))
    for name in ("edge_index", "x", "y", "train_mask", "val_mask"):
        assert torch.equal(getattr(once, name), getattr(again, name))
    assert not torch.equal(once.y, other.y)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_nodes": 0},
        {"num_classes": 11},
        {"average_degree": -1},
        {"homophily": 1.1},
        {"degree_exponent": 1.0},
        {"train_fraction": 0.7, "val_fraction": 0.4},
    ],
)
def test_refuses(wrong):
    with pytest.raises(GraphError, match=f"{list(wrong)[-1]}: expected"):
        labelled_graph(**{"num_nodes": 10, "num_classes": 2, **wrong})
