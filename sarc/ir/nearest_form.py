"""The nearest supported form of each operator that mixes rows: what messages tell the user to write instead."""

from __future__ import annotations

from typing import Any

import torch

_ORDER = (
    "an order of all rows needs them in one place: use x.amax(0), x.amin(0) or x.mean(0), or sort before the model and "
    "pass the result or its index as an input"
)
_RUNNING = (
    "a running total needs the rows in order: use x.sum(0) over all rows, a fold along edges "
    "(out.index_add(0, dst, x[src])), or compute it before the model"
)
SELECT_BY_MASK = (
    "select rows by a mask: x[torch.arange(x.size(0)) < 10], x[torch.arange(x.size(0)) == 5], or a mask that is an "
    "input; write them by torch.where(mask[:, None], new, x)"
)
_REORDER = "name the row that each row takes: x[index], with an index made from torch.arange(x.size(0)) or an input"
_LARGEST = (
    "x.amax(0) gives the value; its position is "
    "torch.where(x == x.amax(0), torch.arange(x.size(0))[:, None], x.size(0)).amin(0)"
)
_PAIRS = "compare pairs of nodes along edges: (x[src] - x[dst]).norm(dim=-1)"

_FORMS = {
    "_softmax": "over all rows write e = (x - x.amax(0, keepdim=True)).exp(); e / e.sum(0, keepdim=True)",
    "_log_softmax": "over all rows write y = x - x.amax(0, keepdim=True); y - y.exp().sum(0, keepdim=True).log()",
    "logsumexp": "over all rows write m = x.amax(0); (x - m).exp().sum(0).log() + m",
    **dict.fromkeys(("sort", "topk", "kthvalue", "median", "nanmedian", "mode", "unique_dim", "_unique2"), _ORDER),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"), _RUNNING),
    **dict.fromkeys(("slice", "select", "select_scatter", "slice_scatter", "narrow"), SELECT_BY_MASK),
    **dict.fromkeys(("split", "split_with_sizes", "unbind", "unsafe_split", "unsafe_split_with_sizes"), SELECT_BY_MASK),
    **dict.fromkeys(("flip", "roll"), _REORDER),
    **dict.fromkeys(("argmax", "argmin", "max", "min"), _LARGEST),
    **dict.fromkeys(("_euclidean_dist", "_cdist_forward", "_pdist_forward"), _PAIRS),
    "prod": "of positive values write x.log().sum(0).exp()",
}


def nearest_form(target: Any, otherwise: str) -> str:
    """What to write instead of `target` on rows of different owners; `otherwise` where there is nothing special."""
    if not isinstance(target, torch._ops.OpOverload):
        return otherwise
    return _FORMS.get(target.overloadpacket.__name__, otherwise)
