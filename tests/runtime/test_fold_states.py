"""Softmaxes whose edges are at several parts: maximum and sums travel in one message, and nothing is lost of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sarc
from sarc.runtime.whole_exchange import combine_states

N, F = 30, 6


class Attention(nn.Module):
    """One softmax over a node's in-edges; scores are given, so that they may be extreme."""

    def forward(self, score: Tensor, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        logit = score[src]
        index = dst[:, None].expand_as(logit)
        most = torch.full((x.shape[0], 2), -torch.inf, dtype=x.dtype).scatter_reduce(0, index, logit, "amax").detach()
        weight = (logit - most[dst]).exp()
        total = torch.zeros((x.shape[0], 2), dtype=x.dtype).index_add(0, dst, weight)
        out = torch.zeros((x.shape[0], 2, F), dtype=x.dtype).index_add(0, dst, weight[:, :, None] * x[src][:, None])
        return out / total[:, :, None].clamp(min=1e-30)


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    edge_index = torch.randint(0, N, (2, 150), generator=generator)
    edge_index[1] %= N - 4  # the last four have no in-edge
    hubs = torch.cartesian_prod(torch.arange(N), torch.tensor([0, 1])).T  # with edges from every part, for covers
    edge_index = torch.cat([edge_index, hubs], dim=1)
    return edge_index, torch.randint(0, 3, (N,), generator=generator)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("placement", ["src", "cover"])
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_equals_the_plain_module(placement: str, backend: str, spread: float) -> None:
    """With a spread of hundreds the sums of one part vanish beside those of another, and none overflow."""
    edge_index, owner = graph()
    torch.manual_seed(0)
    score = (spread * torch.randn(N, 2)).requires_grad_()
    x = torch.randn(N, F, requires_grad=True)
    compiled = sarc.compile(Attention(), owner, placement=placement, exchange="whole", backend=backend)
    wanted, out = Attention()(score, x, edge_index), compiled(score, x, edge_index)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(out, wanted)
    given = torch.randn_like(out)
    for mine, plain in zip(
        torch.autograd.grad(out, (score, x), given), torch.autograd.grad(wanted, (score, x), given), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
    assert "sum e^-0" in compiled.program("partitioned forward")


def test_no_answer_is_waited_for() -> None:
    """At the source: scores of the destination go out, maximum and sums come back."""
    from torch_geometric.nn import GATConv

    edge_index, owner = graph()
    compiled = sarc.compile(GATConv(F, 4, heads=2), owner, placement="src", exchange="whole", backend="reference")
    compiled(torch.randn(N, F, requires_grad=True), edge_index)
    text = compiled.program("partitioned forward")
    assert text.count("= fetch(") == text.count("= give_back(") == 1
    need = next(choice.need for stage, choice in compiled.plan().placements if stage == "forward")
    assert (need.near_fetch, need.near_return) == (4 * 2, 4 * (2 + 2 + 2 * 4))


def test_rounded_messages_wait_for_the_maximum() -> None:
    """A maximum that is rounded on its way is another one than the sums are relative to."""
    from torch_geometric.nn import GATConv

    edge_index, owner = graph()
    model = GATConv(F, 4, heads=2)
    compiled = sarc.compile(
        model, owner, placement="src", exchange="whole", backend="reference", comm_dtype=torch.bfloat16
    )
    x = torch.randn(N, F, requires_grad=True)
    torch.testing.assert_close(compiled(x, edge_index), model(x, edge_index), rtol=0.05, atol=0.05)
    assert "sum e^-" not in compiled.program("partitioned forward")


def test_infinite_and_missing_maxima() -> None:
    inf = torch.inf
    most, share = torch.tensor([[-inf], [2.0], [-inf], [torch.nan]]), torch.tensor([[-inf], [-inf], [1.0], [0.0]])
    sums, part = torch.tensor([[0.0], [3.0], [0.0], [1.0]]), torch.tensor([[0.0], [0.0], [5.0], [1.0]])
    combine_states(torch.arange(4), (most, share), [(sums, part)])
    torch.testing.assert_close(most, torch.tensor([[-inf], [2.0], [1.0], [torch.nan]]), equal_nan=True)
    torch.testing.assert_close(sums, torch.tensor([[0.0], [3.0], [5.0], [torch.nan]]), equal_nan=True)


@pytest.mark.parametrize("placement", ["src", "cover"])
def test_edges_that_are_masked_in_one_part_alone(placement: str) -> None:
    from torch_geometric.utils import softmax

    class Masked(nn.Module):
        def forward(self, score: Tensor, mask: Tensor, edge_index: Tensor) -> Tensor:
            source, dst = edge_index
            weight = softmax(score[source].masked_fill(~mask, -torch.inf), dst, num_nodes=score.shape[0])
            return torch.zeros_like(score).index_add(0, dst, weight * score[source])

    edge_index, owner = graph()
    mask = (owner[edge_index[0]] == 1) | (torch.bincount(edge_index[1][owner[edge_index[0]] == 1], minlength=N) == 0)[
        edge_index[1]
    ]
    score = torch.randn(N, dtype=torch.float64)
    compiled = sarc.compile(Masked(), owner, placement=placement, exchange="whole", backend="reference")
    wanted = Masked()(score, mask, edge_index)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(compiled(score.requires_grad_(), mask, edge_index), wanted)


def test_a_softmax_over_far_rows() -> None:
    from torch_geometric.nn import GATConv

    edge_index, owner = graph()
    model, x = GATConv(F, 4, heads=2, flow="target_to_source"), torch.randn(N, F)
    compiled = sarc.compile(model, owner, placement="dst", exchange="whole", backend="reference")
    torch.testing.assert_close(compiled(x, edge_index), model(x, edge_index))
