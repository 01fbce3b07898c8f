"""Products of rows by a matrix, a block of rows at a time: written over the rows, or at a width that CPUs prefer.

A matrix library writes rows that start inside a vector register one number at a time: on CPUs a float32 product of 188
columns takes 1.7 times as long as one of 192. Blocks of rows of the next full width, made in memory that stays in
a cache and copied to their place, take less (`python -m benchmarks.products`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

# Small enough to stay in a cache until they are copied, large enough for one call of the library.
_BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 25}
# float32 numbers of a vector register, and the most columns whose products take no less time when they fill one more.
_LANES = 8
_FEW = 5 * _LANES
# Rows a column from which a copy of the matrix, padded, is little beside the rows.
_PER_COLUMN = 8


def padded_width(width: int, dtype: torch.dtype, device: str) -> int:
    """Columns to compute where `width` of them are asked for: what takes the least time."""
    if device != "cpu" or dtype != torch.float32 or width <= _FEW:
        return width
    return -(-width // _LANES) * _LANES


def product_block(width: int, itemsize: int, device: str) -> int:
    """Rows of a result that are computed at once, in memory of their own."""
    return max(1, _BLOCK_BYTES.get(device, 1 << 20) // max(1, width * itemsize))


def multiply_into(x: Tensor, matrix: Tensor, *, out: Tensor) -> Tensor:
    """`x` [S, F] @ `matrix` [F, G] in `out` [S, G]."""
    if _is_one_call(x, matrix, x.device.type):
        return torch.mm(x, matrix, out=out)
    return multiply_blocks(x, matrix, out)


def add_product(table: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """`x` [S, F] @ `matrix` [F, G] added to `table` [S, G] in its place."""
    if _is_one_call(x, matrix, x.device.type):
        return table.addmm_(x, matrix)
    return _by_blocks(x, matrix, table, Tensor.add_)


def multiply_blocks(x: Tensor, matrix: Tensor, out: Tensor) -> Tensor:
    """`x` [S, F] @ `matrix` [F, G] in `out` [S, G].

    `out` may lie over `x`, where a block of rows covers none that are read for a later one.
    """
    return _by_blocks(x, matrix, out, Tensor.copy_)


def scratch_bytes(x: Tensor, matrix: Tensor, device: str, over: bool) -> int:
    """Bytes that a product needs beside its operands and its result.

    Args:
        device: that it runs on; the tensors may be stand-ins without memory.
        over: whether it is written over its rows, and so by blocks at any width.
    """
    if not over and _is_one_call(x, matrix, device):
        return 0
    rows, padded = _block(x, matrix, device)
    copied = 0 if padded == matrix.shape[1] else matrix.shape[0]
    return (min(rows, x.shape[0]) + copied) * padded * x.element_size()


def _is_one_call(x: Tensor, matrix: Tensor, device: str) -> bool:
    width, (rows, padded) = matrix.shape[1], _block(x, matrix, device)
    return padded == width or x.shape[0] <= max(rows, _PER_COLUMN * width)


def _block(x: Tensor, matrix: Tensor, device: str) -> tuple[int, int]:
    """Rows and columns that are computed at once."""
    padded = padded_width(matrix.shape[1], x.dtype, device)
    return product_block(padded, x.element_size(), device), padded


def _by_blocks(x: Tensor, matrix: Tensor, out: Tensor, write: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    width, (rows, padded) = matrix.shape[1], _block(x, matrix, x.device.type)
    room = x.new_empty((min(rows, x.shape[0]), padded))
    filled = matrix if padded == width else pad(matrix, (0, padded - width))
    for block, place in zip(x.split(rows), out.split(rows), strict=True):
        write(place, torch.mm(block, filled, out=room[: block.shape[0]])[:, :width])
    return out
