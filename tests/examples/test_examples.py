"""The example scripts run, and give over partitions what they give without."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{script}", *arguments], capture_output=True, text=True, cwd=REPOSITORY, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", ["pyg_script.py", "dgl_script.py"])
def test_one_line_makes_a_script_train_over_partitions(script: str) -> None:
    pytest.importorskip("torch_geometric" if script.startswith("pyg") else "dgl")
    source = (REPOSITORY / "examples" / script).read_text()
    assert len(re.findall(r"sarc\.(?!data)\w+\(", source)) == 1  # no other call of sarc
    plain, parts = (
        [float(n) for n in re.findall(r"(?:loss|accuracy) ([\d.]+)", run(script, "--epochs", "10", "--parts", p))]
        for p in ("0", "4")
    )
    assert len(plain) == 2 and parts == pytest.approx(plain, abs=2e-3)


def test_a_custom_layer_trains_and_is_verified() -> None:
    text = run("custom_layer.py")
    first, second = (float(n) for n in re.findall(r"loss ([\d.]+)", text))
    assert second < first
    assert "sum + amax" in text and "custom_layer.py:" in text


def test_looking_inside_writes_a_trace_and_a_report(tmp_path: Path) -> None:
    text = run("inspect_ir.py", str(tmp_path))
    assert "program raised\n" in text and "schedule forward part 0:" in text
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_the_notebook_runs_and_holds_its_report() -> None:
    path = REPOSITORY / "examples" / "report.ipynb"
    spec = importlib.util.spec_from_file_location("report_notebook", REPOSITORY / "scripts" / "report_notebook.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    book = json.loads(path.read_text())
    cells = made.run_cells()
    assert [c["source"] for c in book["cells"]] == [c["source"] for c in cells], "run python scripts/report_notebook.py"
    for cell in (book["cells"][-1], cells[-1]):
        assert "iframe" in cell["outputs"][0]["data"]["text/html"][0]
    assert path.stat().st_size < 2**19
