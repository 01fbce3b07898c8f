"""Products of rows by blocks: they are the products, at any width, and need the memory that is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sarc.ir.products import add_product, multiply_blocks, multiply_into, padded_width, product_block, scratch_bytes

WIDTHS = (1, 40, 44, 47, 48, 188)
ROWS = (0, 1, 1300, 7000)
AT_ONCE = 1300  # rows of no more than one block, at all of these widths


class Made(TorchDispatchMode):
    """Bytes of the memory that operators allocate, and the rows of their products."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0
        self.products: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("new_empty", "constant_pad_nd"):
            self.nbytes += found.nbytes
        if name in ("mm", "addmm_"):
            self.products.append(found.shape[0])
        return found


def operands(rows: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, 16, dtype=dtype), torch.randn(width, 16, dtype=dtype).t()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_equals_the_library(rows: int, width: int, dtype: torch.dtype) -> None:
    x, matrix = operands(rows, width, dtype)
    expected, start = x.double() @ matrix.double(), torch.randn(rows, width, dtype=dtype)
    rtol = 1e-5 if dtype == torch.float32 else 1e-13
    for multiply in (multiply_into, multiply_blocks):
        out = torch.empty(rows, width, dtype=dtype)
        made = multiply(x, matrix, out=out)
        assert made.data_ptr() == out.data_ptr()
        torch.testing.assert_close(made.double(), expected, rtol=rtol, atol=rtol)
    table = start.clone()
    assert add_product(table, x, matrix).data_ptr() == table.data_ptr()
    torch.testing.assert_close(table.double(), start.double() + expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_takes_the_memory_that_is_said(rows: int, width: int) -> None:
    x, matrix = operands(rows, width)
    out = torch.empty(rows, width)
    with Made() as made:
        multiply_into(x, matrix, out=out)
    assert made.nbytes == scratch_bytes(x, matrix, "cpu", over=False)
    with Made() as made:
        add_product(out, x, matrix)
    assert made.nbytes == scratch_bytes(x, matrix, "cpu", over=False)
    with Made() as made:
        multiply_blocks(x, matrix, out)
    assert made.nbytes == scratch_bytes(x, matrix, "cpu", over=True)


def test_only_odd_widths_of_many_float32_rows_go_by_blocks() -> None:
    for rows, width, dtype in [(7000, 48, torch.float32), (AT_ONCE, 188, torch.float32), (7000, 47, torch.float64)]:
        x, matrix = operands(rows, width, dtype)
        with Made() as made:
            multiply_into(x, matrix, out=torch.empty(rows, width, dtype=dtype))
            add_product(torch.zeros(rows, width, dtype=dtype), x, matrix)
        assert made.products == [rows, rows] and not made.nbytes
    x, matrix = operands(100, 7001)  # a table's rows as columns: nothing is copied
    with Made() as made:
        multiply_into(x, matrix, out=torch.empty(100, 7001))
    assert made.products == [100] and not made.nbytes and not scratch_bytes(x, matrix, "cpu", over=False)
    x, matrix = operands(7000, 188)
    block = product_block(192, 4, "cpu")
    with Made() as made:
        multiply_into(x, matrix, out=torch.empty(7000, 188))
    assert sum(made.products) == 7000 and max(made.products) == block < 7000


def test_a_gpu_computes_no_other_width() -> None:
    assert padded_width(188, torch.float32, "cpu") == 192
    assert padded_width(188, torch.float32, "cuda") == padded_width(188, torch.float64, "cpu") == 188


def test_what_is_not_finite_stays_in_its_column() -> None:
    x, matrix = operands(7000, 47)
    x[5, 3] = torch.inf
    matrix[:, 2] = 0
    made = multiply_into(x, matrix, out=torch.empty(7000, 47))
    torch.testing.assert_close(made, x @ matrix, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert made[5].isnan().sum() == 1 and made[:5].isfinite().all()
