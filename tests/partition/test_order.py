"""A locality order brings neighbours together, and a reordered graph is the same graph."""

from __future__ import annotations

import pytest
import torch

import sarc
from benchmarks.ops import CopySum
from benchmarks.order import grid
from sarc.data import GraphData, labelled_graph
from sarc.errors import GraphError


def test_neighbours_of_a_shuffled_grid_come_together() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randperm(900, generator=generator)[grid(30)]
    order = sarc.locality_order(edges, 900)
    assert torch.equal(order.sort().values, torch.arange(900))
    place = order.argsort()
    ordered, shuffled = ((e[0] - e[1]).abs() for e in (place[edges], edges))
    assert int(ordered.max()) <= 2 * 30 and shuffled.double().mean() > 5 * ordered.double().mean()


def test_every_graph_has_one() -> None:
    assert sarc.locality_order(torch.empty(2, 0, dtype=torch.int64), 2).tolist() in ([0, 1], [1, 0])
    assert sorted(sarc.locality_order(torch.tensor([[0, 0], [0, 2]]), 4).tolist()) == [0, 1, 2, 3]
    with pytest.raises(GraphError, match="edge_index"):
        sarc.locality_order(torch.tensor([[0], [7]]), 4)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_reordered_graph_gives_the_same_rows_in_another_order(parts: int, sparse: bool) -> None:
    data = labelled_graph(60, 3, 4, 5, seed=0)
    if sparse:
        data = GraphData(data.edge_index, 60, data.x.to_sparse_csr(), data.y)
    order = sarc.locality_order(data.edge_index, 60)
    other = data.reordered(order)
    x, there = (d.x.to_dense() for d in (data, other))
    assert torch.equal(there, x[order]) and torch.equal(other.y, data.y[order])
    compiled = sarc.compile(CopySum(), parts)
    expected = CopySum()(x, data.edge_index)
    torch.testing.assert_close(compiled(there, other.edge_index)[order.argsort()], expected)


@pytest.mark.parametrize(
    "order",
    [torch.arange(59), torch.arange(60).float(), torch.zeros(60, dtype=torch.int64), torch.arange(60) + 1],
    ids=["short", "float", "repeated", "out of range"],
)
def test_an_order_that_is_no_permutation_is_refused(order: torch.Tensor) -> None:
    with pytest.raises(GraphError, match="every one of 60 nodes once"):
        labelled_graph(60, 3, 4, 5, seed=0).reordered(order)
