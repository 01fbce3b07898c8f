"""Losses and metrics over the rows of the whole graph: the same number on every rank.

Every rank differentiates the same global loss: its gradient with respect to a rank's own rows is what that rank gets.
In one process these are the ordinary functions. Under torchrun each is one all-reduce, and an error on one rank is
raised on all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sarc.errors import GraphError, SarcError
from sarc.runtime.agreement import error_of
from sarc.runtime.collectives import carrier
from sarc.runtime.together import all_reduce, gather_objects


def mean(per_row: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of a value per row over all rows of all ranks, or over those where `mask` holds.

    Args:
        per_row: float [N_p] or [N_p, ...] (features are averaged as well).
        mask: bool [N_p].

    Returns:
        float scalar; NaN when no rank has a selected row.

    Raises:
        GraphError: the mask does not fit, on this or another rank.
    """

    def select() -> Tensor:
        if not per_row.is_floating_point():
            raise GraphError(f"expected a float value per row, got {str(per_row.dtype)[6:]}")
        return _select(per_row, mask)

    return _mean(select, per_row)


def cross_entropy(
    out: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Mean cross entropy over all selected rows of all ranks.

    Args:
        out: float [N_p, C] logits.
        target: int64 [N_p] classes (-100 is ignored), or float [N_p, C] probabilities.
        mask: bool [N_p], rows that count.
        label_smoothing, ignore_index: as in torch's cross_entropy.

    Raises:
        GraphError: target or mask do not fit the rows, or a class is out of range, on this or another rank.
    """

    def per_row() -> Tensor:
        _check_rows(out, target)
        logits, wanted = _select(out, mask), _select(target, mask)
        if not wanted.is_floating_point():
            keep = wanted != ignore_index
            logits, wanted = logits[keep], wanted[keep]
            _check_classes(wanted, logits.shape[1])
        return F.cross_entropy(logits, wanted, reduction="none", label_smoothing=label_smoothing)

    return _mean(per_row, out)


def binary_cross_entropy(
    out: Tensor, target: Tensor, mask: Tensor | None = None, *, pos_weight: Tensor | None = None
) -> Tensor:
    """Mean binary cross entropy of logits `out` float [N_p, ...] and targets of the same shape.

    `pos_weight` is torch's, float [...]. Raises like `cross_entropy`.
    """

    def per_row() -> Tensor:
        _check_rows(out, target, same_shape=True)
        each = F.binary_cross_entropy_with_logits(out, target.to(out.dtype), reduction="none", pos_weight=pos_weight)
        return _select(each, mask)

    return _mean(per_row, out)


def mse_loss(out: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of `out` and `target`, float [N_p, ...] each. Raises like `cross_entropy`."""

    def per_row() -> Tensor:
        _check_rows(out, target, same_shape=True)
        return _select((out - target).square(), mask)

    return _mean(per_row, out)


def accuracy(out: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of the selected rows whose largest logit is the target's: `out` float [N_p, C], `target` int64 [N_p].

    float64 scalar. Raises like `cross_entropy`.
    """

    def per_row() -> Tensor:
        _check_rows(out, target)
        return _select((out.detach().argmax(dim=-1) == target).to(torch.float64), mask)

    return _mean(per_row, out)


class _GlobalMean(torch.autograd.Function):
    """Sum over ranks divided by the count over ranks; every rank's gradient is that of the one global result."""

    @staticmethod
    def forward(ctx, share: Tensor, numbers: Tensor) -> Tensor:
        ctx.count, ctx.dtype = float(numbers[1]), share.dtype
        return (numbers[0] / numbers[1]).to(share.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.count, None


def _mean(per_row: Callable[[], Tensor], like: Tensor) -> Tensor:
    """Mean over all ranks of the entries that `per_row` makes.

    Args:
        like: gives dtype and device to a rank that fails.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return per_row().mean()
    problem: Exception | None = None
    try:
        entries = per_row()
        share, count = entries.sum(), entries.numel()
    except (SarcError, RuntimeError, IndexError, TypeError, ValueError) as error:
        problem, share, count = error, like.new_zeros((), dtype=torch.float64), 0
    # One message carries the sum, the count and whether any rank has failed. float64 adds in the ranks' order without
    # a rounding that float32 would show.
    numbers = torch.stack([share.detach().double(), *share.new_tensor([count, problem is not None]).double()])
    carried = numbers.to(carrier())
    all_reduce(carried, "sum", "all-reduce of a loss")
    numbers = carried.to(numbers.device)
    if numbers[2] > 0:
        _raise_together(problem)
    return _GlobalMean.apply(share, numbers)


def _raise_together(problem: Exception | None) -> None:
    everyone = gather_objects(None if problem is None else (type(problem).__name__, str(problem)))
    if problem is not None:
        raise problem
    rank, (name, text) = next((r, p) for r, p in enumerate(everyone) if p is not None)
    raise error_of(rank, name, text)


def _select(rows: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return rows
    if mask.dtype != torch.bool or mask.shape != rows.shape[:1]:
        raise GraphError(
            f"mask: expected bool [{rows.shape[0]}], one entry a row, got {str(mask.dtype)[6:]} {list(mask.shape)}"
        )
    return rows[mask]


def _check_rows(out: Tensor, target: Tensor, same_shape: bool = False) -> None:
    if out.shape[:1] != target.shape[:1] or (same_shape and out.shape != target.shape):
        wanted = "targets of the output's shape" if same_shape else "one target a row of the output"
        raise GraphError(
            f"expected {wanted}: out has shape {list(out.shape)}, target {list(target.shape)}; under torchrun both "
            f"hold this rank's rows (shard.y)"
        )


def _check_classes(target: Tensor, classes: int) -> None:
    if target.numel() and (int(target.min()) < 0 or int(target.max()) >= classes):
        worst = int(target.min()) if int(target.min()) < 0 else int(target.max())
        raise GraphError(
            f"target: expected classes from 0 to {classes - 1}, as many as the output's columns, got {worst}"
        )
