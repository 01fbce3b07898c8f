"""The npz format: dense and CSR features, several splits, what is missing, what is damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sarc.data import load, read_npz
from sarc.errors import GraphError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="real graphs are not beside this checkout (../shared/data)")
X = np.array([[1, 3, 0], [0, 0, 0], [0, -2, 2]], dtype=np.float32)
EDGES = np.array([[0, 1, 2], [1, 2, 0]], dtype=np.int32)
CSR = {"x_data": X[X != 0], "x_indices": np.int32([0, 1, 1, 2]), "x_indptr": np.int32([0, 2, 2, 4]), "x_shape": [3, 3]}


@pytest.fixture
def write(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "small.npz", **{"edge_index": EDGES, "num_nodes": 3, **arrays})
        return tmp_path / "small.npz"

    return write


@pytest.mark.parametrize("features", [{"x": X}, CSR])
def test_features(write, features):
    path = write(**features)
    graph = read_npz(path)
    assert graph.edge_index.tolist() == EDGES.tolist() and graph.edge_index.dtype == torch.int64
    assert torch.equal(graph.x, torch.from_numpy(X))
    normal = read_npz(path, normalize_rows=True).x
    assert normal.dtype == torch.float32
    assert torch.equal(normal, torch.tensor([[0.25, 0.75, 0], [0, 0, 0], [0, -0.5, 0.5]]))
    sparse = read_npz(path, dense=False, normalize_rows=True).x
    assert torch.equal(sparse.to_dense(), normal)
    assert (sparse.layout == torch.sparse_csr) == ("x" not in features)


def test_labels_splits_and_description(write):
    masks = np.array([[True, False, False], [False, True, True]])
    path = write(
        y=np.int64([1, -1, 0]), train_mask=masks, val_mask=masks[0], meta=json.dumps({"name": "toy", "classes": 4})
    )
    graph = read_npz(path)
    assert (graph.name, graph.num_classes, graph.y.tolist()) == ("toy", 4, [1, -1, 0])
    assert graph.train_mask.tolist() == [True, False, False] and graph.test_mask is None and graph.x is None
    with pytest.raises(GraphError, match=r"val_mask: expected a split from 0 to 0, got split=1"):
        read_npz(path, split=1)
    path = write(train_mask=masks, y=np.int64([1, -1, 0]), edge_type=np.int32([2, 0, 1]))
    graph = read_npz(path, split=1)
    assert graph.train_mask.tolist() == [False, True, True] and graph.num_classes == 2 and graph.name == "small"
    assert graph.edge["edge_type"].tolist() == [2, 0, 1]


def test_refuses(write, tmp_path):
    with pytest.raises(GraphError, match=r"none\.npz: expected an npz file, got no such file"):
        read_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(GraphError, match=r"text\.npz: expected an npz file without pickled objects"):
        read_npz(tmp_path / "text.npz")
    path = write(y=np.int64([0, 1, 1]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GraphError, match="expected an npz file"):
        read_npz(path)
    with pytest.raises(GraphError, match="pickled"):
        read_npz(write(y=np.array([{}, {}, {}], dtype=object)))
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(GraphError, match=r"small\.npz: expected CSR features"):
        read_npz(write(**{**CSR, "x_indptr": np.int32([0, 2, 2, 9])}))
    with pytest.raises(GraphError, match="JSON description"):
        read_npz(write(meta="{"))
    with pytest.raises(GraphError, match="expected a key edge_index, got a"):
        read_npz(tmp_path / "other.npz")
    with pytest.raises(GraphError, match=r"small: y: expected 3 rows, got shape \(2,\)"):
        read_npz(write(y=np.int64([0, 1])))
    with pytest.raises(GraphError, match=r"edge_index: expected int64 \[2, E\]"):
        read_npz(write(edge_index=EDGES.T))


@real
@pytest.mark.parametrize(
    ("name", "num_nodes", "num_edges", "features", "classes", "split"),
    [
        ("cora", 2708, 10556, 1433, 7, (140, 500, 1000)),
        ("citeseer", 3327, 9104, 3703, 6, (120, 500, 1000)),
        ("minesweeper", 10000, 78804, 7, 2, (5000, 2500, 2500)),
        ("kg_aifb", 8285, 29043, 0, 4, (104, 36, 36)),
    ],
)
def test_real_graphs(name, num_nodes, num_edges, features, classes, split, monkeypatch):
    monkeypatch.setenv("SARC_DATA", str(SHARED))
    graph = load(name, normalize_rows=True)
    assert (graph.name, graph.num_nodes, graph.num_edges) == (name, num_nodes, num_edges)
    assert (graph.num_features, graph.num_classes) == (features, classes)
    assert tuple(int(m.sum()) for m in (graph.train_mask, graph.val_mask, graph.test_mask)) == split
    assert int(graph.edge_index.max()) < num_nodes
    if features:
        sums = graph.x.sum(1)
        assert torch.all((sums - 1).abs().lt(1e-5) | sums.eq(0))


@real
def test_the_second_split_is_another(monkeypatch):
    monkeypatch.setenv("SARC_DATA", str(SHARED))
    first, last = load("minesweeper"), load("minesweeper", split=9)
    assert first.train_mask.sum() == last.train_mask.sum() and not torch.equal(first.train_mask, last.train_mask)
