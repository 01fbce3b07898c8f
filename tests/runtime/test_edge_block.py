"""Plain torch visits the edges of a block some at a time: memory stays bounded, results are the same."""

from __future__ import annotations

import copy
import weakref
from collections import Counter

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sarc
from sarc.ir.edge_program import edge_call
from sarc.runtime import edge_block
from tests.equivalence.compare import assert_same

N, E, F, H = 300, 20_000, 8, 16
BUDGET = 1 << 20


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operators made and that are still alive, by storage; and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self.largest = 0
        self._sizes: dict[int, int] = {}
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, Tensor) and (t.untyped_storage()._cdata not in given or self._is_ours(t)):
                self._hold(t)
        self.most = max(self.most, sum(self._sizes.values()))
        return made

    def _is_ours(self, t: Tensor) -> bool:
        return t.untyped_storage()._cdata in self._sizes

    def _hold(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        self._sizes[storage._cdata] = storage.nbytes()
        self._holders[storage._cdata] += 1
        self.largest = max(self.largest, storage.nbytes())
        weakref.finalize(t, self._release, storage._cdata)

    def _release(self, storage: int) -> None:
        self._holders[storage] -= 1
        if not self._holders[storage]:
            self._sizes.pop(storage, None)


class EdgeConv(nn.Module):
    """A two-layer network on [x_i, x_j - x_i] of every edge, with batch norm over the edges, averaged."""

    def __init__(self) -> None:
        super().__init__()
        mlp = nn.Sequential(nn.Linear(2 * F, 4 * H), nn.BatchNorm1d(4 * H), nn.ReLU(), nn.Linear(4 * H, H))
        self.conv = pyg.EdgeConv(mlp, aggr="mean")

    def forward(self, x: Tensor, edge_index: Tensor, attributes: Tensor) -> Tensor:
        return self.conv(x, edge_index)


class NNConv(nn.Module):
    """A weight matrix for every edge, made from its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.NNConv(F, H, nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, F * H)), aggr="mean")

    def forward(self, x: Tensor, edge_index: Tensor, attributes: Tensor) -> Tensor:
        return self.conv(x, edge_index, attributes)


class Dropped(nn.Module):
    """Dropout of wide messages: draws are keyed by edge, whatever sub-block it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(F, 4 * H)

    def forward(self, x: Tensor, edge_index: Tensor, attributes: Tensor) -> Tensor:
        src, dst = edge_index
        messages = nn.functional.dropout(self.wide(x[src] - x[dst]), 0.3, self.training).relu()
        return messages.new_zeros(x.size(0), 4 * H).index_add(0, dst, messages)


class Returned(nn.Module):
    """Edge rows as a result, through a per-edge layer: written sub-block by sub-block."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * F, H)

    def forward(self, x: Tensor, edge_index: Tensor, attributes: Tensor) -> Tensor:
        src, dst = edge_index
        return self.layer(torch.cat([x[src], x[dst]], -1)).tanh() * attributes[:, :1]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(N, F, dtype=torch.float64, generator=draw)
    edge_index = torch.randint(0, N, (2, E), generator=draw)
    return x, edge_index, torch.randn(E, 3, dtype=torch.float64, generator=draw)


def step(model: nn.Module) -> dict[str, Tensor | None]:
    """Outputs and all gradients of one call."""
    x, edge_index, attributes = inputs()
    x.requires_grad_()
    model.zero_grad()
    out = model(x, edge_index, attributes)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **grads, **{n: b.clone() for n, b in model.named_buffers()}}


def compiled_pair(make: type[nn.Module], num_parts: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = make().double()
    parts = sarc.partition(inputs()[1], num_nodes=N, num_parts=num_parts, method="random")
    return plain, sarc.compile(copy.deepcopy(plain), parts, seed=0)


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("make", [EdgeConv, NNConv])
def test_memory_is_bounded_by_the_sub_block(make: type[nn.Module], num_parts: int, monkeypatch) -> None:
    """Neither the forward nor the backward holds E rows of features; one value of them is beyond the bound."""
    monkeypatch.setattr(edge_block, "SUB_BLOCK_BYTES", BUDGET)
    plain, compiled = compiled_pair(make, num_parts)
    expected = step(plain)
    actual = step(compiled)
    assert_same(actual, expected)
    with LiveBytes() as seen:
        step(compiled)
    programs = compiled._called().binding.programs.values()
    widest = max(n.args[0].bytes_per_row for p in programs for n in p.graph.nodes if n.target is edge_call)
    edge_inputs = 2 * E * 8 + E * 3 * 8  # made by `inputs` inside, and cut for the parts
    node_values = 40 * N * H * 8
    bound = BUDGET + 2 * edge_inputs + node_values
    assert seen.largest <= max(BUDGET, E * 3 * 8)
    assert seen.most <= bound
    assert E * widest > 2 * bound  # in one go it would not pass


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("make", [EdgeConv, NNConv, Dropped, Returned])
def test_sub_blocks_give_what_one_block_gives(make: type[nn.Module], num_parts: int, monkeypatch) -> None:
    """And the same bits when repeated."""
    _, compiled = compiled_pair(make, num_parts)
    monkeypatch.setattr(edge_block, "SUB_BLOCK_BYTES", 1 << 40)
    whole = step(compiled)
    found = []
    for _ in range(2):
        _, compiled = compiled_pair(make, num_parts)
        monkeypatch.setattr(edge_block, "SUB_BLOCK_BYTES", BUDGET)
        found.append(step(compiled))
    assert_same(found[0], whole)
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


def test_few_edges_run_in_one_go(monkeypatch) -> None:
    _, compiled = compiled_pair(NNConv, 1)
    step(compiled)
    for program in compiled._called().binding.programs.values():
        for node in program.graph.nodes:
            if node.target is edge_call:
                assert edge_block.sub_block_edges(node.args[0]) * node.args[0].bytes_per_row <= 16 << 20
                monkeypatch.setattr(edge_block, "SUB_BLOCK_BYTES", 1)
                assert edge_block.sub_block_edges(node.args[0]) == edge_block.MIN_EDGES
                monkeypatch.undo()
