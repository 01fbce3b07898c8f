"""Profiles and traces: every instruction once, in order, with its line; memory as the schedule's frees say."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch_geometric.nn import GAT

import sarc
from sarc.runtime.memory_log import CATEGORIES
from sarc.runtime.profile import Profile, current_profile
from tests.errors.refusals import EDGES, PARTS, F, X


def run(compiled: torch.nn.Module) -> None:
    compiled(X, EDGES).sum().backward()


@pytest.fixture(scope="module", params=["ring", "whole"])
def compiled(request: pytest.FixtureRequest) -> sarc.CompiledModule:
    torch.manual_seed(0)
    made = sarc.compile(GAT(F, 8, 2, 3, heads=2).double(), PARTS, exchange=request.param)
    run(made)
    return made


@pytest.fixture(scope="module")
def measured(compiled: sarc.CompiledModule, tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, dict]:
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with sarc.profile(path) as found:
        run(compiled)
    return found, json.loads(path.read_text())


def test_every_instruction_is_timed_once_and_in_order(compiled: sarc.CompiledModule, measured) -> None:
    found, _ = measured
    assert [(r.rank, r.stage) for r in found.runs] == [(p, s) for s in ("forward", "backward") for p in range(3)]
    for each in found.runs:
        schedule = compiled.schedule(each.rank, each.stage)
        assert each.names == [" ".join(str(i).split()) for i in schedule.instructions]
        assert len(each.starts) == len(each.ends) == len(each.names) == len(each.memory.live)
        assert all(a <= b for a, b in zip(each.starts, each.ends, strict=True))
        assert each.starts == sorted(each.starts)


def test_lines_are_those_of_the_model(measured) -> None:
    found, _ = measured
    for each in found.runs:
        blocks = [line for kind, line in zip(each.kinds, each.lines, strict=True) if kind == "RunBlock"]
        assert blocks and all(".py:" in line for line in blocks)


def test_the_trace_has_a_process_a_rank_and_its_lanes(measured) -> None:
    found, trace = measured
    events = trace["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {(p, t): n for p in range(3) for t, n in enumerate(("programs", "compute", "exchange"))}
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {f"rank {p}" for p in range(3)}
    timed = [e for e in events if e["ph"] == "X"]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in timed)
    waits = [e for e in timed if e.get("cat") in ("Wait", "Finish")]
    assert waits and all(e["tid"] == 2 for e in waits)
    assert all(e["tid"] == 1 and ".py:" in e["args"]["line"] for e in timed if e.get("cat") == "RunBlock")
    # Every message that is posted arrives.
    begun, ended = ([e["id"] for e in events if e["ph"] == ph] for ph in "be")
    sends = sum(kind in ("Send", "PostRecv", "AllToAll") for r in found.runs for kind in r.kinds)
    assert len(begun) == len(set(begun)) == sends and sorted(begun) == sorted(ended)


def test_memory_adds_up_and_falls_back(measured) -> None:
    found, _ = measured
    for each in found.runs:
        memory = each.memory
        at_peak = memory.by_category(memory.peak_place)
        assert set(at_peak) == set(CATEGORIES)
        assert sum(at_peak.values()) == memory.peak == max(memory.live)
        assert memory.by_category(0)["chunks"] == memory.by_category(len(memory.live) - 1)["chunks"] == 0
        assert at_peak["parameters"] > 0
    in_chunks = any(kind == "Send" for r in found.runs for kind in r.kinds)
    assert any(memory.most("chunks") for memory in (r.memory for r in found.runs)) == in_chunks
    forward = [r.memory for r in found.runs if r.stage == "forward"]
    backward = [r.memory for r in found.runs if r.stage == "backward"]
    for one, two in zip(forward, backward, strict=True):
        last = len(one.live) - 1
        assert one.by_category(last)["saved"] == two.held("saved") > 0


def test_without_memory_and_without_a_file(compiled: sarc.CompiledModule) -> None:
    with sarc.profile(memory=False) as found:
        run(compiled)
    assert found.runs and all(r.memory is None for r in found.runs)
    assert found.trace()["traceEvents"]


def test_nothing_is_measured_outside(compiled: sarc.CompiledModule) -> None:
    with sarc.profile() as found:
        pass
    run(compiled)
    assert current_profile() is None and found.runs == []


def test_a_backward_after_the_block_belongs_to_it(compiled: sarc.CompiledModule) -> None:
    with sarc.profile() as found:
        loss = compiled(X, EDGES).sum()
    loss.backward()
    assert {r.stage for r in found.runs} == {"forward", "backward"}


def test_an_error_inside_writes_nothing(compiled: sarc.CompiledModule, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sarc.profile(tmp_path / "trace.json"):
        run(compiled)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [] and current_profile() is None


def test_a_profile_travels(measured) -> None:
    found, _ = measured
    again = pickle.loads(pickle.dumps(found))
    assert again.trace() == found.trace()


def test_torch_profiler_sees_instructions_by_name(compiled: sarc.CompiledModule) -> None:
    with torch.profiler.profile() as theirs, sarc.profile():
        run(compiled)
    names = {event.key for event in theirs.key_averages()}
    assert any(name.startswith("sarc: block %") for name in names), sorted(names)[:20]
