"""Every benchmark runs at a tiny size, and what it times is right: no contestant fails or is wrong."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import attention, epochs, layers, ops, peak, placement, products, race, recompute, roof
from benchmarks.contestants import Case, Contestant
from benchmarks.graphs import KINDS, draw
from benchmarks.options import Options
from benchmarks.report import Report
from benchmarks.timing import interleave, median_ratio
from sarc.codegen.build import compiler

pytest.importorskip("dgl")
pytest.importorskip("torch_geometric")
pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler on this machine")

# The reference backend: what sarc compiles to is another test's business, and kernels take seconds to build.
TINY = ("--nodes", "60", "--degree", "4", "--width", "32", "--repeat", "1", "--threads", "1", "--no-torch-compile")
QUICK = (*TINY, "--no-memory", "--backend", "reference")


@pytest.fixture(autouse=True)
def same_threads():
    """The commands set torch's threads for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows_of(command, tmp_path: Path, *arguments: str) -> list[dict]:
    """The rows of a run's JSON file."""
    path = tmp_path / "rows.json"
    done = CliRunner().invoke(command, [*arguments, "--json", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(path.read_text())["rows"]


def test_placement(tmp_path: Path) -> None:
    """No placement sends more than the paper's scheme when bytes decide."""
    quick = ("--nodes", "60", "--degree", "4", "--width", "8", "--heads", "2", "--backend", "reference")
    wanted = ("--parts", "3", "--graph", "rmat", "--only", "GAT", "--only", "SAGE")
    rows = rows_of(placement.main, tmp_path, *quick, *wanted)
    assert {row["case"] for row in rows} == {"GAT", "SAGE"}
    sent = {(row["case"], row["placement"]): row["sent MiB"] for row in rows}
    for case in ("GAT", "SAGE"):
        assert sent[case, "bytes"] <= min(sent[case, other] for other in ("sar", "dst", "src", "cover"))


def test_what_a_lower_peak_costs() -> None:
    quick = ("--nodes", "300", "--degree", "6", "--threads", "1", "--repeat", "1", "--model", "SAGE")
    done = CliRunner().invoke(recompute.main, quick, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    peaks = [float(peak) for peak in re.findall(r"predicted peak ([\d.]+) MiB", done.output)]
    assert len(peaks) == 2 and peaks[0] <= peaks[1]
    assert re.search(r"as planned takes [\d.]+ times as long", done.output)


def test_products_by_their_width() -> None:
    quick = ("--nodes", "9000", "--inner", "4", "--width", "44", "--width", "48", "--repeat", "1")
    done = CliRunner().invoke(products.main, quick, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert re.findall(r"width +(\d+): library +[\d.]+ ms, sarc +[\d.]+ ms, ratio [\d.]+", done.output) == ["44", "48"]


LIBRARIES = ("--contestants", "DGL", "--contestants", "PyG", "--contestants", "PyG, norm kept")


@pytest.mark.parametrize(
    ("command", "arguments", "cases", "contestants"),
    [
        (attention.main, (), 1, {"sarc", "DGL", "torch operators", "by hand", "by hand, buffers kept"}),
        (ops.main, (), 5, {"sarc", "DGL", "PyG", "plain torch", "torch.sparse"}),
        (layers.main, LIBRARIES, 8, {"DGL", "PyG", "PyG, norm kept"}),
        (layers.main, ("--only", "GIN"), 1, {"sarc", "sarc, least memory", "DGL", "PyG"}),
        (epochs.main, LIBRARIES, 3, {"DGL", "PyG", "PyG, norm kept"}),
        (epochs.main, ("--only", "SAGE"), 1, {"sarc", "DGL", "PyG"}),
    ],
    ids=["attention", "ops", "layers", "a layer", "epochs", "a model"],
)
def test_all_contestants_compute_the_same(
    command, arguments: tuple[str, ...], cases: int, contestants: set[str], tmp_path: Path
) -> None:
    rows = rows_of(command, tmp_path, *QUICK, *arguments)
    assert len({row["case"] for row in rows}) == cases
    assert {row["contestant"] for row in rows} == contestants
    for row in rows:
        assert "note" not in row, row
        assert row["ms"] > 0 and row["ratio"] > 0 and row["error"] < 1e-2, row


def test_the_roof_is_measured(tmp_path: Path) -> None:
    rows = rows_of(roof.main, tmp_path, *QUICK)
    assert {row["direction"] for row in rows} == {"in", "out"}
    assert all(row["GB/s"] > 0 for row in rows)


def test_memory_is_that_of_a_child(tmp_path: Path) -> None:
    """Edges of 8 heads x 16 that torch operators keep, [E, F] float32, are seen; the loop by hand keeps none."""
    size = ("--nodes", "2000", "--degree", "20", "--width", "128", "--heads", "8", "--repeat", "1", "--threads", "1")
    names = ("--contestants", "torch operators", "--contestants", "by hand", "--no-torch-compile")
    rows = rows_of(attention.main, tmp_path, *size, *names)
    found = {row["contestant"]: row for row in rows if row["pass"] == "forward+backward"}
    edge_tensor = 2000 * 20 * 128 * 4 / 1e6
    assert found["torch operators"]["peak MB"] > edge_tensor
    assert found["torch operators"]["saved MB"] > 0.9 * edge_tensor
    assert found["by hand"]["peak MB"] < edge_tensor / 2


def test_a_wrong_and_a_failing_contestant_get_rows_that_say_so() -> None:
    def fail():
        raise RuntimeError("no such library\nand more")

    def want_memory(y):
        return y + torch.empty(1 << 50, dtype=torch.uint8).sum()

    def fail_later():
        calls = []

        def run(y):
            calls.append(y)
            if len(calls) > 4:
                raise ValueError("enough")
            return y.sin()

        return run

    x = torch.empty(5, 3, requires_grad=True)
    makers = {
        "greedy": lambda: want_memory,
        "tired": fail_later,
        "right": lambda: torch.sin,
        "wrong": lambda: torch.cos,
        "failing": fail,
        "nan": lambda: lambda y: y / 0 * 0,
    }
    contestants = tuple(Contestant(name, build) for name, build in makers.items())
    options, report = Options(repeat=1), Report("test", Options(), race.COLUMNS)
    race.race(Case("case", draw("uniform", 5, 9), (x,), torch.sin, contestants), options, report)
    notes = {row["contestant"]: row.get("note") for row in report.rows}
    wrong = "wrong: not timed"
    assert "memory" in notes.pop("greedy")
    assert notes.pop("tired") == "failed: ValueError: enough"
    assert notes == {"right": None, "wrong": wrong, "failing": "failed: RuntimeError: no such library", "nan": wrong}
    assert [row["contestant"] for row in report.rows if "ms" in row] == ["right", "right"]


def test_a_missing_child_is_reported() -> None:
    with pytest.raises(RuntimeError, match="child ended with 1"):
        peak.child_peak("benchmarks.nothing", "case", draw("uniform", 5, 10), "sarc", Options())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("nodes", "edges"), [(1, 3), (7, 0), (300, 900)])
def test_graphs_are_sorted_by_both_ends(kind: str, nodes: int, edges: int) -> None:
    graph = draw(kind, nodes, edges)
    assert torch.equal(draw(kind, nodes, edges).edge_index, graph.edge_index)
    for row, other, sides in ((graph.dst, graph.src, graph.by_destination), (graph.src, graph.dst, graph.by_source)):
        assert row.numel() == edges and (row >= 0).all() and (row < nodes).all()
        assert torch.equal(other[sides.edge].int(), sides.other)
        assert torch.equal(row[sides.edge], torch.repeat_interleave(torch.arange(nodes), sides.start.diff()))


def test_contestants_take_turns() -> None:
    """Warm-ups are not counted; within a repetition all see inputs of one seed."""
    seen: list[tuple[str, int]] = []
    seeds: list[int] = []
    steps = {name: lambda name=name: seen.append((name, seeds[-1])) for name in "ab"}
    times = interleave(steps, seeds.append, repeat=2)
    assert [len(seconds) for seconds in times.values()] == [2, 2]
    assert seen == [(name, k) for k in range(4) for name in "ab"]
    assert math.isclose(median_ratio([2.0, 6.0, 1.0], [1.0, 2.0, 1.0]), 2.0)
