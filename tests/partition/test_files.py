"""Saving and loading: the round trip, and every kind of damage named."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarc.errors import GraphError, PartitionError
from sarc.partition import load_shard, partition, ranks_of_process

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool)


def assert_same_part(got, expected):
    assert got.rank == expected.rank
    for name in ("node_ids", "edge_ids", "edge_index"):
        assert torch.equal(getattr(got, name), getattr(expected, name))
    assert [ids.tolist() for ids in got.halo_ids] == [ids.tolist() for ids in expected.halo_ids]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_round_trip(tmp_path, data):
    num_nodes, num_parts = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    node = st.integers(0, num_nodes - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=20))
    owners = data.draw(st.lists(st.integers(0, num_parts - 1), min_size=num_nodes, max_size=num_nodes))
    dtype = data.draw(st.sampled_from(DTYPES))
    ranks = data.draw(st.lists(st.integers(0, num_parts - 1), min_size=1, unique=True))
    edge_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    parts = partition(edge_index, num_nodes, num_parts, assignment=owners)
    x, w = torch.randint(0, 2, (num_nodes, 3)).to(dtype), torch.rand(len(pairs))
    parts.save(tmp_path, node={"x": x, "y": torch.arange(num_nodes)}, edge={"w": w})

    shard, expected = load_shard(tmp_path, ranks), parts.shard(ranks, x=x, y=torch.arange(num_nodes), edge={"w": w})
    assert shard.x.dtype == dtype
    for name in ("x", "y", "w", "node_ids", "edge_ids"):
        assert torch.equal(getattr(shard, name), getattr(expected, name))
    assert list(shard.partitions.parts) == sorted(ranks)
    for rank in ranks:
        assert_same_part(shard.partitions.part(rank), parts.part(rank))
    for name in ("num_nodes", "num_edges", "num_parts", "method", "fingerprint", "graph_kind", "node_type", "relation"):
        assert getattr(shard.partitions, name) == getattr(parts, name)
    whole = load_shard(tmp_path, range(num_parts)).partitions
    assert torch.equal(whole.assignment, parts.assignment) and torch.equal(whole.edge_index, parts.edge_index)


@pytest.fixture
def saved(tmp_path):
    """Five parts of a random graph of 40 nodes; gives partitions and directory."""
    edge_index = torch.randint(0, 40, (2, 120), generator=torch.Generator().manual_seed(0))
    parts = partition(edge_index, 40, 5, method="random")
    parts.save(tmp_path / "parts", node={"x": torch.randn(40, 3)}, edge={"w": np.arange(120.0)})
    return parts, tmp_path / "parts"


def test_the_manifest_states_names_and_sizes(saved):
    parts, folder = saved
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        *(f"part-0000{p}.safetensors" for p in range(5)),
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == 1 and manifest["fingerprint"] == parts.fingerprint
    assert (manifest["num_nodes"], manifest["num_edges"], manifest["num_parts"]) == (40, 120, 5)
    assert manifest["method"] == "random" and manifest["graph_kind"] == "edge_index"
    assert manifest["node"] == {"x": {"dtype": "float32", "shape": [40, 3]}}
    assert manifest["edge"] == {"w": {"dtype": "float64", "shape": [120]}}
    for p, part in parts.parts.items():
        assert manifest["files"][p]["bytes"] == (folder / manifest["files"][p]["name"]).stat().st_size
        assert manifest["sizes"]["nodes"][p] == len(part.node_ids)
        assert manifest["sizes"]["edges"][p] == len(part.edge_ids)
        assert tuple(manifest["sizes"]["halo"][p]) == part.halo_sizes


def test_loading_needs_the_files_of_its_parts_only(saved):
    parts, folder = saved
    for p in (0, 1, 4):
        (folder / f"part-0000{p}.safetensors").unlink()
    shard = load_shard(folder, [3, 2])
    assert torch.equal(shard.node_ids, torch.cat([parts.part(2).node_ids, parts.part(3).node_ids]))


def test_loaded_tensors_do_not_follow_the_file(saved):
    _, folder = saved
    shard = load_shard(folder, 0)
    before = (shard.x.clone(), shard.partitions.part(0).edge_ids.clone())
    path = folder / "part-00000.safetensors"
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(shard.x, before[0]) and torch.equal(shard.partitions.part(0).edge_ids, before[1])


def test_saving_twice_replaces(saved):
    parts, folder = saved
    other = partition(parts.edge_index, 40, 3)
    other.save(str(folder), node={"y": torch.arange(40)})
    shard = load_shard(folder)
    assert shard.partitions.fingerprint == other.fingerprint and list(shard.node) == ["y"] and not shard.edge


def test_a_memory_mapped_array(saved, tmp_path):
    parts, folder = saved
    np.save(tmp_path / "x.npy", np.random.rand(40, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    parts.save(folder, node={"x": mapped})
    shard = load_shard(folder, 1)
    assert np.array_equal(shard.x.numpy(), mapped[shard.node_ids.numpy()])


# Which parts a process runs


@given(st.integers(1, 40), st.integers(1, 40))
def test_processes_share_the_parts_evenly(num_parts, num_processes):
    if num_processes > num_parts:
        with pytest.raises(PartitionError, match=f"at most {num_parts} processes"):
            ranks_of_process(num_parts, 0, num_processes)
        return
    shares = [ranks_of_process(num_parts, r, num_processes) for r in range(num_processes)]
    assert [p for share in shares for p in share] == list(range(num_parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_come_from_the_environment(saved, monkeypatch):
    _, folder = saved
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert load_shard(folder).partitions.is_whole
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(PartitionError, match="got RANK='1', WORLD_SIZE=None"):
        load_shard(folder)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert list(load_shard(folder).partitions.parts) == [2, 3, 4]
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(PartitionError, match=r"at most 5 processes for 5 parts, got WORLD_SIZE=6; .*num_parts=6"):
        load_shard(folder)
    monkeypatch.setenv("RANK", "6")
    with pytest.raises(PartitionError, match="got RANK=6, WORLD_SIZE=6"):
        load_shard(folder)
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(PartitionError, match="got RANK='one'"):
        load_shard(folder)
    with pytest.raises(PartitionError, match="distinct ranks from 0 to 4"):
        load_shard(folder, 5)


# Damage


def test_a_missing_file(saved):
    _, folder = saved
    (folder / "part-00002.safetensors").unlink()
    with pytest.raises(PartitionError, match=r"part-00002\.safetensors: expected the file of part 2, got no such file"):
        load_shard(folder, 2)
    (folder / "manifest.json").unlink()
    with pytest.raises(PartitionError, match=r"manifest\.json: expected a manifest, got no such file"):
        load_shard(folder, 1)


def test_a_truncated_file(saved):
    _, folder = saved
    path = folder / "part-00001.safetensors"
    content = path.read_bytes()
    for length in (len(content) - 1, 100, 0):
        path.write_bytes(content[:length])
        with pytest.raises(PartitionError, match=rf"part-00001.*expected {len(content)} bytes, got {length}; .*again"):
            load_shard(folder, 1)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@pytest.mark.parametrize("name", ["part-00001.safetensors", "manifest.json"])
def test_any_flipped_bit(saved, name, where, bit):
    _, folder = saved
    path = folder / name
    content = path.read_bytes()
    damaged = bytearray(content.rstrip())
    damaged[int(where * len(damaged))] ^= 1 << bit
    path.write_bytes(damaged + content[len(damaged) :])
    try:
        with pytest.raises(PartitionError, match=name):
            load_shard(folder, 1)
    finally:
        path.write_bytes(content)


def test_another_version(saved):
    _, folder = saved
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(PartitionError, match="expected sarc-partition version 1, got sarc-partition version 7"):
        load_shard(folder, 1)


def test_another_graph(saved, tmp_path):
    parts, folder = saved
    other = partition(parts.edge_index.flip(0), 40, 5, method="random")
    with pytest.raises(PartitionError, match=f"fingerprint {other.fingerprint}, got {parts.fingerprint}"):
        load_shard(folder, 0, fingerprint=other.fingerprint)
    load_shard(folder, 0, fingerprint=parts.fingerprint)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "part-00000.safetensors", folder)
    with pytest.raises(PartitionError, match=f"expected a part of partition {parts.fingerprint}, got one of partition"):
        load_shard(folder, 0)


def test_an_interrupted_save_is_no_partition(saved, monkeypatch):
    parts, folder = saved
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        parts.save(folder)
    with pytest.raises(PartitionError, match="when saving was interrupted"):
        load_shard(folder, 0)


def test_save_refuses(saved):
    parts, folder = saved
    with pytest.raises(
        GraphError, match=r"node tensor 'x': expected one row for each of the 40 nodes, got shape \(39,\)"
    ):
        parts.save(folder, node={"x": torch.zeros(39)})
    with pytest.raises(
        GraphError, match=r"edge tensor 'w': expected one row for each of the 120 edges, got shape \(40,\)"
    ):
        parts.save(folder, edge={"w": np.zeros(40)})
    with pytest.raises(GraphError, match="torch has no such dtype"):
        parts.save(folder, node={"x": np.array(["a"] * 40)})
    with pytest.raises(PartitionError, match="save needs all 5 parts, this process holds 1"):
        parts.shard(1).partitions.save(folder)
