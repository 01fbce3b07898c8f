"""CUDA kernels, their warps emulated on the CPU, equal plain torch: random edge programs, and models."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import example, given

import sarc
from benchmarks.gpu_models import AttentionCore
from sarc.codegen import build
from sarc.codegen.cuda_kernels import compile_cuda_kernels, cuda_sources, has_cuda_kernel
from sarc.codegen.nvcc import Library
from sarc.errors import BudgetError, CodegenError
from tests.codegen.edge_programs import Drawn, DrawnGraph, drawn_programs, graphs, run_kernel, run_reference, tables
from tests.codegen.emulate import ORDERS, emulated
from tests.equivalence.case import standard_cut
from tests.equivalence.compare import check_mode, pair
from tests.equivalence.model_lists import CASES, case_named

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")

# Bounds on |a - b| / max(1, max|b|): rounding of a few hundred terms; values that 16 bits store are rounded once more.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SMALL, HUB = DrawnGraph(20, 60, 0, 1), DrawnGraph(30, 100, 700, 2)


def _long(value: object) -> object:
    """A parameter of the long run."""
    return pytest.param(value, marks=pytest.mark.slow)


def compare(drawn: Drawn, graph: DrawnGraph, dtype: torch.dtype = torch.float64, parts: int = 1) -> None:
    """One program as a kernel and in plain torch; its threads in every order give the same bits."""
    columns, program = graph.columns(), drawn.program(dtype)
    edges = columns[0].numel()
    values = tables(program, graph.nodes, edges)
    exact = drawn.program(torch.float64)
    expected = run_reference(exact, columns, graph.nodes, [v.double() if v.is_floating_point() else v for v in values])
    found = [
        run_kernel(program, columns, graph.nodes, values, partial(emulated, order=order), parts) for order in ORDERS
    ]
    for mine in found[1:]:
        assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(found[0], mine, strict=True))
    for ours, theirs in zip(found[0], expected, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        ours, theirs = ours.double().nan_to_num(0, 0, 0), theirs.nan_to_num(0, 0, 0)
        worst = (ours - theirs).abs().max() if theirs.numel() else torch.tensor(0.0)
        assert worst <= TOLERANCE[dtype] * max(1.0, float(theirs.abs().max()) if theirs.numel() else 1.0)


EVERYTHING = (("dot", 0, 1), ("score", 0, 1), ("weigh", 0, 0), ("parameter", 0, 0), ("drop", 0, 0))


@given(drawn_programs, graphs)
@example(Drawn(4, 32, EVERYTHING, ("sum to dst", "sum to src", "few to dst", "contract", "store few")), HUB)
@example(Drawn(3, 5, EVERYTHING, (), softmax=True), DrawnGraph(3, 0, 0, 0))
@example(Drawn(8, 257, (("add", 0, 0),), (), softmax=True), HUB)  # a warp has the shared memory of a block to itself
def test_drawn_programs(drawn: Drawn, graph: DrawnGraph) -> None:
    compare(drawn, graph)


@pytest.mark.parametrize("features", [_long(1), 3, _long(7), 17, 64, _long(100), _long(257)])
def test_widths(features: int) -> None:
    """A softmax over rows of every length, one of them a hub, and folds to both ends."""
    compare(Drawn(2, features, (("dot", 0, 1), ("score", 0, 1)), (), softmax=True), HUB)
    compare(Drawn(1, features, (("weigh", 0, 0),), ("sum to dst", "few to src")), HUB)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("features", [5, 64])
def test_dtypes(dtype: torch.dtype, features: int) -> None:
    """16 bits are loaded and stored eight at a time; sums are float32."""
    compare(
        Drawn(2, features, (("score", 0, 1), ("weigh", 0, 0)), ("sum to dst", "contract", "few to dst")), HUB, dtype
    )


@pytest.mark.parametrize("parts", [2, 5])
def test_blocks_fold_into_what_is_there(parts: int) -> None:
    drawn = Drawn(3, 8, (("dot", 0, 1), ("weigh", 0, 0), ("drop", 0, 0)), ("sum to dst", "amax to dst", "few to src"))
    compare(drawn, HUB, parts=parts)


def test_rows_in_pieces() -> None:
    """A row so long that blocks of threads share it, merged in order."""
    long = DrawnGraph(5, 20, 20_000, 3)
    compare(Drawn(1, 4, (("weigh", 0, 0),), ("sum to dst", "amax to dst")), long)
    compare(Drawn(1, 4, (("score", 0, 1),), (), softmax=True), long)


def test_short_rows_are_visited_by_few_lanes() -> None:
    """Where no value of an edge is wide."""
    drawn = Drawn(2, 3, (("score", 0, 1),), ("few to dst", "few to src"))
    found = [source for _, source in cuda_sources(drawn.program(torch.float64))]
    assert any(source.short is not None for source in found)
    for graph in (SMALL, HUB):
        compare(drawn, graph)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [1, 3, 4, 8])
def test_narrow_tables_of_one_column_lie_side_by_side(heads: int, dtype: torch.dtype) -> None:
    drawn = Drawn(heads, 12, (("narrow", 2, 3), ("weigh", 0, 0)), ("sum to dst", "few to dst"))
    (source,) = [source for _, source in cuda_sources(drawn.program(dtype))]
    (pack,) = source.packs
    assert [first for _, first in pack.operands] == [0, heads] and pack.width in (2, 8, 16)
    compare(drawn, HUB, dtype)
    compare(drawn, SMALL, dtype, parts=2)


MODELS = ("GATConv dropout", "edges by a mask")
ALL = [case for group in CASES.values() for case in group if not case.slow]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models run emulated CUDA kernels; the names of those that were made."""
    names: list[str] = []

    def compile_all(programs):
        found = compile_cuda_kernels(programs, emulated)
        names.extend(found)
        return found

    monkeypatch.setattr("sarc.backend.compile_kernels", compile_all)
    monkeypatch.setattr("sarc.backend.has_kernel", has_cuda_kernel)
    return names


@pytest.mark.parametrize("name", [c.name if c.name in MODELS else _long(c.name) for c in ALL])
def test_models(name: str, made: list[str]) -> None:
    """A training step of a listed model over four parts, one of them empty, all edge programs as emulated kernels."""
    case = case_named(name)
    for parts in (1, 4):
        plain, compiled, values = pair(case, standard_cut(parts))
        check_mode(case, plain, compiled, values, train=True, gradients=True)
    assert made or name not in MODELS


@pytest.mark.parametrize(("features", "forward"), [(16, 1), (1600, 2)])
def test_rows_too_wide_for_shared_memory(features: int, forward: int, made: list[str]) -> None:
    """Rows whose folds do not fit 48 KiB are not visited once for both: maximum and sums have a kernel each."""
    edge_index, model = torch.randint(0, 9, (2, 40)), AttentionCore(8, features).double()
    compiled = sarc.compile(model, sarc.partition(edge_index, num_nodes=9, num_parts=1))
    x = torch.randn(9, 8 * features, dtype=torch.float64, requires_grad=True)
    found, expected = (
        [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]
        for out in (compiled(x, edge_index), model(x, edge_index))
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.detach().abs().max()))
    edges = [e for e in compiled.plan().edges if e.stage == "forward" and e.name.startswith("edges")]
    assert compiled.plan().fallbacks == 0 and len(edges) == forward, edges
    assert {e.name for e in edges} <= set(made)


def test_wide_values_of_a_row_are_computed_where_they_are_read() -> None:
    """64 KiB of a row's values, which no block of threads could keep."""
    drawn = Drawn(2, 4096, (("tanh", 0, 0), ("mul", 0, 2)), ("sum to dst",))
    compare(drawn, DrawnGraph(5, 30, 0, 3))


MEETING = ("cuda", "cuda_folds", "cuda_online", "cuda_sweeps")


def test_a_meeting_that_is_missing_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulation is no rubber stamp: without its meetings a kernel's results depend on the order of threads."""
    for module in MEETING:
        monkeypatch.setattr(f"sarc.codegen.{module}.MEET", "")
    with pytest.raises(AssertionError):
        compare(Drawn(2, 64, (("dot", 0, 1), ("weigh", 0, 0)), ("sum to dst",)), SMALL)


@pytest.mark.parametrize(("status", "kind"), [(2, BudgetError), (700, CodegenError)])
def test_a_failed_launch_names_kernel_line_and_source(status: int, kind: type[Exception]) -> None:
    def load(source, what):
        return Library(lambda *given: status, lambda code: f"said {code}", "/cache/kernel.cu")

    columns, program = SMALL.columns(), Drawn(1, 3, (), ("sum to dst",)).program(torch.float32)
    with pytest.raises(kind, match=f"kernel drawn \\(model.py:1\\): its launch failed: said {status}") as caught:
        run_kernel(program, columns, SMALL.nodes, tables(program, SMALL.nodes, columns[0].numel()), load)
    if kind is CodegenError:
        assert "the source is kept in /cache/kernel.cu" in str(caught.value)


def test_a_lane_that_stays_away_fails_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MEETING:
        monkeypatch.setattr(f"sarc.codegen.{module}.MEET", "if (lane != 1) sarc_meet(mask);")
    with pytest.raises(CodegenError, match="kernel drawn \\(model.py:1\\): its launch failed: threads wait"):
        compare(Drawn(2, 64, (("dot", 0, 1), ("weigh", 0, 0)), ("sum to dst",)), SMALL)
