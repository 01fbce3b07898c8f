"""Losses and metrics over the rows of the whole graph: the same number on every rank.

Every rank differentiates the same global loss: its gradient with respect to a rank's own rows is what that rank gets.
In one process these are the ordinary functions.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sarc.errors import GraphError


class _GlobalSum(torch.autograd.Function):
    """Sum over ranks; every rank's gradient is that of the one global result."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def _total(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _GlobalSum.apply(value)
    return value


def mean(per_row: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of a value per row over all rows of all ranks, or over those where `mask` holds.

    Args:
        per_row: float [N_p] or [N_p, ...] (features are averaged as well).
        mask: bool [N_p].

    Returns:
        float scalar; NaN when no rank has a selected row.
    """
    if mask is not None:
        _check_mask(per_row, mask)
        per_row = per_row[mask]
    share = per_row.sum()
    count = _total(torch.tensor(float(per_row.numel()), dtype=share.dtype, device=share.device))
    return _total(share) / count


def cross_entropy(out: Tensor, target: Tensor, mask: Tensor | None = None, **options) -> Tensor:
    """Mean cross entropy over all selected rows of all ranks.

    Args:
        out: float [N_p, C] logits.
        target: int64 [N_p] classes (-100 is ignored), or float [N_p, C] probabilities.
        mask: bool [N_p], rows that count.
        options: `label_smoothing`, `ignore_index` of torch's cross_entropy.
    """
    _check_rows(out, target)
    if mask is not None:
        _check_mask(out, mask)
        out, target = out[mask], target[mask]
    if not target.is_floating_point():
        keep = target != options.get("ignore_index", -100)
        out, target = out[keep], target[keep]
    return mean(F.cross_entropy(out, target, reduction="none", **options))


def binary_cross_entropy(out: Tensor, target: Tensor, mask: Tensor | None = None, **options) -> Tensor:
    """Mean binary cross entropy of logits `out` float [N_p, ...] and targets of the same shape."""
    _check_rows(out, target)
    return mean(F.binary_cross_entropy_with_logits(out, target.to(out.dtype), reduction="none", **options), mask)


def mse_loss(out: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of `out` and `target`, float [N_p, ...] each."""
    _check_rows(out, target)
    return mean((out - target).square(), mask)


def accuracy(out: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of the selected rows whose largest logit is the target's: `out` float [N_p, C], `target` int64 [N_p]."""
    _check_rows(out, target)
    return mean((out.detach().argmax(dim=-1) == target).to(torch.float64), mask)


def _check_mask(rows: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.shape != rows.shape[:1]:
        raise GraphError(
            f"mask: expected bool [{rows.shape[0]}], one entry a row, got {str(mask.dtype)[6:]} {list(mask.shape)}"
        )


def _check_rows(out: Tensor, target: Tensor) -> None:
    if out.shape[:1] != target.shape[:1]:
        raise GraphError(
            f"expected one target a row of the output: out has shape {list(out.shape)}, target {list(target.shape)}; under "
            f"torchrun both hold this rank's rows (shard.y)"
        )
