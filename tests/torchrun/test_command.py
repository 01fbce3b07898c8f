"""The commands of the README as users start them: real torchrun, with a restart after a killed rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.torchrun


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)


def test_the_example_trains_and_reports(tmp_path: Path) -> None:
    curve = tmp_path / "curve.jsonl"
    options = ["--epochs", "3", "--nodes", "200", "--hidden", "4", "--heads", "2", "--curve", str(curve)]
    run = torchrun(2, "examples/train_gat.py", *options)
    assert run.returncode == 0, run.stderr
    assert "2 partitions" in run.stdout and "halo rows" in run.stdout
    losses = [json.loads(line)["loss"] for line in curve.read_text().splitlines()]
    assert len(losses) == 3 and losses[-1] < losses[0]


RESTARTED = """
    import os, signal, sys
    import torch, torch.distributed as dist
    import sarc
    from tests.torchrun.cases import GCN, data, shard
    from tests.torchrun.launch import World
    from pathlib import Path

    sarc.init_distributed(timeout=30)
    world = World(dist.get_rank(), dist.get_world_size(), Path("."))
    mine = shard(data(), world)
    compiled = sarc.compile(GCN().double(), mine.partitions)
    for step in range(4):
        loss = sarc.mean(compiled(mine.x, mine.graph, mine.w).square())
        loss.backward()
        if step == 2 and world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
    print("finished in attempt", os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_killed_rank_is_restarted_with_the_others(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n" + dedent(RESTARTED))
    run = torchrun(2, "--max-restarts=1", str(script))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("finished in attempt 1") == 2
