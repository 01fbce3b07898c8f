"""Backends: which edge programs become kernels, what is said where one does not, and that results are equal."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import sarc
from sarc.codegen import build, coverage, kernels
from sarc.codegen.warn_once import warn_once
from sarc.errors import CodegenError

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")
N = 12


class WeightedSum(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        return torch.zeros_like(x).index_add(0, dst, x[src] * 0.5)


class PerEdge(nn.Module):
    """Scores that have a scalar form, and a layer on every edge, which has none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        degree = x.new_zeros(x.size(0)).index_add(0, dst, x[src].square().sum(-1)) + 1
        messages = self.layer((x[src] - x[dst]).tanh()).tanh() / degree[dst].unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, dst, messages)


class NoScalarForm(nn.Module):
    """Sorted messages: row-wise, and no expression of single entries."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        return torch.zeros_like(x).index_add(0, dst, x[src].cumsum(1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SARC_CACHE_DIR", str(tmp_path))
    warn_once.cache_clear()


def call(
    model: nn.Module, backend: str, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], sarc.CompiledModule]:
    """Output and gradients of one call, and the compiled module."""
    torch.manual_seed(0)
    model = model.to(dtype)
    edge_index = torch.randint(0, N, (2, 50))
    x = torch.randn(N, 4, dtype=torch.float64).to(dtype).requires_grad_()
    compiled = sarc.compile(model, sarc.partition(edge_index, num_nodes=N, num_parts=2), backend=backend)
    out = compiled(x, edge_index)
    out.sum().backward()
    return [out.detach(), x.grad], compiled


def how(compiled: sarc.CompiledModule) -> list[str]:
    return [e.runs.how for e in compiled.plan().edges]


@needs_compiler
def test_a_scalar_program_is_a_kernel() -> None:
    for backend in ("auto", "cpp"):
        _, compiled = call(WeightedSum(), backend)
        assert how(compiled) == ["kernel", "kernel"]
        assert compiled.plan().fallbacks == 0
        assert "runs as kernel" in str(compiled.plan())


@needs_compiler
@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_products_of_every_edge_run_in_torch_and_are_no_fallback(backend: str) -> None:
    model = PerEdge()
    expected, _ = call(model, "reference")
    got, compiled = call(model, backend)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    found = {e.runs.how: e.runs.why for e in compiled.plan().edges}
    assert found.keys() == {"kernel", "blocks of torch"}
    assert "aten.mm of every edge (" in found["blocks of torch"] and "test_coverage.py:" in found["blocks of torch"]
    assert compiled.plan().fallbacks == 0


def test_the_reference_is_chosen_and_no_fallback() -> None:
    _, compiled = call(WeightedSum(), "reference")
    assert how(compiled) == ["reference", "reference"]
    assert compiled.plan().fallbacks == 0
    assert all(not e.runs.why for e in compiled.plan().edges)


@needs_compiler
def test_what_has_no_scalar_form_falls_back_and_is_counted() -> None:
    expected, _ = call(NoScalarForm(), "reference")
    got, compiled = call(NoScalarForm(), "auto")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert how(compiled)[0] == "reference"
    assert compiled.plan().fallbacks >= 1
    assert "aten.cumsum (" in compiled.plan().edges[0].runs.why


@needs_compiler
def test_cpp_raises_where_auto_falls_back() -> None:
    with pytest.raises(CodegenError, match="@edges0 over E has no kernel: aten.cumsum") as caught:
        call(NoScalarForm(), "cpp")
    assert "test_coverage.py:" in str(caught.value) and "backend='auto'" in str(caught.value)


def test_without_a_compiler_auto_says_so_once_and_runs(monkeypatch) -> None:
    monkeypatch.setattr(build, "compiler", lambda: None)
    monkeypatch.setattr("sarc.backend.compiler", lambda: None)
    expected, _ = call(WeightedSum(), "reference")
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found") as caught:
        got, compiled = call(WeightedSum(), "auto")
        call(WeightedSum(), "auto")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert how(compiled) == ["reference", "reference"]
    assert compiled.plan().fallbacks == 2
    with pytest.raises(CodegenError, match="no C\\+\\+ compiler found"):
        call(WeightedSum(), "cpp")


@needs_compiler
def test_a_kernel_that_does_not_build(monkeypatch) -> None:
    """"auto" says so once and runs plain torch; "cpp" raises."""

    def fail(programs):
        raise CodegenError("kernel edges0: c++ failed")

    monkeypatch.setattr("sarc.backend.compile_kernels", fail)
    with pytest.warns(UserWarning, match="could not be built, plain torch runs in its place: kernel edges0") as caught:
        _, compiled = call(WeightedSum(), "auto")
    assert len(caught) == 1
    assert {e.runs.why for e in compiled.plan().edges} == {"its compilation failed"}
    with pytest.raises(CodegenError, match="failed"):
        call(WeightedSum(), "cpp")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_runs_or_is_named(dtype: torch.dtype) -> None:
    """Under "reference" and "auto" a bfloat16 or float16 model runs; "cpp" may name what it has no kernel for."""
    expected, _ = call(WeightedSum(), "reference", dtype)
    wide = call(WeightedSum(), "reference", torch.float64)[0]
    # Sums of at most a dozen terms, each rounded at 8 (11) significant bits.
    assert all(torch.allclose(a.double(), b, rtol=0, atol=0.2) for a, b in zip(expected, wide, strict=True))
    if build.compiler() is None:
        return
    got, _ = call(WeightedSum(), "auto", dtype)
    assert all(torch.allclose(a.double(), b, rtol=0, atol=0.2) for a, b in zip(got, wide, strict=True))
    try:
        got, compiled = call(WeightedSum(), "cpp", dtype)
    except CodegenError as error:
        assert str(dtype) in str(error) and "test_coverage.py:" in str(error)
    else:
        assert how(compiled) == ["kernel", "kernel"]
        assert all(torch.allclose(a.double(), b, rtol=0, atol=0.2) for a, b in zip(got, wide, strict=True))


class Mixed(nn.Module):
    """float32 features, float64 weights of edges, an integer scale: promoted as plain torch promotes them."""

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        src, dst = edge_index
        message = x[src] * weight.unsqueeze(-1) * scale[src].unsqueeze(-1)
        return message.new_zeros(x.size(0), x.size(1)).index_add(0, dst, message)


@pytest.mark.parametrize("backend", ["reference", "auto", "cpp"])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_strided_inputs_and_mixed_dtypes(backend: str, num_parts: int) -> None:
    """Transposed features, every second weight of a longer tensor, a broadcast scale; gradients into each."""
    if backend == "cpp" and build.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    torch.manual_seed(0)
    edge_index = torch.randint(0, N, (50, 2)).t()
    features, weights = torch.randn(5, N), torch.randn(50, 3, dtype=torch.float64)
    scale = torch.tensor(3).expand(N)
    parts = sarc.partition(edge_index, num_nodes=N, num_parts=num_parts, method="random")
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = Mixed(), sarc.compile(Mixed(), parts, backend=backend, spaces={"x": "N"})
    for module in modules:
        f, w = features.clone().requires_grad_(), weights.clone().requires_grad_()
        out = module(f.t(), edge_index, w[:, 1], scale)
        (out * torch.arange(out.numel()).view(out.shape[::-1]).t()).sum().backward()
        found.append((out.detach(), f.grad, w.grad))
    for plain, ours in zip(*found, strict=True):
        assert plain.dtype == ours.dtype
        torch.testing.assert_close(ours, plain, rtol=1e-5 if plain.dtype == torch.float32 else 1e-10, atol=1e-5)


@needs_compiler
def test_the_reasons_agree_with_what_is_compiled() -> None:
    _, compiled = call(NoScalarForm(), "auto")
    for program in compiled._called().binding.programs.values():
        for edges in sarc.backend.edge_programs(program):
            found = coverage.scalar_form(edges)
            assert (found.how == "kernel") == (edges.name in kernels.compile_kernels([edges]))
