"""What goes between parts: paired messages, exact bytes, bounded chunks; and what is kept for the backward."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import sarc
from sarc.errors import ExchangeError
from sarc.ir.exchange import ExchangeOptions
from sarc.ir.schedule import PostRecv, Send
from sarc.ir.space import Rows
from sarc.pipeline import Pipeline
from sarc.runtime.module import CompiledModule
from tests.runtime.exchanges import FEATURES, build, cut_graphs, messages, observe, run_step, schedules


class OneCapture(Pipeline):
    """Captures a layer once: only the partition differs between examples."""

    def __init__(self, exchange: str) -> None:
        super().__init__(exchange=ExchangeOptions(exchange))
        self._front: dict[object, object] = {}
        self._back: dict[object, object] = {}

    def front(self, module, arguments, call, answers, *rest):
        key = (tuple(arguments), tuple(answers))
        if key not in self._front:
            self._front[key] = super().front(module, arguments, call, answers, *rest)
        return self._front[key]

    def back(self, stages, wrt, halos, rows):
        key = (id(stages), wrt)
        if key not in self._back:
            self._back[key] = super().back(stages, wrt, halos, rows)
        return self._back[key]


PIPELINES = {(layer, way): OneCapture(way) for layer in ("gat", "sage max", "gcn") for way in ("ring", "whole", "sar")}

# Four parts of 30 nodes, of which one is empty: returns of one round and fetches of another go between the same two
# parts, and were posted in different orders on the two sides.
CROSSING = (
    torch.randint(0, 29, (2, 120), generator=torch.Generator().manual_seed(0)),
    torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(4)),
    4,
)


@pytest.mark.parametrize("way, prefetch", [("ring", 0), ("ring", 1), ("ring", 2), ("whole", 1), ("sar", 1)])
@pytest.mark.parametrize("layer", ["gat", "sage max", "gcn"])
@given(cut=cut_graphs())
@example(cut=CROSSING)
def test_exchange(layer: str, way: str, prefetch: int, cut: tuple[Tensor, Tensor, int]) -> None:
    edge_index, assignment, num_parts = cut
    parts = sarc.partition(edge_index, num_nodes=assignment.numel(), num_parts=num_parts, assignment=assignment)
    model = build(layer)
    pipeline = PIPELINES[layer, way]
    compiled = CompiledModule(model, parts, pipeline, spaces={"x": "N"}, prefetch=prefetch, seed=0)
    with observe() as seen:
        run_step(compiled, torch.randn(assignment.numel(), FEATURES, dtype=torch.float64), edge_index)
    assert seen.most_alive <= 2 * (1 + prefetch)
    rows = [part.node_ids.numel() for part in parts.parts.values()]
    for stage in ("forward", "backward"):
        found = schedules(compiled, stage, num_parts)
        for p, schedule in enumerate(found):
            assert seen.sent[stage, p] == schedule.sent_bytes
            for q in range(num_parts):
                # Messages are matched by order alone.
                assert messages(schedule.sends()).get(q, []) == messages(found[q].receives()).get(p, [])
            for step in schedule.instructions:
                if isinstance(step, Send | PostRecv):
                    assert 1 <= step.rows <= max(1, min(rows[p], rows[step.peer]) // 4)
                    assert step.nbytes > 0
    sent = sum(seen.sent.values())
    assert compiled.traffic()["sent_bytes"] == sent == compiled.plan().sent_bytes
    crosses = num_parts > 1 and bool((assignment[edge_index[0]] != assignment[edge_index[1]]).any())
    assert (sent > 0) == crosses
    if way == "ring":
        assert (seen.most_alive > 0) == crosses


def test_the_executor_refuses_more_chunks_than_the_schedule_allows() -> None:
    edge_index, assignment, num_parts = CROSSING
    compiled = sarc.compile(build("gcn"), assignment, exchange="ring")
    x = torch.randn(assignment.numel(), FEATURES, dtype=torch.float64, requires_grad=True)
    compiled(x, edge_index)
    binding = compiled._called().binding
    binding.schedules["forward"] = [replace(s, chunk_limit=1) for s in binding.schedules["forward"]]
    with pytest.raises(ExchangeError, match="2 chunks alive, the schedule allows 1"):
        compiled(x, edge_index)
    del num_parts


@pytest.mark.parametrize("layer", ["gat", "gatv2", "transformer", "sage"])
def test_no_edge_tensor_of_feature_width_is_saved(layer: str) -> None:
    edge_index, assignment, _ = CROSSING
    compiled = sarc.compile(build(layer), assignment)
    compiled(torch.randn(assignment.numel(), FEATURES, dtype=torch.float64), edge_index)
    stages = compiled._called().stages
    forward = stages["forward"]
    saved = [(o, n.meta["type"]) for o, n in zip(forward.outputs, forward.returned, strict=True) if o.kind == "saved"]
    # A mean of products needs nothing: its weight gradient is x^T times what the edges return.
    assert saved or layer == "sage", "the backward needs something of the forward"
    for output, type_ in saved:
        on_edges = any(forward.spaces[name].on_edges for name in type_.spaces)
        width = math.prod(d for d in type_.dims if not isinstance(d, Rows))
        assert not on_edges or width <= 2, f"{output.name} {type_}: expected at most one value a head and edge"


@given(st.integers(0, 2))
def test_a_graph_without_edges_exchanges_nothing(prefetch: int) -> None:
    parts = sarc.partition(torch.zeros(2, 0, dtype=torch.int64), num_nodes=5, num_parts=3)
    pipeline = PIPELINES["gcn", "ring"]
    compiled = CompiledModule(build("gcn"), parts, pipeline, spaces={"x": "N"}, prefetch=prefetch, seed=0)
    compiled(torch.randn(5, FEATURES, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.int64))
    assert compiled.traffic()["messages"] == 0
