"""The graph dialect: the few operators sarc adds to ATen, as PyTorch custom operators.

They exist so that a captured program can be differentiated by PyTorch itself and come out in the same dialect: the
derivative of `gather` is `reduce`, that of `reduce` is `gather`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sarc.ir.philox import uniform as philox_uniform
from sarc.ir.products import multiply_blocks


def start_value(kind: str, dtype: torch.dtype) -> float | int:
    """The neutral element of a fold: what an empty row of a `reduce` holds.

    Args:
        kind: "sum", "amax" or "amin".
        dtype: of the values folded.
    """
    if kind == "sum":
        return 0
    if dtype.is_floating_point:
        return float("-inf") if kind == "amax" else float("inf")
    if dtype == torch.bool:
        return kind == "amin"
    info = torch.iinfo(dtype)
    return info.min if kind == "amax" else info.max


def fold_rows(into: Tensor, axis: int, index: Tensor, rows: Tensor, kind: str) -> None:
    """Fold `rows` into `into` in place: `into[index[k]] = combine(into[index[k]], rows[k])` along `axis`.

    Args:
        into: [.., T, ..], holds the neutral element or earlier folds.
        axis: the axis of T in `into` and of K in `rows`.
        index: int64 [K], positions in T, repeats allowed.
        rows: [.., K, ..].
        kind: "sum", "amax" or "amin".
    """
    if kind == "sum":
        into.index_add_(axis, index, rows)
        return
    shape = [1] * rows.dim()
    shape[axis] = index.numel()
    spread = index.view(shape).expand_as(rows)
    if rows.dtype == torch.bool:
        wide = into.to(torch.uint8)
        wide.scatter_reduce_(axis, spread, rows.to(torch.uint8), kind, include_self=True)
        into.copy_(wide)
        return
    into.scatter_reduce_(axis, spread, rows, kind, include_self=True)


@torch.library.custom_op("sarc::gather", mutates_args=())
def gather(x: Tensor, column: Tensor, axis: int) -> Tensor:
    """Rows of `x` [.., T, ..] named by `column` int64 [S], along `axis`: [.., S, ..]."""
    return x.index_select(axis, column)


@gather.register_fake
def _(x, column, axis):
    shape = list(x.shape)
    shape[axis] = column.shape[0]
    return x.new_empty(shape)


@torch.library.custom_op("sarc::reduce", mutates_args=())
def reduce(rows: Tensor, column: Tensor, axis: int, size: int, kind: str) -> Tensor:
    """Fold of `rows` [.., S, ..] to the rows named by `column` int64 [S]: [.., size, ..].

    An empty row holds the fold's neutral element: 0, -inf or inf.
    """
    shape = list(rows.shape)
    shape[axis] = size
    out = rows.new_full(shape, start_value(kind, rows.dtype))
    fold_rows(out, axis, column, rows, kind)
    return out


@reduce.register_fake
def _(rows, column, axis, size, kind):
    shape = list(rows.shape)
    shape[axis] = size
    return rows.new_empty(shape)


@torch.library.custom_op("sarc::own_rows", mutates_args=())
def own_rows(x: Tensor, axis: int, size: int) -> Tensor:
    """The first `size` rows along `axis`: those that a part owns, of the rows it reaches through a column."""
    return x.narrow(axis, 0, size).clone()


@own_rows.register_fake
def _(x, axis, size):
    shape = list(x.shape)
    shape[axis] = size
    return x.new_empty(shape)


@torch.library.custom_op("sarc::widen_rows", mutates_args=())
def widen_rows(x: Tensor, axis: int, size: int) -> Tensor:
    """`x` with rows of zeros behind, `size` along `axis`: the derivative of `own_rows`."""
    shape = list(x.shape)
    shape[axis] = size
    return widen_rows_into(x, axis, size, out=x.new_empty(shape))


def widen_rows_into(x: Tensor, axis: int, size: int, *, out: Tensor) -> Tensor:
    """`widen_rows`, written into `out`."""
    rows = x.shape[axis]
    out.narrow(axis, 0, rows).copy_(x)
    out.narrow(axis, rows, size - rows).zero_()
    return out


@widen_rows.register_fake
def _(x, axis, size):
    shape = list(x.shape)
    shape[axis] = size
    return x.new_empty(shape)


@torch.library.custom_op("sarc::uniform", mutates_args=())
def uniform(rng: Tensor, size: list[int], op: int) -> Tensor:
    """Uniform draws in [0, 1), float32 of shape `size`, keyed by (seed, step, op, row, feature).

    `rng` is int64 [2]: seed and step. The plain-torch meaning takes axis 0 as the rows and positions as their keys; a
    partitioned program passes each row's own key, so the draws do not depend on the number of parts.
    """
    keys = torch.arange(size[0] if size else 1, device=rng.device)
    return philox_uniform(rng, tuple(size), 0 if size else None, keys, op)


@uniform.register_fake
def _(rng, size, op):
    return rng.new_empty(size, dtype=torch.float32)


@torch.library.custom_op("sarc::row_ids", mutates_args=())
def row_ids(size: int) -> Tensor:
    """int64 [size]: the id of each row of a space: 0 .. size - 1 on the whole graph, its own rows' ids on a part."""
    return torch.arange(size)


@row_ids.register_fake
def _(size):
    return torch.empty(size, dtype=torch.int64, device="meta")


@torch.library.custom_op("sarc::segment_ids", mutates_args=())
def segment_ids(lengths: Tensor, size: int) -> Tensor:
    """int64 [size]: the segment of each row, when segments of `lengths` int64 [T] rows follow one another."""
    return torch.searchsorted(lengths.cumsum(0), torch.arange(size, device=lengths.device), right=True)


@segment_ids.register_fake
def _(lengths, size):
    return lengths.new_empty(size, dtype=torch.int64)


@torch.library.custom_op("sarc::select_rows", mutates_args=())
def select_rows(mask: Tensor) -> Tensor:
    """int64 [S]: ids of the rows where `mask` bool [T] holds, ascending; S is the filter space of `mask`."""
    return mask.nonzero().view(-1)


@select_rows.register_fake
def _(mask):
    return mask.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _mm_(x: Tensor, matrix: Tensor) -> Tensor:
    """`x` [S, F] @ `matrix` [F, G], G <= F, written over `x` from its first entry on, row behind row.

    Narrower than an `x` whose rows do not lie one behind another, it has memory of its own.
    """
    # A block of the result ends where its rows of x end, or before: it covers none that are still to be read.
    return multiply_blocks(x, matrix, _place_of_product(x, matrix))


def _place_of_product(x: Tensor, matrix: Tensor) -> Tensor:
    rows, width = x.shape[0], matrix.shape[1]
    if width == x.shape[1]:
        return x
    return x.view(-1)[: rows * width].view(rows, width) if x.is_contiguous() else x.new_empty((rows, width))


torch.library.define("sarc::mm_", "(Tensor(a!) self, Tensor mat2) -> Tensor(a!)")
torch.library.impl("sarc::mm_", ("CPU", "CUDA"), _mm_)
torch.library.impl("sarc::mm_", "Meta", _place_of_product)


def _gather_setup(ctx, inputs, output):
    x, column, axis = inputs
    ctx.save_for_backward(column)
    ctx.axis, ctx.size = axis, x.shape[axis]


def _gather_backward(ctx, grad):
    (column,) = ctx.saved_tensors
    return reduce(grad, column, ctx.axis, ctx.size, "sum"), None, None


def _reduce_setup(ctx, inputs, output):
    rows, column, axis, _, kind = inputs
    ctx.axis, ctx.kind = axis, kind
    ctx.save_for_backward(*((column,) if kind == "sum" else (column, rows, output)))


def _reduce_backward(ctx, grad):
    column, *rest = ctx.saved_tensors
    if ctx.kind == "sum":
        return gather(grad, column, ctx.axis), None, None, None, None
    # The gradient of a maximum is split evenly between the rows that attain it, as PyTorch's scatter_reduce does.
    rows, out = rest
    attains = (rows == gather(out, column, ctx.axis)).to(grad.dtype)
    ties = reduce(attains, column, ctx.axis, out.shape[ctx.axis], "sum")
    return attains * gather(grad / ties.clamp(min=1), column, ctx.axis), None, None, None, None


def _own_rows_setup(ctx, inputs, output):
    x, ctx.axis, _ = inputs
    ctx.size = x.shape[ctx.axis]


def _own_rows_backward(ctx, grad):
    return widen_rows(grad, ctx.axis, ctx.size), None, None


own_rows.register_autograd(_own_rows_backward, setup_context=_own_rows_setup)
gather.register_autograd(_gather_backward, setup_context=_gather_setup)
reduce.register_autograd(_reduce_backward, setup_context=_reduce_setup)

GATHER = torch.ops.sarc.gather.default
REDUCE = torch.ops.sarc.reduce.default
OWN_ROWS = torch.ops.sarc.own_rows.default
WIDEN_ROWS = torch.ops.sarc.widen_rows.default
UNIFORM = torch.ops.sarc.uniform.default
ROW_IDS = torch.ops.sarc.row_ids.default
SEGMENT_IDS = torch.ops.sarc.segment_ids.default
MM_OVER = torch.ops.sarc.mm_.default
SELECT_ROWS = torch.ops.sarc.select_rows.default
