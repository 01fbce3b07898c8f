"""Norms, means and losses as plain ATen formulas with explicit counts.

PyTorch's own decompositions of these hide the number of rows inside an operator (a mean, a batch norm) or produce
operators without a derivative; here every count is a visible number, so that a partitioned program can make it global.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from sarc.errors import UnsupportedModelError

aten = torch.ops.aten


def forward_decompositions() -> dict:
    """Decompositions applied while a model's forward is captured."""
    return {**_stock(_STOCK_FORWARD), **_counted(), **_norms(), aten.segment_reduce.default: _segment_reduce}


def joint_decompositions() -> dict:
    """Decompositions applied while the joint forward and backward program is traced."""
    return {**_stock(_STOCK_FORWARD + _STOCK_BACKWARD), **_counted(), **_norms()}


_STOCK_FORWARD = [
    "nll_loss_forward", "nll_loss2d_forward", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "soft_margin_loss", "_prelu_kernel", "rrelu_with_noise",
    "im2col", "addcmul", "addcdiv", "lerp", "addmv", "dot", "mv", "linalg_cross", "hardswish", "hardsigmoid",
    "softshrink", "celu", "selu_", "elu", "mish", "hardtanh", "softplus", "log_sigmoid_forward", "special_log_ndtr",
    "xlogy", "frac",
    "isposinf", "isneginf", "nan_to_num", "logaddexp", "trace", "diag_embed", "logit", "glu",
    "renorm", "std_mean", "masked_fill", "new_full", "new_zeros", "new_ones", "zeros_like", "ones_like", "full_like",
]  # fmt: skip
_STOCK_BACKWARD = [
    "threshold_backward", "leaky_relu_backward", "elu_backward", "gelu_backward", "silu_backward", "mish_backward",
    "softplus_backward", "hardtanh_backward", "hardswish_backward", "hardsigmoid_backward", "sigmoid_backward",
    "tanh_backward", "_log_softmax_backward_data", "_softmax_backward_data", "nll_loss_backward", "mse_loss_backward",
    "smooth_l1_loss_backward", "huber_loss_backward", "binary_cross_entropy_backward", "select_backward",
    "embedding_dense_backward", "_prelu_kernel_backward", "log_sigmoid_backward", "logit_backward", "glu_backward",
    "native_dropout_backward", "unfold_backward", "rrelu_with_noise_backward",
]  # fmt: skip


def _stock(names: list[str]) -> dict:
    packets = [getattr(aten, name) for name in names if hasattr(aten, name)]
    table = dict(get_decompositions(packets))
    core = core_aten_decompositions()
    for packet in packets:
        for overload in packet.overloads():
            target = getattr(packet, overload)
            if target not in table and target in core:
                table[target] = core[target]
    return table


def _axes(x: Tensor, dim) -> list[int]:
    if dim is None or dim == []:
        return list(range(x.dim()))
    return [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)]


def _count(x: Tensor, axes: list[int]):
    count = 1
    for axis in axes:
        count = count * x.shape[axis]
    return count


def _float(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype)


def _mean(x: Tensor, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    axes = _axes(x, dim)
    x = _float(x, dtype)
    return x.sum(axes, keepdim) / _count(x, axes) if axes else x / 1


def _mean_all(x: Tensor, *, dtype=None) -> Tensor:
    return _mean(x, None, dtype=dtype)


def _var(x: Tensor, dim=None, *, correction=None, keepdim: bool = False) -> Tensor:
    axes = _axes(x, dim)
    centred = x - _mean(x, axes, True)
    # torch.var is NaN for one sample: the division by zero below gives NaN as well.
    return (centred * centred).sum(axes, keepdim) / (_count(x, axes) - (1 if correction is None else correction))


def _std(x: Tensor, dim=None, *, correction=None, keepdim: bool = False) -> Tensor:
    return _var(x, dim, correction=correction, keepdim=keepdim).sqrt()


def _var_mean(x: Tensor, dim=None, *, correction=None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _var(x, dim, correction=correction, keepdim=keepdim), _mean(x, dim, keepdim)


def _std_mean(x: Tensor, dim=None, *, correction=None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _std(x, dim, correction=correction, keepdim=keepdim), _mean(x, dim, keepdim)


def _vector_norm(x: Tensor, ord=2, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    axes = _axes(x, dim)
    x = _float(x, dtype)
    if ord == 2:
        return _root_of_squares(x, axes, keepdim)
    if ord == math.inf:
        return x.abs().amax(axes, keepdim)
    if ord == -math.inf:
        return x.abs().amin(axes, keepdim)
    if ord == 1:
        return x.abs().sum(axes, keepdim)
    if ord == 0:
        return (x != 0).to(x.dtype).sum(axes, keepdim)
    return x.abs().pow(ord).sum(axes, keepdim).pow(1 / ord)


def _root_of_squares(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    """sqrt(sum x^2) with the derivative 0 at 0, as torch's norm has."""
    squares = (x * x).sum(axes, keepdim)
    zero = squares == 0
    return torch.where(zero, squares, torch.where(zero, torch.ones_like(squares), squares).sqrt())


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta=1, alpha=1) -> Tensor:
    product = torch.mm(a, b)
    product = product if alpha == 1 else product * alpha
    return product + (bias if beta == 1 else bias * beta)


def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta=1, alpha=1) -> Tensor:
    product = torch.bmm(a, b)
    product = product if alpha == 1 else product * alpha
    return product + (bias if beta == 1 else bias * beta)


def _counted() -> dict:
    return {
        aten.mean.default: _mean_all,
        aten.mean.dim: _mean,
        aten.var.correction: _var,
        aten.std.correction: _std,
        aten.var_mean.correction: _var_mean,
        aten.std_mean.correction: _std_mean,
        aten.linalg_vector_norm.default: _vector_norm,
        aten.addmm.default: _addmm,
        aten.baddbmm.default: _baddbmm,
    }


def _layer_norm(x: Tensor, shape, weight, bias, eps: float):
    axes = list(range(x.dim() - len(shape), x.dim()))
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    mean = _mean(wide, axes, True)
    centred = wide - mean
    scale = (_mean(centred * centred, axes, True) + eps).rsqrt()
    out = centred * scale
    out = out if weight is None else out * weight
    out = out if bias is None else out + bias
    return out.to(x.dtype), mean, scale


def _group_norm(x: Tensor, weight, bias, n, channels, spatial, group: int, eps: float):
    grouped = x.reshape(n, group, -1)
    mean = _mean(grouped, [2], True)
    centred = grouped - mean
    scale = (_mean(centred * centred, [2], True) + eps).rsqrt()
    out = (centred * scale).reshape(x.shape)
    shape = [1, channels] + [1] * (x.dim() - 2)
    out = out if weight is None else out * weight.view(shape)
    out = out if bias is None else out + bias.view(shape)
    return out, mean.reshape(n, group), scale.reshape(n, group)


def _batch_norm_functional(
    x: Tensor, weight, bias, running_mean, running_var, training: bool, momentum: float, eps: float
):
    """Batch norm over all axes but 1; also returns the new running statistics."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    if training:
        count = _count(wide, axes)
        mean = wide.sum(axes) / count
        centred = wide - mean.view(shape)
        var = (centred * centred).sum(axes) / count
        if running_mean is not None:
            unbiased = var.detach() * (count / (count - 1))
            running_mean = running_mean * (1 - momentum) + momentum * mean.detach()
            running_var = running_var * (1 - momentum) + momentum * unbiased
    else:
        mean, var = running_mean, running_var
        centred = wide - mean.view(shape)
    scale = (var + eps).rsqrt()
    out = centred * scale.view(shape)
    out = out if weight is None else out * weight.view(shape)
    out = out if bias is None else out + bias.view(shape)
    return out.to(x.dtype), mean, scale, running_mean, running_var


def _batch_norm_no_stats(x, weight, bias, training, momentum, eps):
    return _batch_norm_functional(x, weight, bias, None, None, True, momentum, eps)[:3]


def _batch_norm_no_training(x, weight, bias, running_mean, running_var, momentum, eps):
    return _batch_norm_functional(x, weight, bias, running_mean, running_var, False, momentum, eps)[:3]


def _batch_norm_plain(x, weight, bias, running_mean, running_var, training, momentum, eps):
    """Without running statistics to update: functionalisation has replaced every call that has some."""
    return _batch_norm_functional(x, weight, bias, running_mean, running_var, training, momentum, eps)[:3]


def _norms() -> dict:
    return {
        aten.native_layer_norm.default: _layer_norm,
        aten.native_group_norm.default: _group_norm,
        aten.native_batch_norm.default: _batch_norm_plain,
        aten._native_batch_norm_legit_functional.default: _batch_norm_functional,
        aten._native_batch_norm_legit.no_stats: _batch_norm_no_stats,
        aten._native_batch_norm_legit_no_training.default: _batch_norm_no_training,
    }


def _segment_reduce(
    data: Tensor, reduce: str, *, lengths=None, indices=None, offsets=None, axis: int = 0, unsafe=False, initial=None
) -> Tensor:
    """A fold by the column of each row's segment. An empty segment holds `initial`; without one, NaN for a mean."""
    del unsafe
    if lengths is None and offsets is not None:
        lengths = offsets[1:] - offsets[:-1]
    if lengths is None or lengths.dim() != 1 or axis != 0 or indices is not None or reduce not in _SEGMENT_FOLDS:
        raise UnsupportedModelError(
            f"segment_reduce({reduce!r}, axis={axis}): expected sum, mean, max or min along axis 0 with lengths= or "
            f"offsets= of one dimension; use scatter_reduce with the segment of each row for others"
        )
    column = torch.ops.sarc.segment_ids(lengths, data.shape[0])
    fold, neutral = _SEGMENT_FOLDS[reduce]
    start = data.new_full([lengths.shape[0], *data.shape[1:]], neutral if initial is None else initial)
    if fold != "sum":
        return start.index_reduce(0, column, data, fold)
    total = start.index_add(0, column, data)
    if reduce == "sum":
        return total
    count = lengths.to(data.dtype).view(-1, *[1] * (data.dim() - 1))
    return total / count if initial is None else torch.where(count > 0, total / count.clamp(min=1), total)


_SEGMENT_FOLDS = {"sum": ("sum", 0), "mean": ("sum", 0), "max": ("amax", -math.inf), "min": ("amin", math.inf)}
