"""Rows of a traversal by their lengths: which of them a thread block visits, which a warp, which a few lanes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sarc.codegen.traversal import Traversal

HUB_EDGES = 512
SHORT_EDGES = 8


@dataclass(frozen=True)
class RowsByLength:
    """The rows of a traversal, longest first.

    Rows of one power of two of edges keep their order: those of one warp end together, and lie close in memory.

    Attributes:
        rows: int32 [rows], positions among the traversal's rows.
        hubs: number of rows of more than HUB_EDGES edges; they come first.
        long: number of rows of more than SHORT_EDGES edges that are no hubs; they come next.
        short: number of the others.
    """

    rows: Tensor
    hubs: int
    long: int
    short: int


def rows_by_length(order: Traversal) -> RowsByLength:
    """The rows of `order` by length, made once a traversal."""
    if "rows by length" not in order.made:
        order.made["rows by length"] = _sort(order.starts)
    found = order.made["rows by length"]
    assert isinstance(found, RowsByLength)
    return found


def _sort(starts: Tensor) -> RowsByLength:
    lengths = starts[1:] - starts[:-1]
    bounds = torch.tensor([SHORT_EDGES, 16, 32, 64, 128, 256, HUB_EDGES], device=starts.device)
    bucket = torch.searchsorted(bounds, lengths)  # 0: at most SHORT_EDGES
    rows = torch.argsort(bucket, descending=True, stable=True).int()
    hubs, short = (int(v) for v in torch.stack([(bucket == len(bounds)).sum(), (bucket == 0).sum()]).tolist())
    return RowsByLength(rows, hubs, lengths.numel() - hubs - short, short)
