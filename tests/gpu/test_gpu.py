"""On a GPU: kernels equal plain torch, whole models equal their plain modules, and failures are named.

    bash scripts/test.sh -m gpu tests/gpu
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import nn

import sarc
from sarc.codegen.cuda_kernels import CudaKernel
from sarc.codegen.nvcc import load_library, nvcc
from sarc.codegen.warn_once import warn_once
from sarc.errors import BudgetError, CodegenError
from tests.codegen.edge_programs import Drawn, DrawnGraph, drawn_programs, graphs, run_kernel, run_reference, tables
from tests.equivalence.case import Case, standard_cut
from tests.equivalence.compare import assert_same, build, compile_case, cotangents, observe, values_for
from tests.equivalence.model_lists import CASES, case_named

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(nvcc() is None, reason="no nvcc"),
]
ALL = [c for group in CASES.values() for c in group if not c.slow and "graph" not in c.inputs.split()]
SOME = ("GATConv dropout", "SAGEConv max", "self loops replaced", "GCN with batch norm", "edges by a mask")
DEVICE = torch.device("cuda", 0)


@given(drawn_programs, graphs)
def test_drawn_programs(drawn: Drawn, graph: DrawnGraph) -> None:
    program, columns = drawn.program(torch.float64), graph.columns()
    values = tables(program, graph.nodes, columns[0].numel())
    expected = run_reference(program, columns, graph.nodes, values)
    found = [run_kernel(program, columns, graph.nodes, values, load_library, device=DEVICE) for _ in range(2)]
    for ours, again, theirs in zip(*found, expected, strict=True):
        assert torch.equal(ours.nan_to_num(7), again.nan_to_num(7)), "two runs differ"
        finite = theirs.abs()[theirs.isfinite()]
        scale = max(1.0, float(finite.max()) if finite.numel() else 1.0)
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-10 * scale, equal_nan=True)


def on_gpu(case: Case, parts: int, backend: str = "cuda") -> tuple[dict, sarc.CompiledModule]:
    """Outputs, gradients and buffers of a training step on the GPU, brought to the CPU; cotangents as on the CPU."""
    cut = standard_cut(parts)
    values = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in values_for(case, cut).items()}
    module = build(case).to(DEVICE)
    compiled = compile_case(case, module, cut, values, backend=backend)
    fresh = {k: v.clone().requires_grad_() if _is_float(v) else v for k, v in values.items()}
    result = case.call(compiled, fresh)
    leaves = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
    given_ = [c.to(DEVICE) for c in cotangents([x.detach().cpu() for x in leaves])]
    pairs = [(x, c) for x, c in zip(leaves, given_, strict=True) if x.requires_grad]
    torch.autograd.backward([x for x, _ in pairs], [c for _, c in pairs])
    cpu = lambda x: None if x is None else x.detach().cpu()  # noqa: E731
    found = {f"output {k}": cpu(x) for k, x in enumerate(leaves)}
    found |= {f"gradient of parameter {n}": cpu(p.grad) for n, p in module.named_parameters()}
    used = {column for _, column in case.arguments}
    found |= {f"gradient of input {k}": cpu(v.grad) for k, v in fresh.items() if k in used and _is_float(v)}
    return found | {f"buffer {n}": cpu(b) for n, b in module.named_buffers()}, compiled


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def on_cpu(case: Case, parts: int) -> dict:
    cut = standard_cut(parts)
    values = values_for(case, cut)
    return observe(case, compile_case(case, build(case), cut, values, backend="reference"), values)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("case", ALL, ids=[c.name for c in ALL])
def test_models_equal_the_cpu(case: Case, parts: int) -> None:
    """Random draws included: masks are the same on both. What has no kernel runs in plain torch."""
    found, _ = on_gpu(case, parts, "auto")
    assert_same(found, on_cpu(case, parts))


@pytest.mark.parametrize("name", SOME)
def test_every_edge_program_is_a_kernel(name: str) -> None:
    found, compiled = on_gpu(case_named(name), 4)
    assert_same(found, on_cpu(case_named(name), 4))
    assert compiled.plan().fallbacks == 0


class Weighted(nn.Module):
    def forward(self, x, edge_index, weight):
        src, dst = edge_index
        return torch.zeros_like(x).index_add(0, dst, x[src] * weight.unsqueeze(-1))


def test_no_nvcc_runs_plain_torch_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarc.backend.nvcc", lambda: None)
    warn_once.cache_clear()
    edge_index = torch.randint(0, 20, (2, 100))
    x, weight = torch.randn(20, 8, device=DEVICE), torch.rand(100, device=DEVICE)
    parts = sarc.partition(edge_index, num_nodes=20, num_parts=2)
    with pytest.warns(UserWarning, match="no nvcc found .* plain torch on the GPU") as caught:
        compiled = sarc.compile(Weighted(), parts)
        out = compiled(x, edge_index.to(DEVICE), weight)
        compiled(x, edge_index.to(DEVICE), weight)
    assert len(caught) == 1
    torch.testing.assert_close(out, Weighted()(x, edge_index.to(DEVICE), weight))
    with pytest.raises(CodegenError, match="no nvcc found"):
        sarc.compile(Weighted(), parts, backend="cuda")


def test_moving_between_devices() -> None:
    """One compiled module, called on the CPU, on the GPU, and on the CPU again."""
    edge_index = torch.randint(0, 20, (2, 100))
    x, weight = torch.randn(20, 8, dtype=torch.float64), torch.rand(100, dtype=torch.float64)
    compiled = sarc.compile(Weighted(), sarc.partition(edge_index, num_nodes=20, num_parts=2))
    first = compiled(x, edge_index, weight)
    on = compiled(x.to(DEVICE), edge_index.to(DEVICE), weight.to(DEVICE))
    assert on.device == DEVICE
    torch.testing.assert_close(on.cpu(), first, rtol=0, atol=1e-12)
    assert torch.equal(compiled(x, edge_index, weight), first)


def test_out_of_memory_names_the_kernel() -> None:
    """A contraction's shares that no device holds."""
    kernel = CudaKernel(Drawn(1, 3, (), ("sum to dst",)).program(torch.float32))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(kernel, "_launch_all", lambda *a: torch.empty(2**50, device=DEVICE))
    with pytest.raises(BudgetError, match="kernel drawn \\(model.py:1\\): the device's memory does not hold"):
        kernel.launch([], [], [], torch.empty(0), True)
    monkey.undo()


def test_tables_wait_in_the_memory_of_the_cpu() -> None:
    """Equal gradients in a fraction of the device's memory: features are on the CPU, of eight parts one is at work."""
    from torch_geometric.nn import SAGEConv

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(SAGEConv(64, 64) for _ in range(4))

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            for conv in self.convs:
                x = conv(x, edge_index).relu()
            return x.mean(1)

    nodes = 200_000
    source = torch.randint(nodes, (nodes,))
    edge_index, x = torch.stack([source, (source + 1) % nodes]), torch.randn(nodes, 64)
    parts = sarc.partition(edge_index, num_nodes=nodes, assignment=torch.arange(nodes) * 8 // nodes)
    model, found = Net().to(DEVICE), []
    for offload in (None, "cpu"):
        compiled = sarc.compile(model, parts, offload=offload, exchange="ring", memory_budget=float("inf"))
        given = x if offload else x.to(DEVICE)
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            loss = compiled(given, edge_index.to(given.device)).square().sum()
            gradients = torch.autograd.grad(loss, [*model.parameters()])
        found.append((torch.cuda.max_memory_allocated() - before, [g.cpu() for g in gradients]))
    (here, ours), (away, theirs) = found
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert away < here / 2
