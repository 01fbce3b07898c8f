"""Load a graph from a file, or from the objects of PyG, DGL, scipy and OGB."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sarc.data.graph_data import MASKS, GraphData, classes_of
from sarc.data.npz import read_npz
from sarc.errors import GraphError


def load(
    name_or_path: str | os.PathLike[str], *, split: int = 0, normalize_rows: bool = False, dense: bool = True
) -> GraphData:
    """Reads an npz graph, by path ("graphs/cora.npz") or by bare name ("cora").

    A bare name is looked for as NAME.npz in the folder that the environment variable SARC_DATA names, in ./data and in
    ../shared/data. The other arguments are those of `read_npz`.

    Raises:
        GraphError: no such file (says where it looked and which graphs are there), or not a graph.
    """
    text = os.fspath(name_or_path)
    if text.endswith(".npz") or os.path.dirname(text):
        return read_npz(text, split=split, normalize_rows=normalize_rows, dense=dense)
    folders = _folders()
    for folder in folders:
        if (folder / f"{text}.npz").is_file():
            return read_npz(folder / f"{text}.npz", split=split, normalize_rows=normalize_rows, dense=dense)
    looked = ", ".join(str(folder / f"{text}.npz") for folder in folders)
    there = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.npz")})
    raise GraphError(
        f"graph {text!r}: looked for {looked}; graphs found there: {', '.join(there) or 'none'}; set SARC_DATA to a "
        "folder of npz files, or pass a path"
    )


def from_pyg(data: Any, name: str = "pyg") -> GraphData:
    """Takes a homogeneous PyG Data: edge_index, x, y, masks, and edge_weight, edge_attr, edge_type as edge tensors."""
    if getattr(data, "edge_index", None) is None or hasattr(data, "node_types"):
        raise GraphError(f"expected a homogeneous PyG Data with edge_index, got {data!r}")
    y = _labels(getattr(data, "y", None))
    edge = {key: getattr(data, key, None) for key in ("edge_weight", "edge_attr", "edge_type")}
    return GraphData(
        edge_index=_edges(data.edge_index, int(data.num_nodes)),
        num_nodes=int(data.num_nodes),
        x=getattr(data, "x", None),
        y=y,
        **_masks({mask: getattr(data, mask, None) for mask in MASKS}),
        num_classes=classes_of(y),
        name=name,
        edge={key: tensor for key, tensor in edge.items() if isinstance(tensor, Tensor)},
    )


def from_dgl(graph: Any, *, feature: str = "feat", label: str = "label", name: str = "dgl") -> GraphData:
    """Takes a homogeneous DGLGraph: edges in edge-id order, ndata[feature], ndata[label], masks, and all of edata."""
    if not graph.is_homogeneous:
        raise GraphError(f"expected a homogeneous DGLGraph, got edge types {list(graph.canonical_etypes)}")
    y = _labels(graph.ndata.get(label))
    num_nodes = int(graph.num_nodes())
    return GraphData(
        edge_index=_edges(torch.stack(graph.edges(order="eid")), num_nodes),
        num_nodes=num_nodes,
        x=graph.ndata.get(feature),
        y=y,
        **_masks({mask: graph.ndata.get(mask) for mask in MASKS}),
        num_classes=classes_of(y),
        name=name,
        edge={key: tensor for key, tensor in graph.edata.items() if key != "_ID"},
    )


def from_scipy(
    matrix: Any, x: Any = None, y: Any = None, *, name: str = "scipy", weight: str | None = "edge_weight"
) -> GraphData:
    """Takes a sparse matrix [N, N], rows = sources, columns = destinations, edges in the order of `A.tocoo()`.

    Args:
        x: [N, F], dense or scipy sparse.
        y: [N].
        weight: name under which the stored values become an edge tensor; None drops them.
    """
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise GraphError(f"expected a square sparse matrix [N, N], got shape {tuple(matrix.shape)}")
    coo = matrix.tocoo()
    if x is not None and not isinstance(x, Tensor):
        x = torch.as_tensor(np.asarray(x.toarray() if hasattr(x, "toarray") else x))
    labels = _labels(y)
    return GraphData(
        edge_index=torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64)),
        num_nodes=int(matrix.shape[0]),
        x=x,
        y=labels,
        num_classes=classes_of(labels),
        name=name,
        edge={} if weight is None else {weight: torch.as_tensor(coo.data)},
    )


def from_ogb(name_or_dataset: Any, root: str | os.PathLike[str] = "dataset", *, undirected: bool = False) -> GraphData:
    """Takes a node-property data set of the Open Graph Benchmark, such as "ogbn-arxiv" or "ogbn-products".

    Args:
        name_or_dataset: a name (needs `pip install ogb`, which downloads it to `root` once), or an object like
            ogb.nodeproppred.NodePropPredDataset: [0] gives a dict (edge_index, node_feat, num_nodes, edge_feat) and
            labels, get_idx_split() gives index arrays.
        root: folder of the data sets.
        undirected: add the reverse of every edge and drop repeated ones, as is usual for the directed ogbn-arxiv. Edge
            features are then refused.

    Raises:
        GraphError: a heterogeneous data set (ogbn-mag), or edge features with undirected=True.
        ImportError: ogb is not installed.
    """
    dataset = _open_ogb(name_or_dataset, os.fspath(root)) if isinstance(name_or_dataset, str) else name_or_dataset
    name = str(getattr(dataset, "name", "ogb"))
    graph, labels = dataset[0]
    if "edge_index" not in graph:
        raise GraphError(f"{name}: expected one node type and one relation, got keys {', '.join(map(str, graph))}")
    num_nodes = int(graph["num_nodes"])
    edge_index = _edges(graph["edge_index"], num_nodes)
    edge = {} if graph.get("edge_feat") is None else {"edge_attr": torch.as_tensor(graph["edge_feat"])}
    if undirected:
        if edge:
            raise GraphError(f"{name}: undirected=True cannot merge edge features; call with undirected=False")
        edge_index = _undirected(edge_index, num_nodes)
    x = graph.get("node_feat")
    y = _labels(labels)
    split = {key: torch.as_tensor(np.asarray(index)) for key, index in dataset.get_idx_split().items()}
    binary = str(getattr(dataset, "task_type", "")) == "binary classification"
    return GraphData(
        edge_index=edge_index,
        num_nodes=num_nodes,
        x=None if x is None else torch.as_tensor(np.asarray(x)),
        y=y,
        **_masks({mask: _mask_of(split[key], num_nodes) for mask, key in zip(MASKS, ("train", "valid", "test"))}),
        num_classes=2 if binary else int(getattr(dataset, "num_classes", 0) or classes_of(y)),
        name=name,
        edge=edge,
    )


def _folders() -> list[Path]:
    named = os.environ.get("SARC_DATA")
    return [*([Path(named)] if named else []), Path("data"), Path("..", "shared", "data")]


def _edges(edge_index: Any, num_nodes: int) -> Tensor:
    edges = torch.as_tensor(edge_index).as_subclass(Tensor).to(torch.int64)  # type: ignore[arg-type]
    if edges.ndim == 2 and edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= num_nodes):
        raise GraphError(
            f"edge_index: expected node ids from 0 to {num_nodes - 1}, got {int(edges.min())} to {int(edges.max())}"
        )
    return edges


def _labels(y: Any) -> Tensor | None:
    """int64 [N] where that is what `y` means: [N, 1] loses its axis, NaN becomes -1; [N, T] and real targets stay."""
    if y is None:
        return None
    labels = torch.as_tensor(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.is_floating_point() and labels.ndim == 1:
        classes = labels.nan_to_num(nan=-1.0)
        return classes.to(torch.int64) if torch.equal(classes, classes.round()) else labels
    return labels if labels.is_floating_point() else labels.to(torch.int64)


def _masks(masks: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are there, as bool [N]; PyG keeps several splits as columns [N, S]: the first is taken."""
    there = {name: mask for name, mask in masks.items() if isinstance(mask, Tensor)}
    return {name: (mask[:, 0] if mask.ndim == 2 else mask).bool() for name, mask in there.items()}


def _mask_of(index: Tensor, num_nodes: int) -> Tensor:
    mask = torch.zeros(num_nodes, dtype=torch.bool)
    mask[index] = True
    return mask


def _undirected(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Every edge in both directions, once; by destination, then source."""
    key = edge_index[1] * num_nodes + edge_index[0]
    key = torch.cat([key, edge_index[0] * num_nodes + edge_index[1]]).unique()
    return torch.stack([key % num_nodes, key // num_nodes])


def _open_ogb(name: str, root: str) -> Any:
    try:
        from ogb.nodeproppred import NodePropPredDataset
    except ImportError as error:
        raise ImportError(f"{name!r} needs the package ogb ({error}); pip install ogb") from error
    with _ogb_cache_readable():
        return NodePropPredDataset(name=name, root=root)


@contextlib.contextmanager
def _ogb_cache_readable() -> Iterator[None]:
    """Lets ogb 1.3.6 read the cache that it wrote itself.

    Symptom: with torch 2.6 and later the second use of a data set fails with "Weights only load failed ... Unsupported
    operand 149" (snap-stanford/ogb#507), because ogb calls torch.load without weights_only on a pickle of its own. The
    variable is PyTorch's own switch for such callers. Test: test_ogb_reads_its_cache.
    """
    switch = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*{switch}")
            yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
