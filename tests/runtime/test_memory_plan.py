"""Predicted memory is measured memory: of every model of the lists, on one part and on four, by instruction."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sympy
import torch

import sarc
from sarc.runtime.memory_plan import GROUPS
from tests.equivalence.case import Case, standard_cut
from tests.equivalence.compare import observe, pair
from tests.equivalence.model_lists import case_named
from tests.equivalence.test_models import ALL

REPOSITORY = Path(__file__).resolve().parents[2]


def measured_and_predicted(case: Case, num_parts: int) -> list[tuple[str, int, int]]:
    """Part and stage, measured and predicted peak of tracked tensors beyond what is loaded."""
    _, compiled, values = pair(case, standard_cut(num_parts))
    compiled.train()
    observe(case, compiled, values)
    with sarc.profile() as measured:
        observe(case, compiled, values)
    found = []
    plans = {m.rank: m for m in compiled.plan().memory}
    for run in measured.runs:
        results = plans[run.rank].results if run.stage == "backward" else 0
        predicted = max(size for stage, _, size in plans[run.rank].timeline if stage == run.stage) - results
        found.append((f"part {run.rank} {run.stage}", run.memory.peak - run.memory.loaded, predicted))
    return found


# In the short run, what differs in memory: folds, rows of several axes, draws, views of parts, row sets, edge tensors.
SHORT = (
    "GATConv", "SAGEConv max", "nodes on the second axis", "GRU cell", "GATConv dropout", "edges by a mask",
    "EdgeConv with batch norm on edges", "segment_reduce sizes max",
)  # fmt: skip


@pytest.mark.parametrize("num_parts", [1, 4])
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if c.name in SHORT else [pytest.mark.slow]) for c in ALL]
)
def test_prediction_is_within_a_tenth(case: Case, num_parts: int) -> None:
    for where, measured, predicted in measured_and_predicted(case, num_parts):
        assert abs(predicted - measured) <= 0.1 * measured, (where, measured, predicted)


def test_formulas_give_the_numbers_on_another_graph() -> None:
    """A formula made on one graph, with the sizes of another, is that graph's prediction."""
    case = case_named("GATConv")
    made = []
    for nodes, edges in ((400, 3000), (700, 2000)):
        torch.manual_seed(0)
        edge_index = torch.randint(nodes, (2, edges))
        compiled = sarc.compile(
            case.make(), sarc.partition(edge_index, num_nodes=nodes, num_parts=1), spaces={"x": "N"}
        )
        compiled(torch.randn(nodes, 6), edge_index).sum().backward()
        sizes = compiled._called().bound.order.states[0].local_sizes()
        made.append((compiled.plan().memory[0], sizes))
    (first, _), (second, sizes) = made
    numbers = {sympy.Symbol(f"{name}_p"): size for name, size in sizes.items()}
    for group in GROUPS:
        assert abs(first.formulas[group].subs(numbers) - second.by_group[group]) <= 0.02 * second.peak, group


def test_a_plan_says_where_the_peak_is() -> None:
    _, compiled, values = pair(case_named("GATConv"), standard_cut(3))
    observe(case_named("GATConv"), compiled, values)
    for memory in compiled.plan().memory:
        assert memory.peak == max(size for _, _, size in memory.timeline) == memory.timeline[memory.peak_place][2]
        assert sum(memory.by_group.values()) == memory.peak + memory.loaded
        assert memory.by_group["halo"] == 0 or re.search("C_|R_", str(memory.formulas["halo"]))
    assert "beyond" in str(compiled.plan())


CHILD = """
import ctypes, sys, torch, sarc
from pathlib import Path
from benchmarks.peak import high_water, resident, settle
from torch import nn
from torch_geometric.nn import GATConv, SAGEConv

torch.manual_seed(0)
n, e = 60_000, 400_000
edges = torch.randint(n, (2, e))
kind = sys.argv[1]
make = (lambda i, o: GATConv(i, o // 4, heads=4)) if kind == "GAT" else (lambda i, o: SAGEConv(i, o, normalize=True))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = make(48, 80), nn.BatchNorm1d(80), make(80, 64)
    def forward(self, x, edge_index):
        x = nn.functional.dropout(self.norm(self.one(x, edge_index)).relu(), 0.5, self.training)
        return self.two(x, edge_index)

compiled = sarc.compile(Net(), 1)
x, cotangent = torch.randn(n, 48), torch.randn(n, 64)
for _ in range(2):
    out = compiled(x, edges); out.backward(cotangent); del out
compiled.zero_grad(); compiled.release_memory(); settle()
before = resident("Rss")
Path("/proc/self/clear_refs").write_text("5")
out = compiled(x, edges); (out * cotangent).sum().backward()  # the gradient of the result is made in the step
print(high_water() - before, compiled.plan().memory[0].peak)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="resident bytes are read from Linux's /proc")
@pytest.mark.parametrize("kind", ["GAT", "SAGE"])
def test_resident_memory_is_what_was_predicted(kind: str) -> None:
    """Models and a graph found nowhere else, in a process that returns freed memory at once."""
    tight = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind], capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, **tight, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured, predicted = map(int, done.stdout.split())
    assert measured > 50_000_000
    assert abs(predicted - measured) <= 0.1 * measured, (measured, predicted)
