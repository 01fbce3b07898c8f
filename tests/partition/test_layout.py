"""What every cut promises: ownership, in-edges, halo; and the Shard made of it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarc.errors import GraphError, PartitionError
from sarc.partition import cut, partition, quality


@st.composite
def cut_graphs(draw):
    """edge_index, assignment, P: with self loops, repeated edges, isolated nodes, empty parts, no edges, P > N."""
    num_nodes = draw(st.integers(1, 12))
    num_parts = draw(st.integers(1, 15))
    node = st.integers(0, num_nodes - 1)
    pairs = draw(st.lists(st.tuples(node, node), max_size=40))
    used = draw(st.integers(1, num_parts))
    owners = draw(st.lists(st.integers(0, used - 1), min_size=num_nodes, max_size=num_nodes))
    edge_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    return edge_index, torch.tensor(owners), num_parts


@settings(deadline=None, max_examples=150)
@given(cut_graphs())
def test_cut_against_plain_loops(drawn):
    edge_index, assignment, num_parts = drawn
    parts = cut(edge_index, assignment, num_parts)
    edges, owner = edge_index.t().tolist(), assignment.tolist()
    assert sorted(parts.parts) == list(range(num_parts))
    assert (parts.num_nodes, parts.num_edges) == (len(owner), len(edges))
    for p, part in parts.parts.items():
        assert part.rank == p and part.num_parts == num_parts
        assert part.node_ids.tolist() == [v for v, q in enumerate(owner) if q == p]
        assert part.edge_ids.tolist() == [e for e, (_, v) in enumerate(edges) if owner[v] == p]
        assert part.edge_index.t().tolist() == [edges[e] for e in part.edge_ids.tolist()]
        sources = {u for u, v in edges if owner[v] == p}
        expected = [sorted(u for u in sources if owner[u] == q) if q != p else [] for q in range(num_parts)]
        assert [ids.tolist() for ids in part.halo_ids] == expected
        assert part.halo_sizes == tuple(map(len, expected))
        assert {t.dtype for t in (part.node_ids, part.edge_ids, part.edge_index, *part.halo_ids)} == {torch.int64}
        holder, position = part.locate(part.edge_index[0])
        for u, q, i in zip(part.edge_index[0].tolist(), holder.tolist(), position.tolist()):
            assert q == owner[u]
            assert u == (part.node_ids if q == p else part.halo_ids[q])[i]


@settings(deadline=None, max_examples=50)
@given(cut_graphs())
def test_quality_against_plain_loops(drawn):
    edge_index, assignment, num_parts = drawn
    edges, owner = edge_index.t().tolist(), assignment.tolist()
    got = quality(cut(edge_index, assignment, num_parts))
    remote = {(owner[v], u) for u, v in edges if owner[u] != owner[v]}
    assert got.edge_cut == sum(owner[u] != owner[v] for u, v in edges)
    assert got.communication_volume == len(remote)
    assert all(
        got.halo_rows[p][q] == sum(r == p and owner[u] == q for r, u in remote)
        for p, q in np.ndindex(num_parts, num_parts)
    )
    assert got.replication_factor == pytest.approx(1 + len(remote) / len(owner))
    assert got.node_balance == pytest.approx(max(map(owner.count, range(num_parts))) * num_parts / len(owner))
    if not edges:
        assert got.edge_balance == 1 and got.cut_fraction == 0


def test_quality_in_one_line():
    parts = partition(torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]]), 4, assignment=[0, 0, 1, 1])
    assert str(quality(parts)) == (
        "2 parts: 1 edges cut (25.0%), 1 halo rows (each node on 1.25 parts), balance nodes 1.00 edges 1.50"
    )
    with pytest.raises(PartitionError, match="needs all 2 parts, this process holds 1"):
        quality(parts.shard(1).partitions)


@settings(deadline=None, max_examples=60)
@given(cut_graphs(), st.data())
def test_shard_holds_the_rows_of_its_parts(drawn, data):
    edge_index, assignment, num_parts = drawn
    ranks = data.draw(st.lists(st.integers(0, num_parts - 1), min_size=1, unique=True))
    num_nodes, num_edges = assignment.numel(), edge_index.shape[1]
    x, w = torch.randn(num_nodes, 3), np.random.rand(num_edges, 2)
    parts = cut(edge_index, assignment, num_parts)
    shard = parts.shard(ranks, x=x, edge={"w": w})
    assert list(shard.partitions.parts) == sorted(ranks)
    assert shard.node_ids.tolist() == [v for p in sorted(ranks) for v in parts.part(p).node_ids.tolist()]
    assert shard.edge_ids.tolist() == [e for p in sorted(ranks) for e in parts.part(p).edge_ids.tolist()]
    assert torch.equal(shard.x, x[shard.node_ids]) and torch.equal(shard.node["x"], shard.x)
    assert np.array_equal(shard.w.numpy(), w[shard.edge_ids.numpy()])
    assert shard.graph.num_nodes == len(shard.node_ids) and shard.graph.num_edges == len(shard.edge_ids)
    assert shard.graph.partitions is shard.partitions
    assert shard.partitions.is_whole == (shard.partitions.assignment is not None) == (len(ranks) == num_parts)
    assert shard.partitions.fingerprint == parts.fingerprint


@pytest.fixture
def square():
    """A directed 4-cycle, nodes 0 1 | 2 3."""
    return partition(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), 4, assignment=[0, 0, 1, 1])


def test_shard_names_the_tensors_there_are(square):
    shard = square.shard(1, x=torch.zeros(4), y=torch.zeros(4), edge={"w": torch.ones(4)})
    with pytest.raises(AttributeError, match=r"no 'z': node tensors \['x', 'y'\], edge tensors \['w'\]"):
        shard.z  # noqa: B018
    assert not hasattr(shard, "__missing__")
    for twin in (copy.copy(shard), copy.deepcopy(shard), pickle.loads(pickle.dumps(shard))):
        assert torch.equal(twin.x, shard.x)


def test_a_node_tensor_comes_before_an_edge_tensor_of_the_same_name(square):
    assert torch.equal(square.shard(0, w=torch.zeros(4), edge={"w": torch.ones(4)}).w, torch.zeros(2))


def test_a_shard_does_not_keep_the_whole_alive(square):
    part = square.shard(1).partitions.part(1)
    for ids in (part.node_ids, part.edge_ids, part.edge_index, *part.halo_ids):
        assert ids.untyped_storage().nbytes() == ids.numel() * 8


def test_shard_refuses(square):
    with pytest.raises(PartitionError, match=r"distinct ranks from 0 to 1, got 2"):
        square.shard(2)
    with pytest.raises(PartitionError, match=r"distinct ranks from 0 to 1, got \[0, 0\]"):
        square.shard([0, 0])
    with pytest.raises(PartitionError, match=r"got \[\]"):
        square.shard([])
    with pytest.raises(PartitionError, match=r"expected an int"):
        square.shard(0.5)
    with pytest.raises(PartitionError, match=r"part 0 of 2 is not held by this process \(held: 1\)"):
        square.shard(1).partitions.shard(0)
    with pytest.raises(
        GraphError, match=r"node tensor 'x': expected one row for each of the 4 nodes, got shape \(3,\)"
    ):
        square.shard(0, x=torch.zeros(3))
    with pytest.raises(GraphError, match=r"edge tensor 'm'.*got shape \(10, 4\); rows come first"):
        square.shard(0, edge={"m": torch.zeros(10, 4)})
    with pytest.raises(GraphError, match="this name is taken"):
        square.shard(0, node_ids=torch.zeros(4))
    with pytest.raises(GraphError, match="got list"):
        square.shard(0, x=[1, 2, 3, 4])
    with pytest.raises(GraphError, match="to_dense"):
        square.shard(0, x=torch.eye(4).to_sparse())
