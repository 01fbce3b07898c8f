"""C++ kernels equal the reference backend: outputs and gradients, in one part and in several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sarc
from sarc.codegen import build
from sarc.errors import CodegenError

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")


class Attention(nn.Module):
    """An attention layer nobody wrote: tanh scores, a temperature, a gate, two folds over one softmax."""

    def __init__(self, features: int, heads: int, width: int):
        super().__init__()
        self.heads, self.width = heads, width
        self.query = nn.Linear(features, heads * width)
        self.key = nn.Linear(features, heads * width)
        self.temperature = nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        query = self.query(x).view(-1, self.heads, self.width)
        key = self.key(x).view(-1, self.heads, self.width)
        score = (torch.tanh(query[dst] * key[src])).sum(-1) / self.temperature + weight.unsqueeze(-1)
        nodes = x.size(0)
        spread = dst.view(-1, 1).expand_as(score)
        peak = score.new_full((nodes, self.heads), float("-inf")).scatter_reduce(0, spread, score.detach(), "amax")
        share = (score - peak[dst]).exp()
        total = score.new_zeros(nodes, self.heads).scatter_add(0, spread, share)
        share = share / total[dst]
        gate = torch.sigmoid(weight).view(-1, 1, 1)
        mixed = torch.zeros_like(key).index_add(0, dst, key[src] * share.unsqueeze(-1) * gate)
        return mixed.flatten(1), torch.zeros_like(score).new_zeros(nodes, self.heads).index_add(0, dst, share * share)


class Extremes(nn.Module):
    """Maximum and minimum of neighbours, rows without any left at zero."""

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        src, dst = edge_index
        spread = dst.view(-1, 1).expand(-1, x.size(1))
        top = torch.zeros_like(x).scatter_reduce(0, spread, x[src], "amax", include_self=False)
        low = torch.zeros_like(x).scatter_reduce(0, spread, x[src], "amin", include_self=False)
        return top * 2 + low


class WeightedSum(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        src, dst = edge_index
        return torch.zeros_like(x).index_add(0, dst, x[src] * weight.unsqueeze(-1))


def random_graph(nodes: int, edges: int, seed: int = 0) -> Tensor:
    """Directed, with repeated edges, self loops and isolated nodes."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, max(nodes - 3, 1), (2, edges), generator=generator)
    edge_index[:, : edges // 10] = edge_index[:, edges // 10 : 2 * (edges // 10)]
    return edge_index


def run(model: nn.Module, edge_index: Tensor, nodes: int, features: int, parts: int, backend: str, dtype=torch.float64):
    """Outputs and gradients of one step."""
    torch.manual_seed(1)
    x = torch.randn(nodes, features, dtype=dtype, requires_grad=True)
    weight = torch.randn(edge_index.shape[1], dtype=dtype, requires_grad=True)
    compiled = sarc.compile(
        model, sarc.partition(edge_index, num_nodes=nodes, num_parts=parts, method="random"), backend=backend
    )
    out = compiled(x, edge_index, weight)
    out = out if isinstance(out, tuple) else (out,)
    sum((o * torch.linspace(-1, 1, o.numel(), dtype=dtype).view_as(o)).sum() for o in out).backward()
    grads = [x.grad, weight.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    kernels = [len(k) for k in compiled._last.binding.kernels.values()]
    return [o.detach() for o in out] + [g for g in grads if g is not None], kernels


def assert_equal(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        worst = (a - b).abs().max() if b.numel() else torch.tensor(0.0)
        assert worst <= tolerance * max(1.0, float(b.abs().max()) if b.numel() else 1.0)


@pytest.mark.parametrize("parts", [1, 3])
def test_attention_nobody_wrote_equals_reference(parts: int) -> None:
    model = Attention(6, 3, 5).double()
    graph = random_graph(40, 300)
    expected, _ = run(model, graph, 40, 6, parts, "reference")
    got, kernels = run(model, graph, 40, 6, parts, "auto")
    assert_equal(got, expected, 1e-10)
    assert kernels[0] > 0 and kernels[1] > 0


@pytest.mark.parametrize("width", [1, 3, 17, 257])
def test_widths(width: int) -> None:
    graph = random_graph(30, 200)
    expected, _ = run(WeightedSum(), graph, 30, width, 1, "reference")
    got, kernels = run(WeightedSum(), graph, 30, width, 1, "cpp")
    assert_equal(got, expected, 1e-10)
    assert kernels == [1, 1]


@pytest.mark.parametrize(("nodes", "edges"), [(5, 0), (1, 4), (40, 300)])
def test_extremes_and_small_graphs(nodes: int, edges: int) -> None:
    graph = random_graph(nodes, edges)
    expected, _ = run(Extremes(), graph, nodes, 4, 2, "reference")
    got, kernels = run(Extremes(), graph, nodes, 4, 2, "auto")
    assert_equal(got, expected, 1e-10)
    assert sum(kernels) > 0


def test_a_hub_of_many_edges_and_any_number_of_threads() -> None:
    """One row with 20,000 edges among short rows; the same bits for one thread and two."""
    graph = random_graph(200, 1_000)
    hub = torch.stack([torch.randint(0, 200, (20_000,)), torch.zeros(20_000, dtype=torch.int64)])
    graph = torch.cat([graph, hub], dim=1)
    expected, _ = run(WeightedSum(), graph, 200, 8, 1, "reference")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = run(WeightedSum(), graph, 200, 8, 1, "cpp")
        torch.set_num_threads(2)
        two, _ = run(WeightedSum(), graph, 200, 8, 1, "cpp")
    finally:
        torch.set_num_threads(threads)
    assert_equal(one, expected, 1e-10)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("parts", [1, 3])
def test_threads_share_the_hub_of_a_softmax(parts: int) -> None:
    """One row with 70,000 edges: its phases stay apart and go in pieces; the same bits for one thread and two."""
    graph = random_graph(200, 1_000)
    hub = torch.stack([torch.randint(0, 200, (70_000,)), torch.zeros(70_000, dtype=torch.int64)])
    with_hub = torch.cat([graph, hub], dim=1)
    assert edge_calls(graph, "time", parts) < edge_calls(with_hub, "time", parts)
    assert edge_calls(graph, "memory", parts) == edge_calls(with_hub, "memory", parts)
    model = Attention(8, 2, 4).double()
    expected, _ = run(model, with_hub, 200, 8, parts, "reference")
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(run(model, with_hub, 200, 8, parts, "cpp")[0])
    finally:
        torch.set_num_threads(threads)
    assert_equal(found[0], expected, 1e-10)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def edge_calls(edge_index: Tensor, objective: str, parts: int) -> int:
    """Edge programs of a part's forward program."""
    cut = sarc.partition(edge_index, num_nodes=200, num_parts=parts, method="random")
    compiled = sarc.compile(Attention(8, 2, 4), cut, objective=objective)
    compiled(torch.randn(200, 8), edge_index, torch.randn(edge_index.shape[1]))
    return compiled.program("partitioned forward").count("= edge_call(")


def test_float32_and_not_a_number() -> None:
    """float32 sums of a few dozen terms agree to 1e-5; NaN and infinities pass through as in torch."""
    graph = random_graph(30, 200)
    expected, _ = run(WeightedSum(), graph, 30, 9, 1, "reference", torch.float32)
    got, _ = run(WeightedSum(), graph, 30, 9, 1, "cpp", torch.float32)
    assert_equal(got, expected, 1e-5)
    x = torch.randn(30, 4, dtype=torch.float64)
    x[3, 1], x[4, 2], x[5, 0] = float("nan"), float("inf"), float("-inf")
    weight = torch.ones(200, dtype=torch.float64)
    parts = sarc.partition(graph, num_nodes=30, num_parts=1)
    for model in (Extremes(), WeightedSum()):
        plain = model(x, graph, weight)
        out = sarc.compile(model, parts, backend="cpp")(x, graph, weight)
        torch.testing.assert_close(out, plain, equal_nan=True, rtol=1e-12, atol=1e-12)


def test_dropout_draws_equal_the_reference() -> None:
    """Kernels redraw the masks of the plain-torch generator, for every number of parts."""

    class Dropped(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
            src, dst = edge_index
            message = torch.nn.functional.dropout(x[src], 0.4) * weight.unsqueeze(-1)
            return torch.zeros_like(x).index_add(0, dst, message)

    graph = random_graph(30, 200)
    expected, _ = run(Dropped(), graph, 30, 7, 1, "reference")
    for parts in (1, 3):
        got, kernels = run(Dropped(), graph, 30, 7, parts, "cpp")
        assert_equal(got, expected, 1e-10)
        assert sum(kernels) > 0


def test_a_per_edge_layer_stays_with_the_reference() -> None:
    class PerEdge(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
            src, dst = edge_index
            message = self.layer(torch.cat([x[src], x[dst]], -1) * weight.unsqueeze(-1))
            return x.new_zeros(x.size(0), 4).index_add(0, dst, message)

    model, graph = PerEdge().double(), random_graph(30, 200)
    expected, _ = run(model, graph, 30, 4, 2, "reference")
    got, kernels = run(model, graph, 30, 4, 2, "cpp")
    assert_equal(got, expected, 1e-10)
    assert kernels[0] == 0


def test_no_compiler_is_said_at_compile(monkeypatch) -> None:
    monkeypatch.setattr(build, "compiler", lambda: None)
    parts = sarc.partition(random_graph(5, 4), num_nodes=5, num_parts=1)
    with pytest.raises(CodegenError, match="no C\\+\\+ compiler found"):
        sarc.compile(WeightedSum(), parts, backend="cpp")
