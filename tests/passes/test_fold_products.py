"""Products of gradients with sums over neighbours, folded from the edges: equal, chosen where the peak is lower."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

import sarc
from sarc.codegen.divide import divide
from sarc.errors import BudgetError
from sarc.ir.edge_program import edge_call
from sarc.ir.parse import parse_program
from sarc.ir.verify import verify
from sarc.passes.joint.fold_products import FoldProducts
from sarc.passes.joint.fuse_edge_programs import FuseEdgePrograms
from sarc.runtime import budget, variants
from sarc.runtime.binding import schedule_stages

N, F, C, HEADS = 400, 16, 24, 4


class Net(nn.Module):
    """Two attention layers, the heads of the second averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.a = GATConv(F, F // HEADS, heads=HEADS)
        self.b = GATConv(F, C, heads=HEADS, concat=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.b(self.a(x, edge_index).relu(), edge_index)


def problem() -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(N, F, dtype=torch.float64, requires_grad=True)
    return Net().double(), x, torch.randint(N, (2, 3000))


def gradients(module: nn.Module, x: Tensor, edge_index: Tensor) -> list[Tensor]:
    out = module(x, edge_index)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]


def fold_products(compiler, host, stages, values, binding, prefetch):
    """In place of `least_peak`: products are folded from the edges whatever the peak."""
    candidate = compiler.fewer_tables(stages, None)[0]
    schedule_stages(compiler, host, candidate, values, binding, prefetch)
    return candidate


def saves_heads(compiled: sarc.CompiledModule) -> bool:
    return any(f", {HEADS}, {C}] = input saved" in line for line in compiled.program("backward").splitlines())


def test_averaged_heads_are_not_kept_where_the_peak_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, edge_index = problem()
    expected, peaks = gradients(model, x, edge_index), []
    for least in (0, 1 << 60):  # bytes from which plans are compared
        monkeypatch.setattr(budget, "_WORTH_COMPARING", least)
        compiled = sarc.compile(model, 1, objective="memory")
        for mine, theirs in zip(gradients(compiled, x, edge_index), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
        peaks.append(max(p.peak for p in compiled.plan().memory))
        assert saves_heads(compiled) == bool(least)
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize("exchange", ["ring", "whole"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_parts_learn_the_same(backend: str, exchange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "least_peak", fold_products)
    model, x, edge_index = problem()
    compiled = sarc.compile(model, 3, backend=backend, exchange=exchange)
    for mine, theirs in zip(gradients(compiled, x, edge_index), gradients(model, x, edge_index), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    assert not saves_heads(compiled)
    assert compiled.plan().sent_bytes == compiled.traffic()["sent_bytes"]


def test_the_products_are_made_with_the_gradients_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One edge program: its wide rows are gathered once, by the sources, and nothing wide by the destinations."""
    model, x, edge_index = problem()
    monkeypatch.setattr(variants, "least_peak", fold_products)
    compiled = sarc.compile(model, 1, objective="memory")
    for mine, theirs in zip(gradients(compiled, x, edge_index), gradients(model, x, edge_index), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    # As kernels have them, whether there is a compiler here or not.
    programs = [edges for stage, edges, _ in compiled.kernel_sources() if stage == "backward" and edges.own_columns]
    (found,) = [edges for edges in programs if any(r.kind == "reduce" for r in edges.results)]
    division = divide(found)
    source = next(r.column for r in found.results if r.kind == "reduce")
    assert [stage.order for stage in division.stages] == [source, *found.own_columns, source]
    wide = [[o.column for o in s.program.operands if o.type.dims[1:] in ((HEADS, C), (1, C))] for s in division.stages]
    assert sorted(wide[0]) == [0, 1] and not wide[1] and not wide[2]
    assert division.over


def test_a_budget_that_nothing_else_fits_is_met_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, edge_index = problem()
    with monkeypatch.context() as patched, pytest.raises(BudgetError) as refused:
        patched.setattr(FoldProducts, "run", lambda self, program: program)
        sarc.compile(model, 1, objective="memory", memory_budget=1)(x, edge_index)
    least = int(str(refused.value).split("needs at least ")[1].split()[0])
    compiled = sarc.compile(model, 1, objective="memory", memory_budget=least - 1)
    compiled(x, edge_index).sum().backward()
    assert max(p.total for p in compiled.plan().memory) < least


JOINT = """program joint
space N = nodes
space E = edges on edges
%m: f32[E, 8] = input arg m
%dst: i64[E] = input arg dst
%tangent_0: f32[N, 8] = input tangent 0
%o: f32[N, 8] = sarc.reduce(%m, %dst, 0, |N|, 'sum')
{out}
%p: f32[N, 8] = aten.mul.Tensor(%tangent_0, %o)
%d: f32[N] = aten.sum.dim_IntList(%p, [1])
{also}
return result 0 = %out
return grad arg s = %d
{last}"""
READ = {
    "an activation of the sum": (
        "%out: f32[N, 8] = aten.tanh(%o)", "%g: f32[N, 8] = aten.mul.Tensor(%tangent_0, %out)",
        "return grad arg t = %g",
    ),
    "the sum itself": (
        "%out: f32[N, 8] = aten.tanh(%o)", "%g: f32[N, 8] = aten.mul.Tensor(%tangent_0, %o)", "return grad arg t = %g",
    ),
    "edges of the next layer": (
        "%h: f32[E, 8] = sarc.gather(%o, %dst, 0)\n%out: f32[N, 8] = sarc.reduce(%h, %dst, 0, |N|, 'sum')", "", "",
    ),
    "all of the product": ("%out: f32[N, 8] = aten.tanh(%o)", "", "return grad arg t = %p"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_sum_that_is_read_for_something_else_stays(name: str) -> None:
    out, also, last = READ[name]
    lines = JOINT.format(out=out, also=also, last=last)
    program = verify(parse_program("".join(f"{line}\n" for line in lines.splitlines() if line)))
    assert FoldProducts().run(program) is program


def test_a_gradient_that_all_rows_share_is_not_gathered() -> None:
    lines = JOINT.format(out="%out: f32[N, 8] = aten.tanh(%o)", also="", last="")
    lines = lines.replace("%tangent_0: f32[N, 8]", "%tangent_0: f32[1, 8]")
    program = verify(parse_program("".join(f"{line}\n" for line in lines.splitlines() if line)))
    assert FoldProducts().run(program) is program


def test_of_equal_peaks_what_folds_products_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = SimpleNamespace(objective="memory", fewer_tables=lambda stages, rows: ["more kept", "less kept"])
    monkeypatch.setattr(budget, "_WORTH_COMPARING", 0)
    monkeypatch.setattr(budget, "_largest_plan", lambda binding, host: SimpleNamespace(peak=5))
    monkeypatch.setattr(budget, "run_parts", lambda work, transport: {0: [{}]})
    scheduled: list[object] = []
    monkeypatch.setattr(budget, "schedule_stages", lambda c, h, stages, *rest: scheduled.append(stages))
    binding = SimpleNamespace(order=SimpleNamespace(states=[]))

    stages = {"joint": SimpleNamespace(graph=SimpleNamespace(nodes=[]))}  # nothing is made again
    host = SimpleNamespace(transport=None)
    assert budget.least_peak(compiler, host, stages, None, binding, 1) is stages
    assert scheduled == ["more kept", "less kept", stages]


def test_a_fold_is_made_with_the_one_that_gathers_the_same_rows() -> None:
    program = parse_program(
        "program backward\nspace N = nodes\nspace E = edges on edges\n"
        "%z: f32[N, 8] = input arg z\n%t: f32[N, 8] = input tangent 0\n"
        "%src: i64[E] = input arg src\n%dst: i64[E] = input arg dst\n"
        "%a: f32[E, 8] = sarc.gather(%z, %src, 0)\n%b: f32[E, 8] = sarc.gather(%t, %dst, 0)\n"
        "%first: f32[N, 8] = sarc.reduce(%a, %dst, 0, |N|, 'sum')\n"
        "%alone: f32[N, 8] = sarc.reduce(%b, %src, 0, |N|, 'sum')\n"
        "%p: f32[N, 8] = aten.mul.Tensor(%t, %first)\n%g: f32[E, 8] = sarc.gather(%p, %dst, 0)\n"
        "%q: f32[E, 8] = aten.mul.Tensor(%g, %b)\n%second: f32[N, 8] = sarc.reduce(%q, %src, 0, |N|, 'sum')\n"
        "return grad arg x = %alone\nreturn grad arg z = %second\n"
    )
    fused = verify(FuseEdgePrograms().run(verify(program)))
    calls = [n for n in fused.graph.nodes if n.target is edge_call]
    assert [len(call.args[0].results) for call in calls] == [1, 2]
