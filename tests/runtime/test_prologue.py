"""What depends on data alone is made once a feature matrix: exactly, and again when the matrix changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from sarc.ir.exchange import ExchangeOptions
from sarc.pipeline import Pipeline
from sarc.runtime.module import CompiledModule
from sarc.runtime.prologue import Feature, checksum
from sarc.runtime.replay import replay
from tests.equivalence.case import F, standard_cut

NODES = 23


class Layers(nn.Module):
    """Layers with relu between them, and dropout on x."""

    def __init__(self, *layers: nn.Module, dropout: float = 0.0):
        super().__init__()
        self.layers, self.dropout = nn.ModuleList(layers), dropout

    def forward(self, x, edge_index):
        x = nn.functional.dropout(x, self.dropout, self.training)
        for layer in self.layers[:-1]:
            x = layer(x, edge_index).relu()
        return self.layers[-1](x, edge_index)


class Scaled(nn.Module):
    """Two sums over neighbours with the degrees between them, then a narrower product, as in DGL's SGConv: rows of a
    bound value (the degrees) are fetched beside those of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, F - 1)

    def forward(self, x, edge_index):
        src, dst = edge_index
        degree = torch.zeros(x.size(0), dtype=x.dtype).index_add(0, dst, torch.ones(dst.numel(), dtype=x.dtype))
        scale = degree.clamp(min=1).pow(-0.5).unsqueeze(1)
        for _ in range(2):
            x = torch.zeros_like(x).index_add(0, dst, (x * scale)[src]) * scale
        return self.lin(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gat": lambda: Layers(GATConv(F, 5, heads=2), GATConv(10, 3)),
    "gat, dropout": lambda: Layers(GATConv(F, 5, heads=2), GATConv(10, 3), dropout=0.4),
    "gcn": lambda: Layers(GCNConv(F, F), GCNConv(F, 3)),
    "gcn, dropout": lambda: Layers(GCNConv(F, F), GCNConv(F, 3), dropout=0.4),
    "sage": lambda: Layers(SAGEConv(F, 9), SAGEConv(9, 3)),
    "scaled": Scaled,
    "max": lambda: Layers(SAGEConv(F, F, aggr="max", project=True), SAGEConv(F, 3)),
}


def build(name: str, num_parts: int, backend: str = "reference", objective: str = "bytes", **options):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    cut = standard_cut(num_parts)
    pipeline = Pipeline(backend, exchange=ExchangeOptions(**options), objective=objective)
    made = CompiledModule(model, cut.partitions(), pipeline, spaces={"x": "N"}, prefetch=1, seed=3)
    return made, model, cut.edge_index


def features(seed: int = 0) -> Tensor:
    return torch.randn(NODES, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(compiled: CompiledModule, model: nn.Module, x: Tensor, edge_index: Tensor) -> int:
    """A training step, compared with the plain module's; returns the bytes it sent."""
    before = compiled.traffic()["sent_bytes"]
    model.zero_grad()
    out = compiled(x, edge_index)
    out.square().sum().backward()
    found = [out.detach(), *(p.grad for p in model.parameters())]
    model.zero_grad()
    with replay(compiled):
        reference = model(x, edge_index)
    reference.square().sum().backward()
    for got, expected in zip(found, [reference.detach(), *(p.grad for p in model.parameters())], strict=True):
        assert float((got - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))
    return compiled.traffic()["sent_bytes"] - before


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", list(MODELS))
def test_steps_equal_the_plain_module(name: str, num_parts: int, backend: str) -> None:
    compiled, model, edge_index = build(name, num_parts, backend=backend)
    x = features()
    first = step(compiled, model, x, edge_index)
    second = step(compiled, model, x, edge_index)
    prologue = compiled._called().bound.prologue
    assert second == compiled.plan().sent_bytes
    if num_parts == 1:
        assert (prologue is not None) == (name in ("gcn", "sage", "scaled"))
        return
    once = sum(e.sent_bytes for e in compiled.plan().prologue_exchanges)
    assert prologue is not None and first - second == once > 0
    assert sum(size for _, _, size in compiled.plan().prologue) == prologue.kept_bytes > 0


@pytest.mark.parametrize("name", ["gat", "gcn", "max"])
def test_a_first_layer_exchanges_nothing(name: str) -> None:
    torch.manual_seed(0)
    layers = MODELS[name]().layers
    model, cut = Layers(layers[0]).double(), standard_cut(4)
    pipeline = Pipeline("reference", objective="bytes")
    compiled = CompiledModule(model, cut.partitions(), pipeline, spaces={"x": "N"}, prefetch=1, seed=3)
    assert step(compiled, model, features(), cut.edge_index) > 0
    assert step(compiled, model, features(), cut.edge_index) == 0
    backward = compiled.program("partitioned backward")
    assert name != "gcn" or "edge_call" not in backward


def _in_place(x: Tensor) -> Tensor:
    return x.add_(1)


def _one_number(x: Tensor) -> Tensor:
    x[3, 1] = 7.0
    return x


def _behind_data(x: Tensor) -> Tensor:
    x.data[5] *= 2
    return x


def _through_numpy(x: Tensor) -> Tensor:
    x.numpy()[2] = 1.5
    return x


def _rows_change_places(x: Tensor) -> Tensor:
    rows = x.numpy()
    rows[[0, 7]] = rows[[7, 0]]
    return x


def _numbers_of_a_row_change_places(x: Tensor) -> Tensor:
    row = x.numpy()[4]
    row[[0, 1]] = row[[1, 0]]
    return x


def _replaced(x: Tensor) -> Tensor:
    return x + 1


@pytest.mark.parametrize(
    "change",
    [
        _in_place,
        _one_number,
        _behind_data,
        _through_numpy,
        _rows_change_places,
        _numbers_of_a_row_change_places,
        _replaced,
    ],
)
@pytest.mark.parametrize("name", ["gat", "gcn"])
def test_a_changed_matrix_is_noticed(name: str, change: Callable[[Tensor], Tensor]) -> None:
    compiled, model, edge_index = build(name, 4)
    x = features()
    first = step(compiled, model, x, edge_index)
    usual = step(compiled, model, x, edge_index)
    x = change(x)
    assert step(compiled, model, x, edge_index) == first > usual
    assert step(compiled, model, x, edge_index) == usual


def test_a_copy_is_the_same_matrix() -> None:
    compiled, model, edge_index = build("gat", 4)
    first = step(compiled, model, features(), edge_index)
    assert 0 < step(compiled, model, features(), edge_index) < first


def test_what_the_user_frees_is_not_taken_for_another() -> None:
    x = features()
    kept = Feature.of(x)
    assert kept.is_still(x) and kept.is_still(x.clone()) and not kept.is_still(None)
    assert not kept.is_still(x[:-1]) and not kept.is_still(x.float()) and not kept.is_still(-x)
    assert kept.is_still(x.t().contiguous().t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("size", [(0, 3), (1,), (5, 3), (67, 41), (300, 64)])
def test_the_sum_knows_every_place(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    x = torch.randn(size).to(dtype)
    assert checksum(x) == checksum(x.clone())
    flat = x.reshape(-1)
    for i in range(0, flat.numel() - 1, max(7, flat.numel() // 50 | 1)):
        swapped = flat.clone()
        swapped[[i, i + 1]] = flat[[i + 1, i]]
        assert torch.equal(swapped, flat) or checksum(swapped) != checksum(x)
    assert checksum(flat[1:]) == checksum(flat[1:].clone())  # whatever its alignment


def test_each_backward_reads_what_its_forward_read() -> None:
    compiled, model, edge_index = build("gat", 3)
    one, other = features(1), features(2)
    out = compiled(one, edge_index)
    compiled(other, edge_index)
    out.square().sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(one, edge_index).square().sum().backward()
    for got, parameter in zip(found, model.parameters(), strict=True):
        assert torch.allclose(got, parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{"exchange": "sar"}, {"objective": "memory"}, {"halo_budget": 0}])
def test_where_nothing_may_be_kept(options: dict) -> None:
    compiled, model, edge_index = build("gat", 4, **options)
    assert step(compiled, model, features(), edge_index) == step(compiled, model, features(), edge_index) > 0
    assert compiled._called().bound.prologue is None


def test_a_matrix_that_needs_a_gradient_is_no_data() -> None:
    compiled, _, edge_index = build("gcn", 3)
    compiled(features().requires_grad_(), edge_index).sum().backward()
    assert compiled._called().bound.prologue is None


def test_evaluation_keeps_its_own() -> None:
    compiled, model, edge_index = build("gcn", 3)
    x = features()
    compiled.eval()
    with torch.no_grad():
        for _ in range(2):
            before = compiled.traffic()["sent_bytes"]
            assert torch.allclose(compiled(x, edge_index), model.eval()(x, edge_index), rtol=0, atol=1e-10)
    assert compiled.traffic()["sent_bytes"] - before == compiled.plan().sent_bytes


def test_results_of_data_alone_are_not_kept() -> None:
    class Mean(nn.Module):
        def forward(self, x, edge_index):
            sums = x.new_zeros(x.shape).index_add(0, edge_index[1], x[edge_index[0]])
            return sums / 2

    cut = standard_cut(3)
    compiled = CompiledModule(Mean(), cut.partitions(), Pipeline("reference"), spaces={"x": "N"}, prefetch=1, seed=3)
    compiled(features(), cut.edge_index)
    assert compiled._called().bound.prologue is None
