"""Gradients of rows made of the forward pass's sums: equal, chosen where they send less, left where they do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, SAGEConv

import sarc
from sarc.ir.parse import parse_program
from sarc.passes.joint.factor_gradients import FactorGradients

N, F, H = 300, 16, 2


def graph() -> tuple[Tensor, Tensor]:
    return torch.randint(N, (2, 6000), generator=torch.Generator().manual_seed(0)), torch.arange(N) % 4


class Net(nn.Module):
    def __init__(self, dropout: float, averaged: bool):
        super().__init__()
        self.a = GATConv(F, F, heads=H, dropout=dropout)
        self.b = GATConv(H * F, F, heads=H, concat=not averaged)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.b(self.a(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("averaged", [False, True], ids=["heads side by side", "heads averaged"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_attention_sends_less_and_learns_the_same(dropout: float, averaged: bool) -> None:
    edge_index, owner = graph()
    torch.manual_seed(0)
    model, x = Net(dropout, averaged).double(), torch.randn(N, F, dtype=torch.float64, requires_grad=True)
    found = []
    for parts in (1, owner):  # one part draws as four do
        compiled = sarc.compile(model, parts, objective="bytes", exchange="whole", seed=3, backend="reference")
        out = compiled(x, edge_index)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])])
    for one, four in zip(*found, strict=True):
        torch.testing.assert_close(four, one, rtol=1e-10, atol=1e-12)
    (note,) = compiled.plan().notes
    assert note.endswith("the latter, fewest bytes")
    assert compiled.plan().sent_bytes == compiled.traffic()["sent_bytes"]
    assert f"of sums of the forward pass: {compiled.plan().sent_bytes} B" in note
    needs = [c.need for stage, c in compiled.plan().placements if stage == "backward"]
    assert {need.near_return for need in needs} == {0}, "nothing is returned to a destination"


def test_other_objectives_keep_no_table_for_it() -> None:
    edge_index, owner = graph()
    compiled = sarc.compile(Net(0.0, False), owner, backend="reference")
    compiled(torch.randn(N, F, requires_grad=True), edge_index).sum().backward()
    assert compiled.plan().notes == ()
    needs = [c.need for stage, c in compiled.plan().placements if stage == "backward"]
    assert all(need.near_return for need in needs)


@pytest.mark.parametrize("layer", [SAGEConv, GATv2Conv])
def test_layers_without_such_sums_stay(layer: type) -> None:
    """A sum returns no gradient to its destinations; features inside a nonlinear score are none of the forward's."""
    edge_index, owner = graph()
    compiled = sarc.compile(layer(F, F), owner, objective="bytes", backend="reference")
    compiled(torch.randn(N, F, requires_grad=True), edge_index).sum().backward()
    assert compiled.plan().notes == ()


HEAD = """program joint
space N = nodes
space E = edges on edges
%z: f32[E, 4] = input arg z
%p: f32[E] = input arg p
%mask: bool[E] = input bound mask
%g: f32[N, 4] = input tangent 0
%src: i64[E] = input bound src
%dst: i64[E] = input bound dst
%gi: f32[E, 4] = sarc.gather(%g, %{column}, 0)
%both: f32[E, 4] = aten.mul.Tensor(%gi, %{other})
%dot: f32[E] = aten.sum.dim_IntList(%both, [1])
%d: f32[E] = {last}
%out: f32[N] = sarc.reduce(%d, %dst, 0, |N|, 'sum')
return grad arg e = %out
"""
TIMES = "aten.mul.Tensor(%dot, %p)"


@pytest.mark.parametrize(
    ("column", "other", "last", "factored"),
    [
        ("dst", "z", TIMES, True),
        ("src", "z", TIMES, False),
        ("dst", "gi", TIMES, False),
        ("dst", "z", "aten.mul.Tensor(%dot, %mask)", False),
        ("dst", "z", "aten.relu(%dot)", False),
        ("dst", "z", "aten.mul.Tensor(%dot, %dot)", False),
    ],
    ids=["linear", "another row's gradient", "quadratic in it", "a sum of a mask", "not linear", "squared"],
)
def test_what_is_linear_in_its_own_row(column: str, other: str, last: str, factored: bool) -> None:
    program = parse_program(HEAD.replace("{column}", column).replace("{other}", other).replace("{last}", last))
    assert (FactorGradients().run(program) is not program) == factored


def test_a_graph_bound_again_is_priced_again() -> None:
    """The same shapes, another graph: the choice starts from the program as it was compiled, and is told."""
    edge_index, owner = graph()
    parts = sarc.partition(edge_index, num_nodes=N, assignment=owner)

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(0.0, False)

        def forward(self, x: Tensor, some: Tensor, edge_index: Tensor) -> Tensor:
            return self.net(x, edge_index[:, some])

    compiled = sarc.compile(Weighted(), parts, objective="bytes", exchange="whole", backend="reference")
    x = torch.randn(N, F, requires_grad=True)
    prices = []
    for step in range(2):
        some = torch.arange(edge_index.shape[1]) % 3 != step
        compiled(x, some, edge_index).sum().backward()
        (note,) = compiled.plan().notes
        prices.append(note)
        assert f"{compiled.plan().sent_bytes} B" in note
    assert prices[0] != prices[1]
