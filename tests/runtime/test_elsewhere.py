"""Nothing that a step makes is on the CPU by accident: models run where tensors refuse to meet the CPU's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration as registration

needs_registration = pytest.mark.skipif(
    not hasattr(registration, "_setup_privateuseone_for_python_backend"), reason="torch registers no device in Python"
)
SOME = ("GATConv dropout", "SAGEConv max", "self loops replaced", "pooled and back")


def run(*names: str) -> str:
    command = [sys.executable, "-m", "tests.runtime.elsewhere_models", *names]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@needs_registration
def test_models_run_on_another_device() -> None:
    """Forward and backward, in one part and in four, with draws, derived edges, structure and contractions."""
    said = run(*SOME).splitlines()
    assert len(said) == 4 * len(SOME) and all(line.endswith(": equal") for line in said)


@needs_registration
@pytest.mark.slow
def test_every_listed_model_runs_on_another_device() -> None:
    assert run().splitlines()[-1].endswith(": equal")
