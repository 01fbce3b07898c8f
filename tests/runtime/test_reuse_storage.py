"""Attention whose folds take the place of tables: values, gradients and predicted memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

import sarc
from sarc.codegen.build import compiler

# A row of more edges than a kernel visits in one piece.
HUB_EDGES = 20_000

pytestmark = pytest.mark.skipif(compiler() is None, reason="tables are written over by C++ kernels alone")


class Averaged(nn.Module):
    """Two layers of attention; the last one averages its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = GATConv(12, 5, heads=3, add_self_loops=False)
        self.last = GATConv(15, 7, heads=3, concat=False, add_self_loops=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.last(self.first(x, edges).relu(), edges)


def gradients(model: nn.Module, call: nn.Module, x: Tensor, edges: Tensor) -> list[Tensor]:
    model.zero_grad()
    call(x, edges).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("hub", [0, HUB_EDGES], ids=["short rows", "a row in pieces"])
@pytest.mark.parametrize("parts", [1, 3])
def test_attention_equals_plain(hub: int, parts: int) -> None:
    torch.manual_seed(0)
    edges = torch.randint(60, (2, 400))
    edges = torch.cat([edges, torch.stack([torch.full((hub,), 7), torch.randint(60, (hub,))])], 1)
    x = torch.randn(64, 12, dtype=torch.float64)  # four rows without edges
    model = Averaged().double()
    expected = gradients(model, model, x, edges)
    compiled = sarc.compile(model, parts)
    for _ in range(2):
        found = gradients(model, compiled, x, edges)
        for one, other in zip(found, expected, strict=True):
            scale = max(1.0, float(other.abs().max()))
            assert float((one - other).abs().max()) <= 1e-10 * scale
    if parts == 1:
        assert " over $" in str(compiled.program("partitioned backward"))


def test_prediction_counts_one_table() -> None:
    torch.manual_seed(0)
    edges = torch.randint(3000, (2, 30_000))
    x = torch.randn(3000, 12)
    model = Averaged()
    compiled = sarc.compile(model, 1)
    compiled(x, edges).square().sum().backward()  # of a sum alone, the gradient is one number spread over all rows
    with sarc.profile() as measured:
        compiled(x, edges).square().sum().backward()
    predicted = compiled.plan().memory[0].timeline
    for run in measured.runs:
        if run.stage == "backward":
            assert run.memory is not None
            results = compiled.plan().memory[0].results
            most = max(size for stage, _, size in predicted if stage == "backward") - results
            assert abs(most - (run.memory.peak - run.memory.loaded)) <= 0.02 * most


class Scores(nn.Module):
    """A score an edge of the rows at both of its ends: one table, read through both columns."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(12, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.lin(x)
        return (h[edges[0]] * h[edges[1]]).sum(-1)


@pytest.mark.parametrize("parts", [1, 3])
def test_rows_read_at_both_ends_are_not_written_over(parts: int) -> None:
    torch.manual_seed(0)
    edges, x = torch.randint(60, (2, 400)), torch.randn(64, 12, dtype=torch.float64)
    model = Scores().double()
    compiled = sarc.compile(model, parts)
    expected = gradients(model, model, x, edges)
    for one, other in zip(gradients(model, compiled, x, edges), expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-10 * max(1.0, float(other.abs().max()))
