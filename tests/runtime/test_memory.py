"""Memory of large tensors: kept from step to step, or free between passes where memory is the objective."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import SAGEConv

import sarc
from sarc.ir.space import ValueType
from sarc.runtime.memory import Pool, compute_into

NODES, WIDTH = 20_000, 32  # a table is 2.4 MiB


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({}, True),
        ({"memory_budget": float("inf")}, True),
        ({"memory_budget": "1GiB"}, False),
        ({"objective": "memory"}, False),
    ],
    ids=str,
)
def test_the_callers_loss_finds_the_room_of_a_pass(options: dict[str, object], keeps: bool) -> None:
    edges = torch.randint(NODES, (2, 1000))
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rest = SAGEConv(WIDTH, WIDTH), model

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            return self.rest(self.conv(x, edge_index).exp())

    compiled = sarc.compile(Net(), sarc.partition(edges, num_nodes=NODES, num_parts=1), **options)  # type: ignore
    out = compiled(torch.randn(NODES, WIDTH), edges)
    assert bool(compiled.release_memory()) is keeps
    out.sum().backward()


def test_a_block_is_used_again_and_released() -> None:
    pool = Pool()
    first = pool.empty((1 << 19,), torch.float32)
    address = first.data_ptr()
    del first
    again = pool.empty((500_000,), torch.float32)
    assert again.data_ptr() == address and pool.free_bytes == 0
    del again
    pool.rest()
    assert pool.free_bytes
    pool.release()
    assert pool.free_bytes == 0


def test_widened_rows_lie_in_the_pool() -> None:
    graph = torch.fx.Graph()
    x = torch.randn(600, 512)
    node = graph.call_function(torch.ops.sarc.widen_rows.default, (graph.placeholder("x"), 0, 700))
    node.meta["type"] = ValueType((700, 512), torch.float32)
    pool = Pool()
    made = compute_into(node, (x, 0, 700), {}, pool, (700, 512))
    assert made is not None and torch.equal(made, torch.cat([x, torch.zeros(100, 512)]))
    del made
    assert pool.free_bytes > 0
