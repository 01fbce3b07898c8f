"""nvcc takes the CUDA kernels, GPU or not, and ptxas spills no registers of values up to 128 features wide."""

from __future__ import annotations

import subprocess

import pytest
import torch
from torch import nn

import sarc
from sarc.codegen.build import build_ahead
from sarc.codegen.cuda_kernels import CudaKernel, cuda_builds, cuda_sources
from sarc.codegen.cuda_prelude import FUNCTIONS, RUNTIME
from sarc.codegen.cuda_source import CudaSource
from sarc.codegen.expression import _BINARY, _COMPARE, _UNARY, C_TYPES, scalar
from sarc.codegen.nvcc import FLAGS, Usage, known_architectures, load_library, nvcc, parse_usage, toolchain, usage
from sarc.codegen.warn_once import warn_once
from sarc.errors import CodegenError
from sarc.ir.edge_program import EdgeProgram
from sarc.pipeline import Pipeline
from tests.codegen.edge_programs import Drawn

needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="no nvcc on this machine")
WIDEST_WITHOUT_SPILLS = 128


def kernels_of(compiled: sarc.CompiledModule) -> list[EdgeProgram]:
    return [edges for _, edges, found in compiled.kernel_sources("cuda") if not isinstance(found, str)]


def check(programs: list[EdgeProgram]) -> list[CudaSource]:
    """Compile every kernel; the sources."""
    build_ahead(cuda_builds(programs))
    sources = [source for program in programs for _, source in cuda_sources(program)]
    for source in sources:
        library = load_library(source, "a kernel of a test")
        assert library.describe(0) == "no error" and library.where.endswith(".cu")
        found = usage(source)
        assert len({u.architecture for u in found}) == (2 if not torch.cuda.is_available() else 1)
        for each in found:
            assert_fits(source, each)
    return sources


def assert_fits(source: CudaSource, found: Usage) -> None:
    """Registers hold what a kernel computes."""
    assert 0 < found.registers <= 255
    assert source.widest > WIDEST_WITHOUT_SPILLS or found.spill_bytes == 0, (source.kernel, found)


class Attention(nn.Module):
    """GAT's mathematics, 4 heads of 32, with dropout of the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 128)
        self.of_source, self.of_target = nn.Parameter(torch.randn(4, 32)), nn.Parameter(torch.randn(4, 32))

    def forward(self, x, edge_index):
        src, dst = edge_index
        z = self.layer(x).view(-1, 4, 32)
        score = (z * self.of_source).sum(-1)[src] + (z * self.of_target).sum(-1)[dst]
        score = nn.functional.leaky_relu(score, 0.2)
        spread = dst.view(-1, 1).expand_as(score)
        top = score.new_full((x.size(0), 4), float("-inf")).scatter_reduce(0, spread, score.detach(), "amax")
        share = (score - top[dst]).exp()
        share = share / (share.new_zeros(x.size(0), 4).index_add(0, dst, share)[dst] + 1e-16)
        share = nn.functional.dropout(share, 0.5, self.training)
        return torch.zeros_like(z).index_add(0, dst, z[src] * share.unsqueeze(-1))


@needs_nvcc
def test_attention() -> None:
    edge_index = torch.randint(0, 20, (2, 100))
    compiled = sarc.compile(Attention(), sarc.partition(edge_index, num_nodes=20, num_parts=1), backend="reference")
    compiled(torch.randn(20, 32), edge_index)
    assert len(check(kernels_of(compiled))) >= 4


@needs_nvcc
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(torch.float16, marks=pytest.mark.slow),
        pytest.param(torch.float64, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_dtypes(dtype: torch.dtype) -> None:
    steps = (("dot", 0, 1), ("score", 0, 1), ("weigh", 0, 0), ("drop", 0, 0))
    check([Drawn(2, 64, steps, ("sum to dst", "few to dst", "contract")).program(dtype)])


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("heads,features", [(1, 1), (8, 3), (12, 7), (1, 17), (3, 64), (1, 100), (2, 257), (4, 1024)])
def test_widths(heads: int, features: int) -> None:
    steps = (("dot", 0, 1), ("score", 0, 1), ("weigh", 0, 0), ("over heads", 0, 0), ("roll", 0, 0))
    check([Drawn(heads, features, steps, ("sum to dst", "few to dst", "contract")).program(torch.float32)])
    check([Drawn(heads, features, steps[:3], (), softmax=True).program(torch.float32)])


@needs_nvcc
def test_every_operator_compiles(tmp_path) -> None:
    """Each scalar form, in float32 and float64, as device code."""
    kernels = []
    for dtype in (torch.float32, torch.float64):
        kind = C_TYPES[dtype]
        forms = [scalar(_overload(name), ["a"], {}, dtype, dtype) for name in _UNARY]
        forms += [scalar(_overload(name), ["a", "b"], {}, dtype, dtype) for name in (*_BINARY, "pow", *_COMPARE)]
        forms += [scalar(_overload("pow"), ["a"], {"exponent": e}, dtype, dtype) for e in (3, 0.5, -1, -0.5, 1.7)]
        forms += [scalar(_overload(name), ["a"], {}, dtype, dtype) for name in ("elu", "leaky_relu", "square")]
        forms.append(scalar(_overload("clamp"), ["a"], {"min": -float("inf"), "max": float("nan")}, dtype, dtype))
        assert None not in forms
        lines = "\n".join(f"  y[{i}] = {form};" for i, form in enumerate(forms))
        kernels.append(f"__global__ void all_{kind}({kind}* y, {kind} a, {kind} b) {{\n{lines}\n}}\n")
    unit = tmp_path / "operators.cu"
    unit.write_text(RUNTIME + FUNCTIONS + "".join(kernels))
    command = [nvcc() or "", *FLAGS, "-arch=sm_90", str(unit), "-o", str(tmp_path / "operators.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _overload(name: str):
    packet = getattr(torch.ops.aten, name)
    return getattr(packet, packet.overloads()[0])


@needs_nvcc
def test_an_unknown_architecture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Drawn(1, 3, (), ("sum to dst",)).program(torch.float32)
    monkeypatch.setattr("sarc.codegen.nvcc.present_architectures", lambda: (30,))
    with pytest.raises(CodegenError, match="kernel drawn .*compute capability 3.0, which .* no longer compiles for"):
        CudaKernel(program)
    monkeypatch.setattr("sarc.codegen.nvcc.present_architectures", lambda: (90, 999))
    command = toolchain(False).command
    assert "-gencode=arch=compute_90,code=sm_90" in command
    newest = known_architectures()[-1]
    assert f"-gencode=arch=compute_{newest},code=compute_{newest}" in command  # PTX, for a GPU that nvcc does not know


class Sum(nn.Module):
    def forward(self, x, edge_index):
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])


def test_which_kernels_run_where(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr("sarc.backend.nvcc", lambda: "nvcc")
    monkeypatch.setattr("sarc.backend.compiler", lambda: "c++")
    assert [Pipeline("auto").target(d) for d in (cpu, gpu)] == ["cpp", "cuda"]
    assert [Pipeline("reference").target(d) for d in (cpu, gpu)] == [None, None]
    assert Pipeline("cuda").target(gpu) == "cuda"
    with pytest.raises(CodegenError, match="backend='cpp': the model and its tensors are on cuda:0"):
        Pipeline("cpp").target(gpu)
    parts = sarc.partition(torch.tensor([[0], [1]]), num_nodes=2, num_parts=1)
    with pytest.raises(CodegenError, match="backend='cuda': the model and its tensors are on cpu.*move them"):
        sarc.compile(Sum(), parts, backend="cuda")(torch.randn(2, 3), torch.tensor([[0], [1]]))
    monkeypatch.setattr("sarc.backend.nvcc", lambda: None)
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match="no nvcc found .* plain torch on the GPU") as caught:
        assert [Pipeline("auto").target(gpu) for _ in range(2)] == [None, None]
    assert len(caught) == 1
    with pytest.raises(CodegenError, match="no nvcc found .*install the CUDA toolkit"):
        sarc.compile(Sum(), parts, backend="cuda")


def test_the_report_is_read() -> None:
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Zrows' for 'sm_90'
ptxas info    : Function properties for _Zrows
    24 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers
"""
    (found,) = parse_usage(said)
    assert (found.kernel, found.architecture, found.registers) == ("_Zrows", "sm_90", 48)
    assert (found.stack_bytes, found.spill_bytes) == (24, 20)
