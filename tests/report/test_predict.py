"""Predictions follow the schedule: order, messages, all-reduces and rates."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import GCN

import sarc
from sarc.ir.schedule import AllReduce, PostRecv, Send, Wait
from sarc.report.predict import Rates, least_seconds, measure_rates, predict
from tests.errors.refusals import EDGES, PARTS, F, X

LEAST = {"Launch": 1e-5, "RunBlock": 2e-5, "Send": 1e-6, "PostRecv": 1e-6}
RATES = Rates(flops=1e9, nbytes=1e9, sent=1e7)


@pytest.fixture(scope="module")
def binding():
    torch.manual_seed(0)
    compiled = sarc.compile(GCN(F, 8, 2, 3).double(), PARTS, exchange="ring", objective="memory")
    compiled(X, EDGES).sum().backward()
    return compiled._called().bound


def made(binding, stage: str, rates: Rates = RATES):
    return predict(binding.programs[stage], binding.schedules[stage], binding.order.states, rates, LEAST)


@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_every_instruction_has_its_time_and_messages_arrive_after_they_are_sent(binding, stage: str) -> None:
    found, schedules = made(binding, stage), binding.schedules[stage]
    sent: dict[tuple[int, int], list[float]] = {}
    for part, schedule in zip(found, schedules, strict=True):
        assert len(part.starts) == len(part.ends) == len(schedule.instructions)
        assert part.starts == sorted(part.starts) and all(a <= b for a, b in zip(part.starts, part.ends, strict=True))
        for step, end in zip(schedule.instructions, part.ends, strict=True):
            if isinstance(step, Send):
                sent.setdefault((part.rank, step.peer), []).append(end)
    waits = 0
    for part, schedule in zip(found, schedules, strict=True):
        posted: dict[str, tuple[int, int, int]] = {}
        count: dict[int, int] = {}
        for step, end in zip(schedule.instructions, part.ends, strict=True):
            if isinstance(step, PostRecv):
                posted[step.buffer] = (step.peer, count.get(step.peer, 0), step.nbytes)
                count[step.peer] = count.get(step.peer, 0) + 1
            elif isinstance(step, Wait) and step.buffer in posted:
                peer, number, nbytes = posted[step.buffer]
                assert end >= sent[peer, part.rank][number] + nbytes / RATES.sent - 1e-12
                waits += 1
    assert waits > 0


def test_all_reduces_end_together(binding) -> None:
    found = made(binding, "backward")
    moments = [
        [e for s, e in zip(schedule.instructions, part.ends, strict=True) if isinstance(s, AllReduce)]
        for part, schedule in zip(found, binding.schedules["backward"], strict=True)
    ]
    assert moments[0] and moments[0] == moments[1] == moments[2]


def test_a_slower_network_takes_longer(binding) -> None:
    fast, slow = (max(p.ends[-1] for p in made(binding, "forward", Rates(1e9, 1e9, sent))) for sent in (1e9, 1e5))
    assert slow > fast


def test_rates_of_this_machine_are_positive() -> None:
    rates = measure_rates()
    assert rates.flops > 1e6 and rates.nbytes > 1e6 and rates.sent > 1e6


def test_the_least_is_the_fastest_tenth() -> None:
    assert least_seconds(["a"] * 20 + ["b"], [float(k) for k in range(20)] + [7.0]) == {"a": 2.0, "b": 7.0}
