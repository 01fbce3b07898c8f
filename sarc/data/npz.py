"""Read a graph from an npz file: edge_index, features (dense or CSR), labels, splits and a JSON description."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sarc.data.graph_data import MASKS, GraphData, classes_of
from sarc.errors import GraphError

EDGE_TENSORS = ("edge_type", "edge_weight", "edge_attr")


def read_npz(
    path: str | os.PathLike[str], *, split: int = 0, normalize_rows: bool = False, dense: bool = True
) -> GraphData:
    """Reads one graph; nothing is unpickled.

    Keys: `edge_index` int [2, E]; `num_nodes`; `x` float [N, F], or CSR as `x_data, x_indices, x_indptr, x_shape`;
    `y` int [N]; `train_mask, val_mask, test_mask` bool [N] or [S, N]; `edge_type, edge_weight, edge_attr` of E rows;
    `meta` JSON text. All but the first may be missing.

    Args:
        split: which of S splits.
        normalize_rows: divide each row of x by its sum of absolute values (rows of zeros stay), as is usual for bags of
            words.
        dense: make CSR features dense (N * F * 4 bytes); otherwise x is a sparse CSR tensor.

    Raises:
        GraphError: the file is missing, damaged, or not of this format.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"{path}: expected an npz file, got no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise GraphError(f"{path}: expected an npz file without pickled objects, got {error}") from None
    if "edge_index" not in arrays:
        raise GraphError(f"{path}: expected a key edge_index, got {', '.join(sorted(arrays)) or 'no keys'}")
    try:
        meta = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
        x = _features(arrays, normalize_rows, dense)
    except (ValueError, KeyError) as error:
        raise GraphError(
            f"{path}: expected CSR features and a JSON description that can be read, got {error}"
        ) from None
    y = torch.from_numpy(arrays["y"].astype(np.int64)) if "y" in arrays else None
    edge_index = torch.from_numpy(arrays["edge_index"].astype(np.int64))
    return GraphData(
        edge_index=edge_index,
        num_nodes=_num_nodes(path, arrays),
        x=x,
        y=y,
        **{name: _mask(path, name, arrays[name], split) for name in MASKS if name in arrays},
        num_classes=int(meta.get("classes", classes_of(y))),
        name=str(meta.get("name", path.stem)),
        edge={name: torch.from_numpy(arrays[name]) for name in EDGE_TENSORS if name in arrays},
        meta=meta,
    )


def normalized_rows(x: scipy.sparse.csr_array | np.ndarray) -> Any:
    """`x` with each row divided by its sum of absolute values; rows of zeros stay."""
    sums = np.asarray(abs(x).sum(axis=1)).reshape(-1)
    scale = np.divide(1.0, sums, out=np.zeros(sums.shape, dtype=x.dtype), where=sums != 0)
    return (
        scipy.sparse.csr_array(scipy.sparse.diags_array(scale) @ x) if scipy.sparse.issparse(x) else x * scale[:, None]
    )


def _features(arrays: dict[str, np.ndarray], normalize_rows: bool, dense: bool) -> Tensor | None:
    if "x" in arrays:
        x = arrays["x"]
        return torch.from_numpy(normalized_rows(x) if normalize_rows else x)
    if "x_data" not in arrays:
        return None
    shape = tuple(int(n) for n in arrays["x_shape"])
    csr = scipy.sparse.csr_array((arrays["x_data"], arrays["x_indices"], arrays["x_indptr"]), shape=shape)
    if normalize_rows:
        csr = normalized_rows(csr)
    if dense:
        return torch.from_numpy(csr.toarray())
    csr.sum_duplicates()  # also sorts the columns of each row, as torch requires
    starts, columns = (torch.from_numpy(a.astype(np.int64)) for a in (csr.indptr, csr.indices))
    return torch.sparse_csr_tensor(starts, columns, torch.from_numpy(csr.data), shape, check_invariants=True)


def _num_nodes(path: Path, arrays: dict[str, np.ndarray]) -> int:
    if "num_nodes" in arrays:
        return int(arrays["num_nodes"])
    for name in ("x", "y"):
        if name in arrays:
            return arrays[name].shape[0]
    if "x_shape" in arrays:
        return int(arrays["x_shape"][0])
    raise GraphError(f"{path}: expected num_nodes, x or y to tell the number of nodes, got {', '.join(sorted(arrays))}")


def _mask(path: Path, name: str, mask: np.ndarray, split: int) -> Tensor:
    splits = mask[None] if mask.ndim == 1 else mask
    if not 0 <= split < len(splits):
        raise GraphError(f"{path}: {name}: expected a split from 0 to {len(splits) - 1}, got split={split}")
    return torch.from_numpy(np.ascontiguousarray(splits[split], dtype=bool))
