"""Products that are made of data alone are added, and written over their rows, like those of a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sarc


class Fixed(nn.Module):
    """Random features that are not learned, before and behind a sum over neighbours, then a layer that is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).double() / 4
        self.lin = nn.Linear(16, 16).double()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        h = torch.zeros_like(x).index_add(0, dst, x[src]).tanh()
        h = h @ self.first @ self.second + x @ self.second
        return self.lin(torch.zeros_like(h).index_add(0, dst, h[src]))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_products_of_data_alone(parts: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 16, generator=generator, dtype=torch.float64)
    edges = torch.randint(60, (2, 300), generator=generator)
    model = Fixed()
    compiled = sarc.compile(model, parts, backend=backend)
    for _ in range(2):
        model.zero_grad()
        torch.testing.assert_close(compiled(x, edges), model(x, edges), rtol=1e-10, atol=1e-10)
        compiled(x, edges).sum().backward()
    assert model.lin.weight.grad is not None
    text = compiled.program("partitioned data")
    assert "sarc.mm_(" in text and "aten.addmm_(" in text
