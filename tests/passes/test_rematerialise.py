"""What is made again is said so, respects its limit, and is the same for every number of parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv

import sarc
from sarc.ir.parse import parse_program
from sarc.ir.print import format_program
from sarc.passes.joint.choose_kept import keep_all
from sarc.passes.joint.rematerialise import Limits, Plan, Rematerialise
from sarc.passes.joint.split import split
from tests.ir.stages import MODELS, compiled

ROWS = {"N": 100_000, "E": 2_000_000, "halo": 0}

NOTHING = """program joint
space N = nodes
%x: f32[N, 4] = input arg x
%w: f32[4, 2] = input param w
%tangent_0: f32[N, 2] = input tangent 0
%h: f32[N, 2] = aten.mm(%x, %w)   # model.py:8
%t: f32[4, N] = aten.t(%x)   # model.py:8
%gw: f32[4, 2] = aten.mm(%t, %tangent_0)   # model.py:8
return result 0 = %h
return grad param w = %gw
"""


class Deep(nn.Module):
    """Attention, normalisation and activation, layer after layer."""

    def __init__(self, layers: int):
        super().__init__()
        self.convs = nn.ModuleList(GATConv(16, 4, heads=4, add_self_loops=False) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(16) for _ in range(layers))

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + norm(conv(x, edge_index)).relu()
        return x


def test_nothing_to_make_again_gives_the_same_object() -> None:
    program = parse_program(NOTHING)
    assert Rematerialise(ROWS).run(program) is program


@pytest.mark.parametrize("name", MODELS)
def test_a_second_run_changes_nothing_and_notes_are_in_the_text(name: str) -> None:
    joint = compiled(name).programs["joint"]
    once = Rematerialise(ROWS).run(joint)
    twice = Rematerialise(ROWS).run(once)
    assert format_program(twice) == format_program(once)
    noted = {n.name for n in once.graph.nodes if "again" in n.meta}
    forward, backward = split(once)
    assert not noted & {o.name for o in forward.outputs if o.kind == "saved"}
    for node in backward.graph.nodes:
        if node.name in noted:
            assert "again in backward: " in format_program(backward).split(f"%{node.name}: ")[1].splitlines()[0]


@pytest.mark.parametrize("name", MODELS)
def test_limits_hold(name: str) -> None:
    joint = compiled(name).programs["joint"]
    plan = Plan(joint, ROWS)
    everything = keep_all(plan.problem)
    usual = plan.choose(Limits())
    assert usual.nbytes <= everything.nbytes
    assert usual.work - everything.work <= 0.15 * plan.step_work + 1e-6
    least = plan.choose(Limits(most_bytes=0))
    assert least.nbytes <= usual.nbytes
    for share in (0.25, 0.5, 1.0):
        most = least.nbytes + share * (everything.nbytes - least.nbytes)
        found = plan.choose(Limits(most_bytes=most))
        assert found.nbytes <= most and everything.work <= found.work <= least.work + 1e-6
    assert plan.choose(Limits(most_bytes=float("inf"))) == everything


def test_sixteen_layers_are_planned_in_seconds_and_keep_less() -> None:
    torch.manual_seed(0)
    edges = torch.randint(50, (2, 300))
    model = sarc.compile(Deep(16), sarc.partition(edges, num_nodes=50, num_parts=2), backend="reference")
    model(torch.randn(50, 16), edges).sum().backward()
    joint = model._called().stages["joint"]
    import time

    started = time.process_time()
    plan = Plan(joint, ROWS)
    choice = plan.choose(Limits())
    assert time.process_time() - started < 10
    assert choice.nbytes < 0.7 * keep_all(plan.problem).nbytes
