"""`partition`: every input kind, every method, and what it refuses."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from sarc.errors import GraphError, PartitionError
from sarc.partition import partition, quality

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = ("metis", "random", "contiguous")


def ring(num_nodes):
    """Both directions of a ring, plus a self loop on 0 and a repeated edge."""
    here = torch.arange(num_nodes)
    there = (here + 1) % num_nodes
    extra = torch.tensor([[0, 0], [0, 1 % num_nodes]])
    return torch.cat([torch.stack([here, there]), torch.stack([there, here]), extra], dim=1)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize(
    ("num_nodes", "num_parts"), [(1, 1), (1, 3), (2, 5), (3, 3), (7, 6), (40, 1), (40, 4), (40, 9)]
)
@pytest.mark.parametrize("edges", [True, False])
def test_every_node_has_an_owner(method, num_nodes, num_parts, edges):
    edge_index = ring(num_nodes) if edges else torch.empty(2, 0, dtype=torch.int64)
    parts = partition(edge_index, num_nodes, num_parts, method=method)
    assert parts.method == method and parts.num_parts == len(parts.parts) == num_parts
    assert parts.assignment.shape == (num_nodes,) and parts.assignment.dtype == torch.int64
    assert int(parts.assignment.min()) >= 0 and int(parts.assignment.max()) < num_parts
    assert sum(part.node_ids.numel() for part in parts.parts.values()) == num_nodes
    if num_nodes >= num_parts and method != "metis":
        sizes = torch.bincount(parts.assignment, minlength=num_parts)
        assert int(sizes.max() - sizes.min()) <= 1


@pytest.mark.parametrize("method", NAMES)
def test_the_same_seed_gives_the_same_parts(method):
    edge_index = torch.randint(0, 300, (2, 900), generator=torch.Generator().manual_seed(0))
    once, again = (partition(edge_index, 300, 4, method=method, seed=5) for _ in range(2))
    other = partition(edge_index, 300, 4, method=method, seed=6)
    assert torch.equal(once.assignment, again.assignment) and once.fingerprint == again.fingerprint
    assert torch.equal(once.assignment, other.assignment) == (method == "contiguous")


def test_partition_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    partition(ring(10), 10, 2, method="random")
    assert torch.equal(torch.rand(1), expected)


def test_metis_cuts_a_ring_of_cliques_between_cliques():
    num_cliques, size = 8, 10
    rows, columns = np.nonzero(np.kron(np.eye(num_cliques), np.ones((size, size))))
    bridges = np.arange(num_cliques) * size
    edge_index = np.stack([np.r_[rows, bridges], np.r_[columns, np.roll(bridges, 1)]])
    shuffled = np.random.default_rng(0).permutation(num_cliques * size)[edge_index]
    measured = quality(partition(torch.from_numpy(shuffled), num_cliques * size, 4))
    assert measured.edge_cut <= num_cliques and measured.node_balance < 1.1


def test_direction_and_multiplicity_do_not_move_metis():
    edge_index = torch.randint(0, 200, (2, 600), generator=torch.Generator().manual_seed(0))
    repeated = torch.cat([edge_index, edge_index.flip(0), edge_index[:, :50]], dim=1)
    loops = torch.arange(200).expand(2, 200)
    once = partition(edge_index, 200, 4).assignment
    assert torch.equal(once, partition(torch.cat([repeated, loops], dim=1), 200, 4).assignment)


def test_without_pymetis_a_named_fallback(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymetis", None)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(400))[ring(400)]
    with pytest.warns(UserWarning, match="pymetis is not installed") as caught:
        parts = partition(shuffled, 400, 4)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert parts.method == "contiguous (pymetis not installed)"
    assert quality(parts).edge_cut < quality(partition(shuffled, 400, 4, method="random")).edge_cut / 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition(shuffled, 400, 4, method="random")


@pytest.mark.parametrize("make", [torch.tensor, np.array, list, lambda a: torch.tensor(a, dtype=torch.int32)])
def test_given_assignment(make):
    owners = make([0, 2, 0, 2])
    parts = partition(ring(4), 4, assignment=owners)
    assert (parts.method, parts.num_parts) == ("given", 3)
    assert parts.part(1).node_ids.numel() == parts.part(1).edge_ids.numel() == 0
    assert partition(ring(4), 4, num_parts=9, method="given", assignment=owners).num_parts == 9


def test_the_assignment_is_copied():
    owners = torch.tensor([0, 1, 0, 1])
    parts = partition(ring(4), 4, assignment=owners)
    owners.zero_()
    assert parts.assignment.tolist() == [0, 1, 0, 1]


def test_the_fingerprint_tells_graphs_apart():
    edge_index = ring(6)
    base = partition(edge_index, 6, assignment=[0, 0, 0, 1, 1, 1])
    assert len(base.fingerprint) == 64 and set(base.fingerprint) <= set("0123456789abcdef")
    others = [
        partition(edge_index, 6, assignment=[0, 0, 0, 1, 1, 0]),
        partition(edge_index, 6, num_parts=3, assignment=[0, 0, 0, 1, 1, 1]),
        partition(edge_index, 7, assignment=[0, 0, 0, 1, 1, 1, 0]),
        partition(edge_index.flip(0), 6, assignment=[0, 0, 0, 1, 1, 1]),
        partition(edge_index.flip(1), 6, assignment=[0, 0, 0, 1, 1, 1]),
        partition(edge_index[:, :-1], 6, assignment=[0, 0, 0, 1, 1, 1]),
    ]
    assert len({parts.fingerprint for parts in [base, *others]}) == 7
    assert partition(edge_index.int(), 6, assignment=[0, 0, 0, 1, 1, 1]).fingerprint == base.fingerprint


# Kinds of graph


def same(parts, edge_index, kind="edge_index"):
    assert torch.equal(parts.edge_index, edge_index) and parts.edge_index.dtype == torch.int64
    assert parts.graph_kind == kind


def test_reads_tensors_and_arrays():
    edge_index = ring(9)
    same(partition(edge_index, 9, 2), edge_index)
    same(partition(edge_index.int(), 9, 2), edge_index)
    same(partition(edge_index.numpy(), np.int64(9), np.int64(2)), edge_index)
    same(partition(edge_index.t().contiguous().t(), 9, 2), edge_index)


def test_reads_scipy_rows_as_sources():
    matrix = scipy.sparse.coo_array((np.array([1.0, 0.0, 2.0]), ([0, 2, 2], [1, 0, 1])), shape=(3, 3))
    edge_index = torch.tensor([[0, 2, 2], [1, 0, 1]])
    same(partition(matrix, num_parts=2), edge_index)
    same(partition(scipy.sparse.csr_matrix(matrix), num_parts=2), edge_index)
    with pytest.raises(GraphError, match=r"square .* got shape \(3, 4\)"):
        partition(scipy.sparse.csr_matrix((3, 4)), num_parts=2)
    with pytest.raises(GraphError, match="the graph itself has 3 nodes, got num_nodes=4"):
        partition(matrix, 4, 2)


def test_reads_pyg():
    data = pytest.importorskip("torch_geometric.data")
    edge_index = ring(5)
    same(partition(data.Data(edge_index=edge_index, num_nodes=6), num_parts=2), edge_index)
    with_x = data.Data(edge_index=edge_index, x=torch.zeros(6, 1))
    assert partition(with_x, num_parts=2).num_nodes == 6
    with pytest.raises(GraphError, match="has 6 nodes, got num_nodes=7"):
        partition(with_x, 7, 2)
    bare = data.Data(edge_index=edge_index)
    assert partition(bare, 6, 2).num_nodes == 6
    with pytest.raises(GraphError, match=r"set data\.num_nodes"):
        partition(bare, num_parts=2)
    with pytest.raises(GraphError, match="without"):
        partition(data.Data(x=torch.zeros(3, 1)), num_parts=2)
    with pytest.raises(GraphError, match="HeteroData"):
        partition(data.HeteroData(), num_parts=2)


def test_reads_the_edge_index_class_of_pyg():
    pyg = pytest.importorskip("torch_geometric")
    parts = partition(pyg.EdgeIndex(ring(5)), 5, 2)
    same(parts, ring(5))
    assert type(parts.edge_index) is torch.Tensor


def test_reads_dgl_in_edge_id_order():
    dgl = pytest.importorskip("dgl")
    edge_index = torch.tensor([[3, 0, 2, 0], [1, 2, 0, 2]])
    for dtype in (torch.int64, torch.int32):
        graph = dgl.graph(tuple(edge_index.to(dtype)), num_nodes=6)
        parts = partition(graph, num_parts=2)
        same(parts, edge_index, kind="dgl")
        assert parts.num_nodes == 6
    with pytest.raises(GraphError, match="to_homogeneous"):
        partition(dgl.heterograph({("a", "r", "b"): ([0], [0])}), num_parts=2)


# Refusals


@pytest.mark.parametrize(
    ("edge_index", "num_nodes", "message"),
    [
        (torch.zeros(5, 2, dtype=torch.int64), 3, r"got \(5, 2\), which is \[E, 2\]; pass edge_index\.t\(\)"),
        (torch.zeros(5, dtype=torch.int64), 3, r"expected shape \[2, E\], got \(5,\)"),
        (torch.zeros(2, 0), 3, r"got torch\.float32; pass edge_index\.long\(\)"),
        (torch.zeros(2, 3, dtype=torch.bool), 3, r"got torch\.bool"),
        (torch.tensor([[0, -1], [1, 2]]), 3, r"got -1 as source of edge 1 .*negative ids"),
        (torch.tensor([[0, 1], [1, 3]]), 3, r"from 0 to 2 \(num_nodes=3\), got 3 as destination of edge 1"),
        (torch.tensor([[0, 1], [1, 3]]), None, r"num_nodes is missing.*largest id is 3.*num_nodes=x\.shape\[0\]"),
        (torch.tensor([[0], [0]]), 0, r"at least 1, got 0"),
        (torch.tensor([[0], [0]]), 2.0, r"expected an int, got 2\.0"),
        (torch.tensor([[0], [0]]), True, r"got True"),
        (torch.eye(3).to_sparse(), 3, "layout torch.sparse_coo"),
        (np.zeros((2, 3), dtype=object), 3, "numpy array of object"),
        ([[0], [0]], 3, r"expected an int64 .* DGLGraph.* got builtins\.list"),
    ],
)
def test_refuses_malformed_graphs(edge_index, num_nodes, message):
    with pytest.raises(GraphError, match=message):
        partition(edge_index, num_nodes, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "num_parts is missing"),
        ({"num_parts": 0}, "at least 1, got 0"),
        ({"num_parts": 2.5}, "expected an int"),
        ({"num_parts": True}, "got True"),
        ({"num_parts": 2, "method": "kmeans"}, "one of metis, random, contiguous, given, got 'kmeans'"),
        ({"num_parts": 2, "method": "given"}, "no assignment"),
        ({"num_parts": 2, "method": "metis", "assignment": [0, 0, 1, 1]}, "go together"),
        ({"num_parts": 2, "seed": 0.5}, "seed"),
        ({"assignment": [0, 0, 1]}, r"shape \[N=4\], got shape \(3,\)"),
        ({"assignment": torch.zeros(4, 1)}, r"got shape \(4, 1\)"),
        ({"assignment": torch.tensor([0, 1, float("nan"), 0])}, r"float32 with 1 NaN"),
        ({"assignment": torch.zeros(4)}, r"float32; pass assignment\.long"),
        ({"assignment": torch.zeros(4, dtype=torch.bool)}, r"torch\.bool"),
        ({"assignment": [0, -1, 0, -1]}, r"got -1 for node 1 \(2 such nodes\)"),
        ({"num_parts": 2, "assignment": [0, 1, 2, 1]}, r"from 0 to 1 \(num_parts=2\), got 2 for node 2"),
        ({"assignment": "metis"}, "expected int64"),
    ],
)
def test_refuses_malformed_partitions(arguments, message):
    with pytest.raises(PartitionError, match=message):
        partition(ring(4), 4, **arguments)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real graphs are not beside this checkout (../shared/data)")
def test_metis_on_a_real_graph():
    with np.load(SHARED / "cora.npz") as file:
        edge_index, num_nodes = torch.from_numpy(file["edge_index"]), int(file["num_nodes"])
    metis, random = (quality(partition(edge_index, num_nodes, 4, method=m)) for m in ("metis", "random"))
    assert metis.edge_cut < random.edge_cut / 5
    assert metis.node_balance < 1.05
