"""The commands other than dump: plan, kernels, passes, explain, partition, doctor; plain, as JSON and on a terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sarc.commands.find_passes import find_passes
from tests.commands.run import error, output, sarc

SMALL = ("--nodes", 60, "--parts", 3)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("exchange", ["ring", "whole"])
def test_plan_is_what_is_measured(exchange: str) -> None:
    found = json.loads(output("plan", ":attention", *SMALL, "--run", "--json", "--exchange", exchange))
    checks = {row["what"]: (row["predicted"], row["measured"]) for row in found["predicted_and_measured"]}
    for what in ("bytes sent in messages", "messages", "bytes saved for the backward pass"):
        predicted, measured = checks[what]
        assert predicted == measured > 0, what
    predicted, measured = checks["most chunks alive on a part (at most)"]
    assert (0 < measured <= predicted) if exchange == "ring" else measured == 0
    assert found["sent_bytes"] == sum(e["sends B"] for e in found["exchanges"])
    assert {e["how"] for e in found["exchanges"]} == {exchange}
    assert [(m["part"], m["direction"]) for m in found["memory"]] == [
        (p, d) for d in ("forward", "backward") for p in range(3)
    ]
    for row in found["memory"]:
        assert row["peak B"] == sum(v for k, v in row.items() if k not in ("part", "direction", "peak B"))


def test_plan_reads_as_text() -> None:
    text = output("plan", ":Sum", *SMALL, "--run", "--exchange", "ring", "--objective", "memory")
    assert re.search(r"forward +@edges0 +E +sum +%\w+ +12 ", text)
    assert "predicted and measured" in text and "memory at the peak" in text
    assert "predicted and measured" not in output("plan", ":Sum", *SMALL)


def test_kernels_are_sources_or_reasons() -> None:
    text = output("kernels", ":Sum", *SMALL)
    assert text.startswith("// forward @edges0, traversal 0\n") and 'extern "C"' in text
    assert output("kernels", ":Sum", *SMALL, "--only", "edges0") == text
    listed = output("kernels", ":Sum", *SMALL, "--list")
    assert re.search(r"forward +@edges0 +1 ", listed)
    found = json.loads(output("kernels", ":Sum", *SMALL, "--json"))
    assert found["kernels"][0]["kernels"] == 1 and 'extern "C"' in found["sources"][0]
    assert "no edge program 'edges7'; there are edges0" in error("kernels", ":Sum", *SMALL, "--only", "edges7")
    cuda = output("kernels", ":Sum", *SMALL, "--target", "cuda")
    assert cuda.startswith("// forward @edges0, traversal 0\n") and "__global__" in cuda


def test_passes_are_those_of_the_compiler() -> None:
    names = [p.name for p in find_passes()]
    assert names.index("canonicalise") < names.index("bind") < names.index("differentiate") < names.index("split")
    assert names.index("split") < names.index("fuse-edge-programs") < names.index("partition-program")
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in (REPOSITORY / "sarc" / "passes").rglob("*.py")
        if "Before:" in path.read_text() and path.name != "base.py"
    }
    assert {p.module for p in find_passes()} == modules
    for found in find_passes():
        assert found.before and found.after and found.rest and found.purpose, found.name
    assert re.search(r"fuse-edge-programs +joint ", output("passes"))
    page = output("passes", "split")
    assert page.startswith("split (on joint programs") and "Before:\n    program joint" in page
    assert json.loads(output("passes", "bind", "--json"))["level"] == "forward"
    assert "expected one of canonicalise" in error("passes", "nothing")


def test_explain_says_what_runs_and_what_costs() -> None:
    text = output("explain", ":attention", *SMALL)
    assert "captured for x: f32[N, 6], edge_index: i64[2, E], 3 parts" in text
    assert "no tensor with a row an edge is stored" in text and "have C++ kernels" in text
    found = json.loads(output("explain", ":Dropped", *SMALL, "--json"))
    assert found["captured"] is True and any("draws random numbers" in note for note in found["notes"])


def test_explain_shows_the_line_that_is_refused() -> None:
    result = sarc("explain", ":Pairs", *SMALL)
    assert result.exit_code == 1
    arrow = next(line for line in result.stdout.splitlines() if line.startswith("->"))
    assert arrow.endswith("return h @ h.t()")
    assert "score pairs of nodes along edges" in result.stdout
    result = sarc("explain", ":Pairs", *SMALL, "--json")
    found = json.loads(result.stdout)
    assert found["captured"] is False and "models.py:" in found["line"]


def test_partition_compares_the_methods() -> None:
    pytest.importorskip("pymetis")
    found = json.loads(output("partition", "--nodes", 200, "--parts", 4, "--json"))
    by_method = {m["method"]: m for m in found["methods"]}
    assert list(by_method) == ["metis", "random", "contiguous"]
    assert by_method["metis"]["edges cut"] < by_method["random"]["edges cut"]
    for entry in found["methods"]:
        assert sum(map(sum, entry["halo_rows_matrix"])) == entry["halo rows"]
    text = output("partition", "--nodes", 200, "--parts", 2, "--method", "random", "--matrix")
    assert "random: rows that a part needs" in text and "contiguous" not in text


def test_doctor_looks_at_everything() -> None:
    found = {row["what"]: row for row in json.loads(output("doctor", "--json"))}
    assert {"python", "torch", "C++ compiler", "OpenMP", "CUDA", "gloo", "nccl", "kernel cache"} <= set(found)
    assert found["torch"]["state"] == "ok" and found["gloo"]["state"] in ("ok", "missing")
    assert "sarc doctor" in output("doctor")


def test_a_module_and_a_terminal(tmp_path: Path) -> None:
    """`python -m sarc` is the same command; on a terminal it draws."""
    run = [sys.executable, "-m", "sarc", "passes"]
    plain = subprocess.run(run, capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=True).stdout
    assert plain == output("passes") and "\x1b" not in plain
    pty = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    drawn = subprocess.run(
        [sys.executable, "-c", pty, *run], capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=True,
        stdin=subprocess.DEVNULL, env={**__import__("os").environ, "TERM": "xterm", "COLUMNS": "120"},
    ).stdout  # fmt: skip
    assert "\x1b[" in drawn and "fuse-edge-programs" in drawn
