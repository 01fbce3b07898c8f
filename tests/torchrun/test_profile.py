"""Under torchrun rank 0 receives every rank's runs and writes one trace; ranks that verify are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sarc
from sarc.errors import OptionError
from tests.torchrun.cases import GAT, data, shard
from tests.torchrun.launch import World, launch

pytestmark = pytest.mark.torchrun


def one_trace(world: World) -> tuple[list[tuple[int, str]], bool]:
    values = data()
    mine = shard(values, world)
    compiled = sarc.compile(GAT().double(), mine.partitions)
    path = world.folder / "trace.json"
    with sarc.profile(path) as found:
        compiled(mine.x, mine.graph, mine.attr).sum().backward()
    return [(r.rank, r.stage) for r in found.runs], world.rank != 0 or path.exists()


def verify_is_for_one_process(world: World) -> str:
    values = data()
    try:
        sarc.compile(GAT().double(), shard(values, world).partitions, verify=True)
    except OptionError as error:
        return str(error)
    return ""


def test_two_ranks(tmp_path: Path) -> None:
    outcomes = launch(2, [one_trace, verify_is_for_one_process], tmp_path)
    assert [o["one_trace"][1] for o in outcomes] == [True, True]
    assert sorted(outcomes[0]["one_trace"][0]) == [(r, s) for r in range(2) for s in ("backward", "data", "forward")]
    assert sorted(outcomes[1]["one_trace"][0]) == [(1, "backward"), (1, "data"), (1, "forward")]
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    timed = [e for e in events if e["ph"] == "X"]
    assert {e["pid"] for e in timed} == {0, 1}
    # One machine, one clock: both ranks run at the same time.
    spans = {p: [e["ts"] for e in timed if e["pid"] == p] for p in range(2)}
    assert max(min(s) for s in spans.values()) < min(max(s) for s in spans.values())
    assert all("verify=True runs the plain module" in o["verify_is_for_one_process"] for o in outcomes)
