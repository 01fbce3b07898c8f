"""Maps of columns, and traversals of edges by them, are made once a graph: for all programs, variants and epochs."""

from __future__ import annotations

import gc

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import sarc
from sarc.codegen import build
from sarc.codegen.kernels import CppKernel
from sarc.errors import PartitionError
from sarc.runtime import binding

N, F = 20, 4
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")


class Net(nn.Module):
    """Self loops (a derived row set) in one layer, dropout (so that modes differ), sums to both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pyg.GCNConv(F, F, cached=False)
        self.second = pyg.SAGEConv(F, F)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = nn.functional.dropout(self.first(x, edge_index).relu(), 0.5, self.training)
        return self.second(h, edge_index)


def graph(seed: int = 0) -> Tensor:
    return torch.randint(0, N, (2, 60), generator=torch.Generator().manual_seed(seed))


def compiled_net(num_parts: int, backend: str = "reference") -> tuple[nn.Module, sarc.CompiledModule]:
    torch.manual_seed(0)
    model = Net().double()
    return model, sarc.compile(model, torch.arange(N) % num_parts, backend=backend)


def step(compiled: nn.Module, edge_index: Tensor, train: bool, gradients: bool = True) -> Tensor:
    x = torch.linspace(-1, 1, N * F, dtype=torch.float64).view(N, F).requires_grad_(gradients)
    compiled.train(train)
    with torch.set_grad_enabled(gradients):
        out = compiled(x, edge_index)
    if gradients:
        out.sum().backward()
    return out.detach()


def maps(compiled: sarc.CompiledModule) -> list[dict]:
    return [dict(state.columns) for state in compiled._called().bound.order.states]


@pytest.mark.parametrize("num_parts", [1, 3])
def test_modes_share_the_maps_of_columns(num_parts: int) -> None:
    _, compiled = compiled_net(num_parts)
    edge_index = graph()
    step(compiled, edge_index, train=True)
    train = maps(compiled)
    for gradients in (True, False):
        step(compiled, edge_index, train=False, gradients=gradients)
        for ours, theirs in zip(maps(compiled), train, strict=True):
            assert ours and set(ours.values()) <= set(theirs.values())


@needs_compiler
@pytest.mark.parametrize("num_parts", [1, 3])
def test_traversals_are_made_once_a_graph(num_parts: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SARC_CACHE_DIR", str(tmp_path))
    made, original = [], CppKernel.traverse

    def noted(self, *args):
        if args[0] is not None:  # by a column; rows in their own order are no work
            made.append(args[0])
        return original(self, *args)

    monkeypatch.setattr(CppKernel, "traverse", noted)
    model, compiled = compiled_net(num_parts, "auto")
    edge_index = graph()
    step(compiled, edge_index, train=True)
    assert made
    first = len(made)
    step(compiled, edge_index, train=True)
    step(compiled, edge_index.clone(), train=True)
    step(compiled, edge_index, train=False)
    out = step(compiled, edge_index, train=False, gradients=False)
    assert len(made) == first
    torch.testing.assert_close(out, step(model, edge_index, train=False, gradients=False), rtol=0, atol=1e-10)


class Ends(nn.Module):
    """A sum over edges given by two columns."""

    def forward(self, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, dst, x[src])


BACKENDS = ["reference", pytest.param("auto", marks=needs_compiler)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_parts", [1, 3])
def test_a_column_that_changes_in_place_is_mapped_again(num_parts: int, backend: str) -> None:
    """A map made from the user's own memory is not the map of what that memory holds later."""
    src, dst = graph()
    parts = sarc.partition(torch.stack([src, dst]), num_nodes=N, num_parts=num_parts)
    compiled = sarc.compile(Ends(), parts, backend=backend, spaces={"src": "E", "dst": "E"})
    x = torch.randn(N, F, dtype=torch.float64)
    for seed in range(1, 4):
        torch.testing.assert_close(compiled(x, src, dst), Ends()(x, src, dst), rtol=0, atol=1e-10)
        src.copy_(graph(seed)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_made_for_earlier_columns_is_dropped(backend: str) -> None:
    """Of two columns one changes every epoch: nothing is kept of those before."""
    src, dst = graph()
    parts = sarc.partition(torch.stack([src, dst]), num_nodes=N, num_parts=2)
    compiled = sarc.compile(Ends(), parts, backend=backend, spaces={"src": "E", "dst": "E"})
    x = torch.randn(N, F, dtype=torch.float64)
    counts = []
    for seed in range(1, 6):
        compiled(x, graph(seed)[0], dst)
        gc.collect()
        known = compiled._placed.known[0, torch.device("cpu")]
        counts.append((len(known._sources), sum(map(len, known._traversals.values()))))
    assert len(set(counts[1:])) == 1


@needs_compiler
@pytest.mark.parametrize("num_parts", [1, 3])
def test_more_rows_than_kernels_can_number(num_parts: int, monkeypatch) -> None:
    monkeypatch.setattr(binding, "MOST_ROWS", 15)
    edge_index = graph()
    _, compiled = compiled_net(num_parts, "auto")
    with pytest.raises(PartitionError, match=r"in 32 bits, at most 15; partition into at least"):
        step(compiled, edge_index, train=True)
    _, compiled = compiled_net(num_parts)
    step(compiled, edge_index, train=True)
