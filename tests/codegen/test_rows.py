"""Rows of every length, and values at the edge of their range, in kernels that read back their own folds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sarc
from sarc.codegen import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")
NODES = 60


class Softmax(nn.Module):
    """A softmax of given logits over the in-edges of a node, one a head, and what it weighs."""

    def forward(self, x: Tensor, logits: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        spread = dst.view(-1, 1).expand_as(logits)
        start = logits.new_full((x.size(0), logits.size(1)), float("-inf"))
        top = start.scatter_reduce(0, spread, logits.detach(), "amax", include_self=False)
        share = (logits - top[dst]).exp()
        total = torch.zeros_like(top).scatter_add(0, spread, share)
        weight = share / total[dst]
        return x.new_zeros(x.shape).index_add(0, dst, weight.unsqueeze(-1) * x[src])


class Mean(nn.Module):
    def forward(self, x: Tensor, logits: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        count = x.new_zeros(x.size(0)).index_add(0, dst, torch.ones_like(dst, dtype=x.dtype))
        total = torch.zeros_like(x).index_add(0, dst, x[src] * logits[:, 1:2].unsqueeze(-1))
        return (total / count.clamp(min=1).view(-1, 1, 1)).relu()


class Largest(nn.Module):
    """Computed messages: the derivative looks for where the maximum is."""

    def forward(self, x: Tensor, logits: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        message = x[src] * logits[:, :1].unsqueeze(-1) + x[dst]
        spread = dst.view(-1, 1, 1).expand_as(message)
        return torch.zeros_like(x).scatter_reduce(0, spread, message, "amax", include_self=False)


def graph(hub: int) -> Tensor:
    """Rows of none to about eight edges, and one row of `hub` edges."""
    random = torch.Generator().manual_seed(0)
    edges = torch.randint(0, NODES - 3, (2, 200), generator=random)
    into_hub = torch.stack([torch.randint(0, NODES, (hub,), generator=random), torch.full((hub,), 5)])
    return torch.cat([edges, into_hub], dim=1)[:, torch.randperm(200 + hub, generator=random)]


def compare(model: nn.Module, hub: int, width: int, heads: int = 2, parts: int = 1) -> None:
    """Values and gradients of the compiled model against plain PyTorch's."""
    edge_index = graph(hub)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(NODES, heads, width, dtype=torch.float64, generator=random, requires_grad=True)
    logits = torch.randn(edge_index.shape[1], heads, dtype=torch.float64, generator=random, requires_grad=True)
    compiled = sarc.compile(model, sarc.partition(edge_index, num_nodes=NODES, num_parts=parts, method="random"))
    expected, found = model(x, logits, edge_index), compiled(x, logits, edge_index)
    assert compiled.plan().fallbacks == 0
    cotangent = torch.randn(expected.shape, dtype=torch.float64, generator=random)
    pairs = [(found, expected)]
    pairs += zip(*(torch.autograd.grad(o, (x, logits), cotangent) for o in (found, expected)), strict=True)
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.detach().abs().max()))


@pytest.mark.parametrize("model", [Softmax(), Mean(), Largest()], ids=["softmax", "mean", "largest"])
@pytest.mark.parametrize("hub", [64, 65, 5_000, 100_000])
def test_long_rows(model: nn.Module, hub: int) -> None:
    """Of one block, of several, of several chunks, and so long that rows without folds of their own are split."""
    compare(model, hub, width=4)


@pytest.mark.parametrize("model", [Softmax(), Largest()], ids=["softmax", "largest"])
@pytest.mark.parametrize("width", [1, 3, 7, 17, 64, 100, 257])
def test_widths(model: nn.Module, width: int) -> None:
    compare(model, 70, width)


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_heads(heads: int) -> None:
    """Narrow logits, and logits too many to be narrow."""
    compare(Softmax(), 70, width=5, heads=heads, parts=2)
    compare(Softmax(), 70, width=5, heads=heads)


@pytest.mark.parametrize("hub", [20, 300])
@pytest.mark.parametrize("bad", [float("-inf"), float("inf"), float("nan"), 1e30, -1e30])
def test_logits_out_of_range_behave_as_in_torch(hub: int, bad: float) -> None:
    """One such logit in the long row, and a short row of nothing else."""
    edge_index = graph(hub)
    x = torch.randn(NODES, 2, 3, dtype=torch.float64)
    logits = torch.randn(edge_index.shape[1], 2, dtype=torch.float64)
    logits[(edge_index[1] == 5).nonzero()[0]] = bad
    logits[edge_index[1] == 7] = bad
    parts = sarc.partition(edge_index, num_nodes=NODES, num_parts=1)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        expected = Softmax()(x.to(dtype), logits.to(dtype), edge_index)
        found = sarc.compile(Softmax(), parts)(x.to(dtype), logits.to(dtype), edge_index)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)


class Count(nn.Module):
    """How many edges have a positive logit, a head: truth values summed to an integer."""

    def forward(self, x: Tensor, logits: Tensor, edge_index: Tensor) -> Tensor:
        src = edge_index[0]
        positive = (x[src, :, 0] * logits > 0).sum(0)
        return x * (positive.to(x.dtype) + logits.mean(0)).unsqueeze(-1)


@pytest.mark.parametrize("heads", [1, 3, 4, 12])
def test_truth_values_are_counted(heads: int) -> None:
    compare(Count(), 300, width=3, heads=heads)


class Rearranged(nn.Module):
    """Every node with another one: nodes are the rows of both sides of the derivative's sum."""

    def forward(self, x: Tensor, perm: Tensor) -> Tensor:
        return x * x[perm]


@pytest.mark.parametrize("width", [3, 20])
def test_nodes_that_are_rearranged(width: int) -> None:
    perm = torch.randperm(NODES, generator=torch.Generator().manual_seed(0))
    x = torch.randn(NODES, width, dtype=torch.float64, requires_grad=True)
    compiled = sarc.compile(
        Rearranged(), sarc.partition(torch.stack([perm, perm]), num_nodes=NODES, num_parts=1), backend="cpp",
        spaces={"x": "N", "perm": "N"},
    )  # fmt: skip
    found, expected = (torch.autograd.grad(m(x, perm).square().sum(), x)[0] for m in (compiled, Rearranged()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


class Activated(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = x.exp().relu()
        return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])


def is_gcc() -> bool:
    found = build.compiler()
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout if found else ""
    return "Free Software Foundation" in told


@pytest.mark.skipif(not is_gcc(), reason="the weakness that this guards against, and the report of vectors, are GCC's")
def test_the_choices_of_a_derivative_are_made_in_vectors(tmp_path: Path) -> None:
    """A choice between two elements in memory would be one of addresses, number by number: no vectors."""
    compiled = sarc.compile(Activated(), 1)
    compiled(torch.randn(NODES, 128, requires_grad=True), graph(5)).sum().backward()
    found = [unit for stage, _, units in compiled.kernel_sources() if stage == "backward" for unit in units]
    (text,) = [unit for unit in found if "sarc_where(" in unit[unit.rindex('extern "C"') :]]
    unit = tmp_path / "unit.cpp"
    unit.write_text(text)
    flags = [*build.FLAGS, "-fopt-info-vec-optimized", str(unit), "-o", str(tmp_path / "unit.so")]
    report = subprocess.run([str(build.compiler()), *flags], capture_output=True, text=True, check=True).stderr
    lines = text.splitlines()
    chosen = [i for i, line in enumerate(lines, 1) if "sarc_where(" in line and "template" not in line]
    assert chosen
    for line in chosen:
        # The loop is reported at its head or at its body.
        places = re.findall(r"unit\.cpp:(\d+):\d+: optimized: loop vectorized", report)
        assert {str(line), str(line - 1)} & set(places), report
