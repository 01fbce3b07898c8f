"""Products of an odd width in a compiled module: what they are, and what the plan says they need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sarc

N = 8000


class Both(nn.Module):
    """A product, and one that is added to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(16, width, bias=False), nn.Linear(16, width, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        total = torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])
        return self.own(x.sin()) + self.other(total)


@pytest.mark.parametrize("width", [47, 48])
def test_values_and_scratch(width: int) -> None:
    torch.manual_seed(0)
    model, x, edge_index = Both(width), torch.randn(N, 16), torch.randint(N, (2, 100))
    compiled = sarc.compile(model, 1, backend="reference")
    with sarc.profile() as measured:
        out = compiled(x, edge_index)
        out.square().sum().backward()
    torch.testing.assert_close(out, model(x, edge_index), rtol=1e-5, atol=1e-5)
    timeline = compiled.plan().memory[0].timeline
    runs = {run.stage: run for run in measured.runs}
    forward = runs["forward"]
    assert forward.memory is not None
    predicted = [size for stage, _, size in timeline if stage == "forward"]
    assert [size - forward.memory.loaded for size in forward.memory.live] == predicted
    products = [i for i, name in enumerate(forward.names) if name.startswith(("launch %mm", "launch %addmm"))]
    needs = [sum(v.nbytes for v in forward.memory.alive_at(i) if v.category == "workspace") for i in products]
    assert len(products) == 2 and [need > 0 for need in needs] == [width == 47] * 2
