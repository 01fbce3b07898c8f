"""Tables that wait elsewhere while other parts run: nothing reads one that is away, and gradients are the same.

Where there is no GPU, the tier is a stand-in that copies within the CPU's memory. It spoils what it leaves behind and
inverts the bits of what waits, so that a value which is read without having been brought back is another one.
`tests/gpu` has the real one.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, SAGEConv

import sarc
from sarc.errors import GraphError, OptionError
from sarc.runtime.host_tier import HostTier

N, F = 60, 8


class StandIn(HostTier):
    """A tier whose device and whose host are the CPU."""

    def __init__(self) -> None:
        super().__init__(smallest=1)
        self.waiting: dict[int, Tensor] = {}  # by address; kept, so that no address is used twice
        self.moves = 0

    def holds(self, value: Tensor) -> bool:
        return value.untyped_storage().data_ptr() in self.waiting

    def empty(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def _sent(self, flat: Tensor) -> Tensor:
        self.moves += 1
        made = flat.bitwise_not()  # nobody may read it here
        flat.fill_(255)
        self.waiting[made.untyped_storage().data_ptr()] = made
        return made

    def _brought(self, flat: Tensor, device: torch.device) -> Tensor:
        raw = flat.contiguous().reshape(-1).view(torch.uint8)
        return raw.bitwise_not().view(flat.dtype).view(flat.shape)


class Net(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        layer = {
            "GAT": lambda: GATConv(F, F // 2, heads=2, dropout=0.3),
            "SAGE max": lambda: SAGEConv(F, F, aggr="max"),
        }[kind]
        self.convs = nn.ModuleList(layer() for _ in range(2))
        self.norm = nn.BatchNorm1d(F)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.norm(conv(x, edge_index)).relu() + x
        return x * x.max(dim=1, keepdim=True).values  # whose places are kept, as integers


def graph() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randint(N, (2, 400), generator=random), torch.randint(0, 3, (N,), generator=random)


@pytest.mark.parametrize("exchange", ["ring", "whole"])
@pytest.mark.parametrize(("kind", "backend"), [
    ("GAT", "reference"), ("SAGE max", "reference"), ("GAT", "auto"),
])  # fmt: skip
@pytest.mark.parametrize("features", [False, True], ids=["features are data", "features learn"])
def test_equal_steps(kind: str, backend: str, exchange: str, features: bool, monkeypatch) -> None:
    """Two steps, the second with what the first has kept of its data."""
    monkeypatch.setattr("sarc.frontends.check_inputs.check_devices", lambda *_: None)
    edge_index, owner = graph()
    torch.manual_seed(0)
    model, x = Net(kind), torch.randn(N, F, requires_grad=features)
    found = []
    for tier in (None, StandIn()):
        compiled = sarc.compile(
            model, owner, exchange=exchange, seed=1, backend=backend, memory_budget=float("inf")
        )
        compiled._tier = tier
        wrt = [*model.parameters(), *([x] if features else [])]
        steps = []
        for _ in range(2):
            out = compiled(x, edge_index)
            steps.append([out, *torch.autograd.grad(out.square().sum(), wrt)])
        found.append(steps)
    assert isinstance(tier, StandIn) and tier.moves > 20
    for here, away in zip(*found, strict=True):
        for a, b in zip(here, away, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_values_that_share_memory_share_it_elsewhere() -> None:
    tier, table = StandIn(), torch.arange(12.0).view(3, 4)
    env = {"table": table, "turned": table.t(), "results": [table[1:], torch.ones(2)], "other": torch.zeros(3)}
    tier.send(env, ["turned"])
    assert tier.moves == 1 and torch.isnan(table).all()
    assert tier.holds(env["table"]) and tier.holds(env["results"][0]) and not tier.holds(env["other"])
    tier.bring(env, ["table"], torch.device("cpu"))
    env["table"][2, 0] = 50.0
    assert env["turned"][0, 2] == env["results"][0][1, 0] == 50.0
    torch.testing.assert_close(env["turned"][:, 0], torch.arange(4.0))


def test_a_model_on_the_cpu_is_refused() -> None:
    edge_index, owner = graph()
    compiled = sarc.compile(SAGEConv(F, F), owner, offload="cpu")
    with pytest.raises(GraphError, match=r"expected the model on a GPU with offload='cpu'.*offload='disk'"):
        compiled(torch.randn(N, F), edge_index)


def test_a_directory_is_for_a_disk() -> None:
    with pytest.raises(OptionError, match="offload_dir: expected offload='disk' with it, got offload='cpu'"):
        sarc.compile(SAGEConv(F, F), 2, offload="cpu", offload_dir="/tmp")
