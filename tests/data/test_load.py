"""Loading by name, and from the objects of other libraries."""

import sys
import types

import numpy as np
import pytest
import scipy.sparse
import torch

from sarc.data import GraphData, from_dgl, from_ogb, from_pyg, from_scipy, load
from sarc.errors import GraphError

EDGES = torch.tensor([[3, 0, 2, 0], [1, 2, 0, 2]])


def write(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", edge_index=EDGES.numpy(), num_nodes=4)


def test_names_are_looked_for_in_order(tmp_path, monkeypatch):
    work = tmp_path / "a" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.delenv("SARC_DATA", raising=False)
    write(tmp_path / "a" / "shared" / "data", "far")
    write(work / "data", "near")
    write(tmp_path / "named", "mine")
    assert load("far").name == "far" and load("near").num_edges == 4
    with pytest.raises(GraphError) as caught:
        load("mine")
    for text in ("'mine'", "data/mine.npz", "../shared/data/mine.npz", "found there: far, near;", "SARC_DATA"):
        assert text in str(caught.value)
    monkeypatch.setenv("SARC_DATA", str(tmp_path / "named"))
    assert load("mine").name == "mine"
    assert load(tmp_path / "named" / "mine.npz").num_nodes == load("data/near.npz").num_nodes == 4
    with pytest.raises(GraphError, match=r"data/mine\.npz: expected an npz file, got no such file"):
        load("data/mine.npz")


def test_from_pyg():
    data = pytest.importorskip("torch_geometric.data")
    mask = torch.tensor([[True, False], [False, True], [False, False], [True, True], [False, False]])
    graph = from_pyg(
        data.Data(
            edge_index=EDGES, x=torch.ones(5, 2), y=torch.tensor([0, 1, 2, 0, 0]), train_mask=mask, edge_attr=EDGES.t()
        ),
    )
    assert torch.equal(graph.edge_index, EDGES) and graph.num_nodes == 5 and graph.num_classes == 3
    assert torch.equal(graph.train_mask, mask[:, 0]) and graph.val_mask is None
    assert torch.equal(graph.edge["edge_attr"], EDGES.t())
    with pytest.raises(GraphError, match="homogeneous"):
        from_pyg(data.HeteroData())


def test_from_dgl():
    dgl = pytest.importorskip("dgl")
    g = dgl.graph(tuple(EDGES.int()), num_nodes=5)
    g.ndata["feat"], g.ndata["label"] = torch.ones(5, 2), torch.tensor([0, 1, 1, 0, 0])
    g.ndata["val_mask"] = torch.tensor([1, 0, 0, 1, 0], dtype=torch.uint8)
    g.edata["w"] = torch.arange(4)
    graph = from_dgl(g)
    assert torch.equal(graph.edge_index, EDGES) and (graph.num_nodes, graph.num_features, graph.num_classes) == (
        5,
        2,
        2,
    )
    assert graph.val_mask.tolist() == [True, False, False, True, False] and graph.train_mask is None
    assert graph.edge["w"].tolist() == [0, 1, 2, 3]
    with pytest.raises(GraphError, match="homogeneous"):
        from_dgl(dgl.heterograph({("a", "r", "b"): ([0], [0])}))


def test_from_scipy():
    matrix = scipy.sparse.coo_array((np.array([1.0, 2.0, 3.0, 4.0]), tuple(EDGES.numpy())), shape=(4, 4))
    graph = from_scipy(matrix, scipy.sparse.eye_array(4).tocsr(), [0, 1, 0, 1])
    assert torch.equal(graph.edge_index, EDGES) and torch.equal(graph.x, torch.eye(4, dtype=torch.float64))
    assert graph.edge["edge_weight"].tolist() == [1, 2, 3, 4] and graph.num_classes == 2
    assert from_scipy(matrix.tocsr(), weight=None).edge == {}
    with pytest.raises(GraphError, match="square"):
        from_scipy(scipy.sparse.csr_matrix((2, 3)))
    with pytest.raises(GraphError, match=r"x: expected 4 rows, got shape \(3, 1\)"):
        from_scipy(matrix, np.ones((3, 1)))


class FakeOgb:
    """What ogb.nodeproppred.NodePropPredDataset offers, with the names it uses."""

    name, num_classes, task_type = "ogbn-fake", 3, "multiclass classification"

    def __init__(self, labels, **graph):
        self.labels = labels
        self.graph = {"edge_index": EDGES.numpy(), "edge_feat": None, "node_feat": np.ones((4, 2), np.float32), **graph}
        self.graph["num_nodes"] = 4

    def __getitem__(self, index):
        assert index == 0
        return self.graph, self.labels

    def get_idx_split(self):
        return {"train": np.array([0, 2]), "valid": np.array([3]), "test": np.array([], dtype=np.int64)}


def test_from_ogb():
    graph = from_ogb(FakeOgb(np.array([[0], [2], [1], [0]])))
    assert (graph.name, graph.num_classes, graph.num_features) == ("ogbn-fake", 3, 2)
    assert torch.equal(graph.edge_index, EDGES) and graph.y.tolist() == [0, 2, 1, 0] and graph.edge == {}
    assert graph.train_mask.tolist() == [True, False, True, False]
    assert graph.val_mask.tolist() == [False, False, False, True] and not graph.test_mask.any()


def test_from_ogb_with_missing_labels_and_several_tasks():
    assert from_ogb(FakeOgb(np.array([[0.0], [np.nan], [1.0], [2.0]]))).y.tolist() == [0, -1, 1, 2]
    tasks = FakeOgb(np.eye(4, dtype=np.int64), node_feat=None, edge_feat=np.ones((4, 8), np.float32))
    tasks.task_type = "binary classification"
    graph = from_ogb(tasks)
    assert graph.x is None and graph.y.shape == (4, 4) and graph.num_classes == 2
    assert graph.edge["edge_attr"].shape == (4, 8)
    with pytest.raises(GraphError, match="cannot merge edge features"):
        from_ogb(tasks, undirected=True)


def test_from_ogb_undirected():
    graph = from_ogb(FakeOgb(np.zeros((4, 1), np.int64)), undirected=True)
    assert graph.edge_index.t().tolist() == [[2, 0], [3, 1], [0, 2], [1, 3]]


def test_from_ogb_refuses():
    labels = np.zeros((4, 1), np.int64)
    mag = FakeOgb(labels)
    mag.graph = {"edge_index_dict": {}, "num_nodes_dict": {}}
    with pytest.raises(GraphError, match="expected one node type and one relation, got keys edge_index_dict"):
        from_ogb(mag)
    with pytest.raises(GraphError, match="ids from 0 to 3, got 0 to 9"):
        from_ogb(FakeOgb(labels, edge_index=np.array([[0], [9]])))


def test_without_ogb(monkeypatch):
    monkeypatch.setitem(sys.modules, "ogb", None)
    with pytest.raises(ImportError, match=r"'ogbn-arxiv' needs the package ogb .* pip install ogb"):
        from_ogb("ogbn-arxiv")


def test_ogb_reads_its_cache(tmp_path, monkeypatch):
    """ogb 1.3.6 with torch 2.6 and later: torch.load refuses the pickle that ogb wrote (protocol 4)."""
    torch.save(
        {"graph": FakeOgb(None).graph, "labels": np.zeros((4, 1))}, tmp_path / "data_processed", pickle_protocol=4
    )

    class Dataset(FakeOgb):
        def __init__(self, name, root):
            loaded = torch.load(f"{root}/data_processed")
            self.graph, self.labels = loaded["graph"], loaded["labels"]

    module = types.ModuleType("ogb.nodeproppred")
    module.NodePropPredDataset = Dataset
    monkeypatch.setitem(sys.modules, "ogb", types.ModuleType("ogb"))
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", module)
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    with pytest.raises(Exception, match="Weights only load failed"):  # else the workaround can go
        Dataset("ogbn-fake", tmp_path)
    graph = from_ogb("ogbn-fake", tmp_path)
    assert graph.num_nodes == 4 and graph.y.tolist() == [0, 0, 0, 0]
    with pytest.raises(Exception, match="Weights only load failed"):
        Dataset("ogbn-fake", tmp_path)


def test_graph_data_refuses_what_does_not_fit():
    with pytest.raises(GraphError, match=r"toy: x: expected 5 rows, got shape \(4, 1\)"):
        GraphData(EDGES, 5, x=torch.ones(4, 1), name="toy")
    with pytest.raises(GraphError, match=r"train_mask: expected bool \[N\], got torch\.float32"):
        GraphData(EDGES, 5, train_mask=torch.ones(5))
    with pytest.raises(GraphError, match=r"edge tensor 'w': expected 4 rows, got shape \(5,\)"):
        GraphData(EDGES, 5, edge={"w": torch.ones(5)})
    assert repr(GraphData(EDGES, 5, name="toy")) == "GraphData(toy: 5 nodes, 4 edges, 0 features, 0 classes)"
