"""Tables of feature width that are not made, or not beside others: a GAT layer holds fewer at once."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

import sarc
from sarc.codegen.build import compiler
from sarc.codegen.overwrite import overwritable
from sarc.ir.edge_program import edge_call
from sarc.ir.parse import parse_program
from sarc.passes.partitioned.fuse_rows import FuseRows

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
N, E, F, HEADS = 600, 3000, 16, 4
ROW = 8 * F * HEADS


def layer(objective: str) -> tuple[sarc.CompiledModule, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    edges = torch.randint(0, N, (2, E))
    model = GATConv(24, F, heads=HEADS).double()
    compiled = sarc.compile(model, sarc.partition(edges, num_nodes=N, num_parts=1), objective=objective, backend="cpp")
    x = torch.randn(N, 24, dtype=torch.float64, requires_grad=True)
    compiled(x, edges)
    return compiled, x, edges


def tables(compiled: sarc.CompiledModule, stage: str) -> float:
    """Tables of [N, HEADS, F] that fit into the most bytes alive in a stage."""
    (memory,) = compiled.plan().memory
    return max(size for found, _, size in memory.timeline if found == stage) / (N * ROW)


@needs_compiler
def test_a_second_result_is_made_behind_the_edges_where_memory_counts() -> None:
    assert tables(layer("time")[0], "forward") > 3
    assert tables(layer("memory")[0], "forward") < 2.6


@needs_compiler
@pytest.mark.parametrize("objective", ["time", "memory"])
def test_the_gradient_of_a_result_is_gathered_as_it_comes(objective: str) -> None:
    compiled, x, edges = layer(objective)
    program = compiled.program("partitioned backward")
    calls = [line for line in program.splitlines() if re.search(r"edge_call\(@edges\d+, ", line)]
    assert any("%tangent_0" in line for line in calls)
    plain = compiled.model(x, edges)
    wanted = torch.autograd.grad(plain.square().sum(), [x, *compiled.parameters()])
    got = torch.autograd.grad(compiled(x, edges).square().sum(), [x, *compiled.parameters()])
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-10 * max(1.0, float(theirs.abs().max())))


class Rows(nn.Module):
    """A chain of row operations between two sums over edges."""

    def __init__(self, chain) -> None:
        super().__init__()
        self.first, self.second, self.chain = nn.Linear(24, F * HEADS), nn.Linear(24, F * HEADS), chain

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h, g = self.first(x), self.second(x)
        out = self.chain(h, g)
        return torch.zeros_like(out).index_add(0, edges[1], out[edges[0]])


IN_PLACE = {
    "one": lambda h, g: torch.relu(h + g),
    "two tables": lambda h, g: torch.cat([torch.sigmoid(h) * g, torch.tanh(g) * h], 1),
    "what folds over features": lambda h, g: torch.exp(h - h.amax(1, keepdim=True)) * g.tanh(),
    "a normalised row": lambda h, g: nn.functional.layer_norm(torch.exp(h) + g, (F * HEADS,)),
    "other entries": lambda h, g: (h.view(-1, HEADS, F) * torch.exp(g.view(-1, HEADS, F)[:, :1])).flatten(1).sin(),
    "other entries first": lambda h, g: (h.view(-1, F, HEADS).transpose(1, 2).flatten(1).sin() + h.cos()) * g,
}


@needs_compiler
@pytest.mark.parametrize("chain", IN_PLACE)
def test_rows_written_over_rows_are_right(chain: str) -> None:
    torch.manual_seed(0)
    edges = torch.randint(0, N, (2, E))
    model = Rows(IN_PLACE[chain]).double()
    compiled = sarc.compile(model, sarc.partition(edges, num_nodes=N, num_parts=1), backend="cpp")
    x = torch.randn(N, 24, dtype=torch.float64, requires_grad=True)
    plain, ours = model(x, edges), compiled(x, edges)
    wanted = [plain.detach(), *torch.autograd.grad(plain.square().sum(), [x, *model.parameters()])]
    got = [ours.detach(), *torch.autograd.grad(ours.square().sum(), [x, *compiled.parameters()])]
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-10 * max(1.0, float(theirs.abs().max())))
    if chain == "one":
        assert re.search(r"store axis 0 over \$\d", compiled.program("partitioned forward"))


class Two(nn.Module):
    """Rows that are stored beside sums over their entries."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, F * HEADS), nn.Linear(24, F * HEADS)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h, g = self.first(x), self.second(x)
        rows = 3 * h + g
        sums = (rows * g.sin()).view(-1, HEADS, F).sum(2).tanh()
        out = torch.cat([rows, sums], 1)
        return torch.zeros_like(out).index_add(0, edges[1], out[edges[0]])


@needs_compiler
def test_sums_over_entries_are_of_what_was_there_before_rows_were_written_over() -> None:
    torch.manual_seed(0)
    edges = torch.randint(0, N, (2, E))
    model = Two().double()
    compiled = sarc.compile(model, 1, backend="cpp")
    x = torch.randn(N, 24, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(compiled(x, edges), model(x, edges), rtol=1e-11, atol=1e-11)
    assert re.search(r"store axis 0 over \$\d", compiled.program("partitioned forward"))
    assert "store axis 0 %tanh_default" in compiled.program("partitioned forward")


ROWS = """program forward
space N = nodes
edges @rows0 over N
  %h: f32[N, 32, 32] = rows $0 axis 0
  %g: f32[N, 32, 32] = rows $1 axis 0
  {line}
  %out: f32[N, 32, 32] = aten.add.Tensor(%a, %g)
  store axis 0 %out: f32[N, 32, 32]
%x: f32[N, 32, 32] = input arg x
%p: f32[N, 32, 32] = aten.exp(%x)
%q: f32[N, 32, 32] = aten.sin(%x)
%rows_out: (f32[N, 32, 32]) = edge_call(@rows0, [%p, %q], [])
%r: f32[N, 32, 32] = getitem(%rows_out, 0)
return result 0 = %r
"""


@pytest.mark.parametrize(
    ("line", "pairs"),
    [
        ("%a: f32[N, 32, 32] = aten.relu(%h)", [(0, 0), (0, 1)]),
        ("%a: f32[N, 32, 32] = aten.transpose.int(%h, 1, 2)", [(0, 1)]),  # of the same shape, from other entries
    ],
)
def test_only_what_is_read_entry_by_entry_is_written_over(line: str, pairs: list[tuple[int, int]]) -> None:
    program = parse_program(ROWS.format(line=line))
    (call,) = (n for n in program.graph.nodes if n.target is edge_call)
    assert overwritable(call.args[0]) == pairs


@needs_compiler
@pytest.mark.parametrize("exchange", ["ring", "whole"])
@pytest.mark.parametrize("placement", ["dst", "src", "cover", "auto"])
def test_a_gradient_of_averaged_heads_travels_once_for_all_heads(placement: str, exchange: str) -> None:
    torch.manual_seed(0)
    edges = torch.randint(0, N, (2, E))
    model = GATConv(24, F, heads=HEADS, concat=False).double()
    parts = sarc.partition(edges, num_nodes=N, num_parts=3, method="random", seed=0)
    ways = {"exchange": exchange, "placement": placement, "objective": "memory"}
    compiled = sarc.compile(model, parts, backend="cpp", **ways)
    x = torch.randn(N, 24, dtype=torch.float64, requires_grad=True)
    plain = torch.autograd.grad(model(x, edges).square().sum(), [x, *model.parameters()])
    mine = torch.autograd.grad(compiled(x, edges).square().sum(), [x, *model.parameters()])
    for a, b in zip(mine, plain, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10 * max(1.0, float(b.abs().max())))
    # At the source an edge reads a gradient row of F numbers and four of each head.
    travels = {e.fetch_row_bytes for e in compiled.plan().edges if e.stage == "backward" and e.fetched}
    if (placement, exchange) == ("src", "ring"):
        assert travels == {8 * (F + 4 * HEADS)}


WAITS = """program backward
space N = nodes
%r: f32[N, 64] = input saved r
%g: f32[N, 64] = input tangent 0
%w: f32[64, 64] = input param w
%b: f32[64] = input param b
%c: bool[N, 64] = aten.le.Scalar(%r, 0)
%s: f32[N, 64] = aten.sub.Tensor({of}, %b)
%d: f32[N, 64] = aten.tanh(%s)
%p: f32[N, 64] = aten.mm(%g, %w)
%z: f32[] = aten.full([], 0, dtype=f32)
%y: f32[N, 64] = aten.where.self(%c, %z, %p)
%m: f32[N, 64] = aten.mul.Tensor(%y, %d)
%t: f32[N] = aten.sum.dim_IntList(%m, [1])
return grad arg x = %y
return grad arg k = %t
"""


@pytest.mark.parametrize(("of", "outside"), [("%r", 0), ("%g", 1)])
def test_what_only_later_rows_read_waits_for_them(of: str, outside: int) -> None:
    program = FuseRows(lambda edges: True).run(parse_program(WAITS.format(of=of)))
    assert sum(n.target is edge_call for n in program.graph.nodes) == 1
    # A mask of %r is made early where %r, which is wider, may go then.
    assert sum(n.target is torch.ops.aten.le.Scalar for n in program.graph.nodes) == outside
