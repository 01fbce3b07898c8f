"""A budget is kept, in bytes that a run really holds; what does not fit is refused with the least that would."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv

import sarc
from sarc.errors import BudgetError, OptionError
from sarc.frontends.check_options import budget_bytes

N, E = 600, 3000
torch.manual_seed(0)
EDGES = torch.randint(N, (2, E))
X = torch.randn(N, 16)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = GATConv(16, 8, heads=4), GATConv(32, 8, heads=4)
        self.last = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.last(self.two(self.one(x, edge_index).relu(), edge_index).relu())


def trained(parts: int, budget: object) -> tuple[sarc.CompiledModule, list[torch.Tensor], int]:
    """The compiled module, its gradients, and the most bytes that a part held in a step, loaded ones included."""
    torch.manual_seed(0)
    cut = sarc.partition(EDGES, num_nodes=N, num_parts=parts, method="random")
    compiled = sarc.compile(Net(), cut, memory_budget=budget)
    with sarc.profile() as measured:
        compiled(X, EDGES).square().sum().backward()
    held = max(run.memory.peak for run in measured.runs)
    return compiled, [p.grad for p in compiled.parameters()], held


@pytest.mark.parametrize("parts", [1, 3])
def test_budgets_are_kept_and_change_no_gradient(parts: int) -> None:
    free, expected, most = trained(parts, float("inf"))
    with pytest.raises(BudgetError) as refused:
        trained(parts, 1000)
    least = int(re.search(r"at least (\d+) B", str(refused.value))[1])
    assert "largest are %" in str(refused.value) and least < most
    for budget in (least, (least + most) // 2):
        compiled, gradients, held = trained(parts, budget)
        assert held <= budget
        assert max(m.total for m in compiled.plan().memory) <= budget
        if budget == least:  # a larger one may be met by rows in chunks alone
            assert compiled.plan().saved_bytes < free.plan().saved_bytes
            assert "again in backward: " in compiled.program("backward")
        for got, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, wanted)
    assert "again in backward" not in free.program("backward")


def test_a_forward_pass_has_a_budget_too() -> None:
    compiled = sarc.compile(Net(), sarc.partition(EDGES, num_nodes=N, num_parts=1), memory_budget=1000)
    with torch.no_grad(), pytest.raises(BudgetError, match="a step needs at least"):
        compiled(X, EDGES)


def test_budgets_in_words() -> None:
    assert budget_bytes("8GiB") == 8 << 30 and budget_bytes(" 1.5 MB") == 1_500_000
    assert budget_bytes(12.0) == 12 and budget_bytes(None) is None
    for wrong in ("much", "8", -1, 0, True, "8 GiBs", [1]):
        with pytest.raises(OptionError, match="memory_budget: expected bytes that a part may take"):
            budget_bytes(wrong)
