"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011, section 4.3), on torch integer tensors.

A draw is a pure function of its key, so a mask never needs to be stored, is the same for every number of parts, and is
recomputed exactly in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_SLICE = 32_768


Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four 32-bit words for each counter.

    Args:
        counter: four int64 tensors of one broadcastable shape, each holding values in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        four int64 tensors with values in [0, 2^32).
    """
    shape = torch.broadcast_shapes(*(c.shape for c in counter))
    out = [torch.empty(shape, dtype=torch.int64, device=counter[0].device) for _ in range(4)]
    flat = [o.view(-1) for o in out]
    for word, value in zip(out, counter, strict=True):
        word.copy_(value.expand(shape))
    # The ten rounds read and write every word many times: in slices that stay in cache, and in place.
    for start in range(0, flat[0].numel(), _SLICE):
        _rounds([f[start : start + _SLICE] for f in flat], key)
    return out[0], out[1], out[2], out[3]


def _rounds(words: list[Tensor], key: tuple[int, int]) -> None:
    """The ten rounds on four words in place."""
    c0, c1, c2, c3 = words
    k0, k1 = key
    p0, p1 = torch.empty_like(c0), torch.empty_like(c0)
    for _ in range(_ROUNDS):
        # The int64 product wraps modulo 2^64; an arithmetic shift and a mask still give the unsigned high word.
        torch.mul(c0, _MULTIPLIER_0, out=p0)
        torch.mul(c2, _MULTIPLIER_1, out=p1)
        torch.bitwise_right_shift(p1, 32, out=c0).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        torch.bitwise_and(p1, _MASK, out=c1)
        torch.bitwise_right_shift(p0, 32, out=c2).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        torch.bitwise_and(p0, _MASK, out=c3)
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK


def uniform(rng: Tensor, shape: tuple[int, ...], row_axis: int | None, row_keys: Tensor, op: int) -> Tensor:
    """Uniform float32 draws in [0, 1) with 24 random bits each.

    Args:
        rng: int64 [2], seed and step.
        shape: of the result.
        row_axis: the axis whose entries are rows; None for a value that every part holds whole.
        row_keys: int64 [shape[row_axis]], key of each row, on the device of the result (else ignored when `row_axis` is
            None); `rng` may be elsewhere.
        op: number of the random operator in the program, below 2^16.

    Returns:
        float32 of `shape`; entry depends on (seed, step, op, its row's key, its place among the row's features) only.
    """
    seed, step = (int(v) for v in rng.tolist())
    rows = 1 if row_axis is None else shape[row_axis]
    features = 1
    for axis, length in enumerate(shape):
        if axis != row_axis:
            features *= length
    keys = torch.zeros(1, dtype=torch.int64, device=row_keys.device) if row_axis is None else row_keys
    blocks = torch.arange((features + 3) // 4, device=keys.device)
    keys = keys.view(-1, 1)
    high_and_op = ((keys >> 32) & 0xFFFF) << 16 | (op & 0xFFFF)
    counter = (blocks.view(1, -1), keys & _MASK, high_and_op, torch.full_like(keys, step & _MASK))
    words = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))
    draws = torch.stack(words, dim=-1).reshape(rows, 4 * blocks.numel())[:, :features]
    draws = (draws >> 8).to(torch.float32).mul_(1.0 / (1 << 24))
    if row_axis is None:
        return draws.reshape(shape)
    rest = [length for axis, length in enumerate(shape) if axis != row_axis]
    return draws.reshape([rows, *rest]).movedim(0, row_axis).contiguous()
