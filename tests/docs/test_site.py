"""The site builds without network and without a warning; what the pages tell people to run, runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sarc.commands.find_passes import find_passes

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r'```(\w+)(?: title="([^"]+)")?\n(.*?)```', re.DOTALL)


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    pytest.importorskip("mkdocstrings", reason="the docs extra is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    for found in find_passes():
        page = (tmp_path / "site" / "passes" / found.name / "index.html").read_text()
        assert found.module in page and "Before" in page
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("sarc.compile", "sarc.partition", "UnsupportedModelError", "make_report"):
        assert name in api, name
    home = (tmp_path / "site" / "index.html").read_text()
    loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?://[^"]+)"', home)
    assert not loaded, f"the site loads {loaded}"


def follow(page: str, folder: Path, skip: tuple[str, ...]) -> str:
    """Write the page's files, run its commands in order, and return what they print."""
    printed = ""
    for language, title, text in BLOCK.findall((REPOSITORY / "docs" / page).read_text()):
        if title:
            (folder / title).write_text(text)
        if language != "bash":
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if not words or line.startswith(skip):
                continue
            programs = {
                "sarc": [sys.executable, "-m", "sarc"],
                "python": [sys.executable],
                "torchrun": [sys.executable, "-m", "torch.distributed.run"],
            }
            done = subprocess.run(
                [*programs[words[0]], *words[1:]], capture_output=True, text=True, cwd=folder, timeout=300,
                env={**__import__("os").environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
    return printed


def test_the_quick_start_ends_with_a_trained_model_and_a_report(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    text = follow("quick-start.md", tmp_path, ("bash scripts/setup.sh", "source "))
    losses = [float(n) for n in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.torchrun
def test_the_tutorial_prints_one_loss_three_times(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    text = follow("tutorial.md", tmp_path, ())
    for script in ("plain.py", "one_process.py"):
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=300,
            env={**__import__("os").environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        text += done.stdout
    losses = [float(n) for n in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) == 3 and max(losses) - min(losses) < 2e-3
    assert '"rank 3"' in (tmp_path / "trace.json").read_text()
