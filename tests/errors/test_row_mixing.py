"""Operators that mix rows of different owners are refused with the user's line and the nearest supported form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sarc
from tests.errors.refusals import EDGES, PARTS, F, N, Switch, X, check_equal, check_refused

CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x @ x.T": lambda x, ei: x @ x.T,
    "einsum": lambda x, ei: torch.einsum("if,jf->ij", x, x),
    "attention": lambda x, ei: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    "differences": lambda x, ei: (x[:, None] - x[None]).abs().sum(1),
    "eye": lambda x, ei: torch.eye(x.size(0), dtype=x.dtype) @ x,
    "dense adjacency": lambda x, ei: x.new_zeros(x.size(0), x.size(0)).index_put((ei[1], ei[0]), x.new_ones(())) @ x,
    "cdist": lambda x, ei: torch.cdist(x, x),
    "sort": lambda x, ei: x.sort(0).values,
    "argsort": lambda x, ei: x[:, 0].argsort(),
    "topk": lambda x, ei: x.topk(3, dim=0).values,
    "kthvalue": lambda x, ei: x.kthvalue(3, 0).values,
    "median": lambda x, ei: x.median(0).values,
    "median of all": lambda x, ei: x.median(),
    "quantile": lambda x, ei: x.quantile(0.5, 0),
    "cumsum": lambda x, ei: x.cumsum(0),
    "cumprod": lambda x, ei: x.cumprod(0),
    "softmax": lambda x, ei: x.softmax(0),
    "log_softmax": lambda x, ei: x.log_softmax(0),
    "logsumexp": lambda x, ei: x.logsumexp(0),
    "prod": lambda x, ei: x.prod(0),
    "argmax": lambda x, ei: x.argmax(0),
    "unique": lambda x, ei: x.unique(dim=0),
    "flip": lambda x, ei: x.flip(0),
    "roll": lambda x, ei: x.roll(1, 0),
    "triu": lambda x, ei: x.triu(),
    "first rows": lambda x, ei: x[:10],
    "last rows": lambda x, ei: x[-10:],
    "one row": lambda x, ei: x[5],
    "every second row": lambda x, ei: x[::2],
    "neighbours in order": lambda x, ei: x[1:] - x[:-1],
    "two rows": lambda x, ei: x[torch.tensor([1, 2])],
    "chunk": lambda x, ei: x.chunk(2)[0],
    "split": lambda x, ei: x.split([10, N - 10])[0],
    "row written": lambda x, ei: x.index_fill(0, torch.tensor([0]), 0.0),
    "slice written": lambda x, ei: x.clone()[:3].zero_(),
    "flattened linear": lambda x, ei: x.view(-1) @ x.new_ones(N * F, 2),
    "view in two": lambda x, ei: x.view(2, -1, F).sum(0),
    "view in pairs": lambda x, ei: x.reshape(-1, 2 * F),
    "pooling in order": lambda x, ei: torch.nn.functional.avg_pool1d(x.t()[None], 3),
    "randperm": lambda x, ei: x[torch.randperm(x.size(0))],
    "rows by features": lambda x, ei: x[x[:, 0] > 0],
    "edges by features": lambda x, ei: x[torch.cdist(x, x).topk(3).indices[:, 0]],
    "index by features": lambda x, ei: x[(x[:, 0] * 3).long() % N],
    "scatter_reduce prod": lambda x, ei: x.scatter_reduce(0, ei[1][:, None].expand(-1, F), x[ei[0]], "prod"),
    "an index a feature": lambda x, ei: x.gather(0, x.long()),
    "rows of nodes and edges": lambda x, ei: x + x[ei[0]],
    "negative index": lambda x, ei: x[torch.arange(x.size(0)) - 1],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused_with_the_line_and_the_nearest_form(case: str) -> None:
    check_refused("row_mixing", case, CASES[case])


# The forms that messages recommend.
SUPPORTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": lambda x, ei: (x - x.amax(0, keepdim=True)).exp() / (x - x.amax(0, keepdim=True)).exp().sum(0),
    "log_softmax": lambda x, ei: x - x.amax(0) - (x - x.amax(0)).exp().sum(0, keepdim=True).log(),
    "logsumexp": lambda x, ei: (x - x.amax(0)).exp().sum(0).log() + x.amax(0),
    "prod": lambda x, ei: x.exp().log().sum(0).exp(),
    "position": lambda x, ei: torch.where(x == x.amax(0), torch.arange(x.size(0))[:, None], x.size(0)).amin(0) * x,
    "max over nodes": lambda x, ei: x.max(0).values,
    "first rows": lambda x, ei: x[torch.arange(x.size(0)) < 10],
    "one row": lambda x, ei: x[torch.arange(x.size(0)) == 5],
    "every second row": lambda x, ei: x[torch.arange(x.size(0)) % 2 == 0],
    "row written": lambda x, ei: torch.where((torch.arange(x.size(0)) == 0)[:, None], 0.0, x),
    "reversed": lambda x, ei: x[torch.arange(x.size(0) - 1, -1, -1)],
    "rolled": lambda x, ei: x[(torch.arange(x.size(0)) + x.size(0) - 1) % x.size(0)],
    "pairs along edges": lambda x, ei: (x[ei[0]] - x[ei[1]]).norm(dim=-1),
    "scores along edges": lambda x, ei: (x[ei[0]] * x[ei[1]]).sum(-1),
    "root of a size": lambda x, ei: x / x.size(0) ** 0.5,
    "size as a tensor": lambda x, ei: x / x.new_ones(x.size(0)).sum().log(),
    "view of features": lambda x, ei: x.view(x.size(0), 2, -1).sum(1),
}  # fmt: skip


@pytest.mark.parametrize("case", SUPPORTED)
def test_recommended_forms_work(case: str) -> None:
    model = Switch(SUPPORTED[case])
    check_equal(sarc.compile(model, PARTS), model, X, EDGES)
