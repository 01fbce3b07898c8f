"""What edge programs need, where they run, and that what was planned is sent."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sarc
from sarc.errors import ExchangeError, OptionError
from sarc.ir.placement import Choice
from sarc.runtime.check_sent import check_sent, scheduled

N, F, H = 40, 12, 2


def graph(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, N, (2, 200), generator=generator)
    return edge_index, torch.randint(0, 4, (N,), generator=generator)


def trained(module: nn.Module, **options):
    edge_index, assignment = graph()
    compiled = sarc.compile(module, assignment, backend="reference", **options)
    # A gradient of x: what depends on data alone would be exchanged once, apart.
    compiled(torch.randn(N, F, requires_grad=True), edge_index).sum().backward()
    return compiled


def choices(compiled, stage: str) -> list[Choice]:
    return [choice for of, choice in compiled.plan().placements if of == stage]


def two_layers(layer: type, *args, **kwargs) -> nn.Module:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = layer(F, *args, **kwargs), layer(F, *args, **kwargs)

        def forward(self, x, edge_index):
            return self.b(self.a(x, edge_index).relu(), edge_index)

    return Net()


def test_a_sum_fetches_forward_and_returns_backward() -> None:
    from torch_geometric.nn import SAGEConv

    compiled = trained(two_layers(SAGEConv, F), placement="dst")
    forward, backward = choices(compiled, "forward"), choices(compiled, "backward")
    row = 4 * F
    assert [(c.need.far_fetch, c.need.far_return) for c in forward] == [(row, 0), (row, 0)]
    assert [(c.need.near_fetch, c.need.near_return) for c in forward] == [(0, row), (0, row)]
    assert [(c.need.far_fetch, c.need.far_return) for c in backward] == [(0, row), (0, row)]
    assert [(c.need.near_fetch, c.need.near_return) for c in backward] == [(row, 0), (row, 0)]


def test_attention_is_cheapest_at_the_source_backward() -> None:
    """Forward z and el of a source; backward the gradient, er and two of the softmax, for the gradient of er."""
    from torch_geometric.nn import GATConv

    compiled = trained(two_layers(GATConv, F // H, H, add_self_loops=False), placement="dst", exchange="whole")
    for choice in choices(compiled, "forward"):
        assert len(choice.need.calls) == 2, "the maximum and the sums read the same rows"
        assert (choice.need.far_fetch, choice.need.far_return) == (4 * (F + H), 0)
    for choice in choices(compiled, "backward"):
        assert choice.need.weights == (4 * (2 * F + 2 * H), 4 * (F + 4 * H))


def test_a_gradient_of_averaged_heads_travels_once() -> None:
    """One head's width and the sums that it is divided by, not the product."""
    from torch_geometric.nn import GATConv

    compiled = trained(two_layers(GATConv, F, H, concat=False, add_self_loops=False), placement="src", exchange="whole")
    for choice in choices(compiled, "backward"):
        assert choice.need.near_fetch == 4 * (F + 4 * H)


def test_features_travel_before_a_product_that_widens_them() -> None:
    """Attention of 8 F features on F: x travels with the scores, which are told by their maximum."""
    from torch_geometric.nn import GATConv

    sent = {}
    for objective in ("bytes", "time"):
        compiled = trained(
            GATConv(F, 8 * F, add_self_loops=False), objective=objective, placement="dst", exchange="whole"
        )
        (choice,) = choices(compiled, "forward")
        sent[objective] = choice.need.far_fetch
    assert sent == {"bytes": 4 * (F + 1), "time": 4 * (8 * F + 1)}


def test_choices_are_the_cheapest_of_all_sites() -> None:
    from torch_geometric.nn import GATConv

    module = two_layers(GATConv, F // H, H, add_self_loops=False)
    prices = {"bytes": lambda c: c.nbytes, "memory": lambda c: c.memory, "time": lambda c: c.seconds}
    for objective, price in prices.items():
        compiled = trained(module, objective=objective)
        for choice in (*choices(compiled, "forward"), *choices(compiled, "backward")):
            assert {c.site for c in choice.candidates} == {"dst", "src", "cover"}
            best = min(map(price, choice.candidates))
            assert price(choice.chosen) <= best / 0.9 if objective == "time" else price(choice.chosen) == best


def test_edge_tensors_of_the_step_stay_at_home() -> None:
    class Weighted(nn.Module):
        def forward(self, x, edge_index, weight):
            return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]] * weight[:, None])

    edge_index, assignment = graph()
    compiled = sarc.compile(Weighted(), assignment, placement="cover", backend="reference", spaces={"weight": "E"})
    compiled(torch.randn(N, F), edge_index, torch.rand(200))
    (choice,) = choices(compiled, "forward")
    assert choice.chosen is None
    assert "edge tensor" in choice.reason
    assert choice.reason in str(compiled.plan())


def test_a_run_that_sends_something_else_is_an_error() -> None:
    from torch_geometric.nn import GCNConv

    edge_index, assignment = graph()
    compiled = sarc.compile(GCNConv(F, F), assignment, exchange="ring", backend="reference")
    compiled(torch.randn(N, F, requires_grad=True), edge_index)
    schedule = next(s for s in compiled._called().bound.schedules["forward"] if s.sends())
    planned = scheduled(schedule)
    name, peer = next(iter(planned))
    check_sent(schedule, planned)
    planned[name, peer] += 4
    with pytest.raises(ExchangeError, match=rf"internal error: forward %{name}, part \d to part {peer}: \d+ B planned"):
        check_sent(schedule, planned)


@pytest.mark.parametrize("option", [{"placement": "source"}, {"objective": "speed"}])
def test_unknown_words_are_refused(option) -> None:
    (name, given), = option.items()
    with pytest.raises(OptionError, match=f"{name}: expected one of .*, got '{given}'"):
        sarc.compile(nn.Linear(2, 2), 2, **option)
