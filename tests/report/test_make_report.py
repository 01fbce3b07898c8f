"""The report: its numbers are those of the plan and the profile; its page works offline, hover and links included."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch_geometric.nn import GAT

import sarc
from sarc.report.make_report import Report, make_report
from sarc.report.predict import Rates
from sarc.runtime.memory_log import CATEGORIES
from sarc.runtime.trace import LANES
from tests.commands.run import output
from tests.errors.refusals import EDGES, PARTS, F, X
from tests.report.browser import needs_browser, page_after

RATES = Rates(flops=1e9, nbytes=1e9, sent=1e8)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compiled() -> sarc.CompiledModule:
    torch.manual_seed(0)
    made = sarc.compile(GAT(F, 8, 2, 3, heads=2).double(), PARTS)
    made(X, EDGES).sum().backward()
    return made


@pytest.fixture(scope="module")
def measured(compiled: sarc.CompiledModule) -> sarc.runtime.profile.Profile:
    with sarc.profile() as found:
        for _ in range(2):
            compiled(X, EDGES).sum().backward()
    return found


@pytest.fixture(scope="module")
def report(compiled: sarc.CompiledModule, measured) -> Report:
    return make_report(compiled, measured, rates=RATES)


def test_the_exchange_matrix_is_the_plan(compiled: sarc.CompiledModule, report: Report) -> None:
    plan = compiled.plan()
    for entry in report.document["matrix"]:
        table = entry["bytes"]
        assert [table[p][p] for p in range(3)] == [0, 0, 0]
        assert sum(map(sum, table)) == sum(e.sent_bytes for e in plan.exchanges if e.stage == entry["stage"])
    sent = sum(row["sent"] for row in report.document["lines"])
    assert sent == plan.sent_bytes == report.document["facts"]["sent_bytes"] > 0


def test_times_are_those_of_the_last_step(measured, report: Report) -> None:
    last = measured.runs[-6:]
    spent = sum(
        e - s
        for r in last
        for k, s, e in zip(r.kinds, r.starts, r.ends, strict=True)
        if k in ("Launch", "Begin", "RunBlock", "Combine")
    )
    assert sum(row["seconds"] for row in report.document["lines"]) == pytest.approx(spent)
    kernels = report.document["kernels"]
    assert sum(k["share"] for k in kernels) == pytest.approx(1)
    assert kernels == sorted(kernels, key=lambda k: -k["seconds"])
    drawn = len(report.document["timeline"]["events"])
    assert drawn == sum(k != "Free" for r in last for k in r.kinds)


def test_memory_is_the_profiles(measured, report: Report) -> None:
    by_run = {(r.rank, r.stage): r.memory for r in measured.runs[-6:]}
    for entry in report.document["memory"]:
        memory = by_run[entry["rank"], entry["stage"]]
        assert entry["peak"] == memory.peak == max(n for _, n in entry["points"])
        assert sum(entry["by_category"].values()) == entry["peak"]
        assert sum(size for _, _, size, _ in entry["alive"]) + entry["rest"][1] == entry["peak"]


def test_what_travels_and_why_there_is_the_plan(compiled: sarc.CompiledModule, report: Report) -> None:
    plan, shown = compiled.plan(), report.document
    assert sum(e["sent_bytes"] for e in shown["exchanges"]) == plan.sent_bytes > 0
    assert all(e["names"] and e["line"] and e["how"] in ("whole", "ring") for e in shown["exchanges"])
    assert sum(e["bytes"] for e in shown["once"] if "sent" in e["what"]) == sum(
        e.sent_bytes for e in plan.prologue_exchanges
    )
    chosen = [c for c in shown["placements"] if c["chosen"]]
    assert len(chosen) == len(plan.placements) > 0 and all(c["why"] for c in chosen)
    assert {c["site"] for c in shown["placements"]} == {"dst", "src", "cover"}


def test_predicted_memory_stands_beside_the_measured(compiled: sarc.CompiledModule, report: Report) -> None:
    planned = report.document["planned"]
    assert [p["rank"] for p in planned] == [0, 1, 2]
    for row, part in zip(planned, compiled.plan().memory, strict=True):
        assert sum(row["groups"].values()) == row["total"] == part.total
        assert row["measured"] == max(m["peak"] for m in report.document["memory"] if m["rank"] == row["rank"])
        assert row["measured"] <= row["total"]
    saved = compiled.plan().saved
    assert sum(size for *_, size in report.document["saved"]) == sum(size for *_, size in saved)


def test_everything_that_can_be_shown_has_a_colour_and_a_word() -> None:
    script = (REPOSITORY / "sarc/report/page/page.js").read_text()

    def keys(name: str) -> set[str]:
        found = re.search(rf"const {name} = {{(.*?)}};", script)
        assert found is not None
        return set(re.findall(r'"?(\w[\w ]*)"?: "', found[1]))

    kinds = set(LANES) - {"Free"}  # takes no time and is not drawn
    assert keys("CATEGORY_COLOURS") == set(CATEGORIES)
    assert keys("KIND_COLOURS") == keys("KIND_WORDS") == kinds


def test_every_stage_is_a_graph_of_its_program(compiled: sarc.CompiledModule, report: Report) -> None:
    stages = {p["stage"]: p for p in report.document["programs"]}
    assert set(stages) == {
        "raised", "structure", "step", "data", "bound step", "joint", "forward", "backward", "partitioned forward",
        "partitioned backward",
    }  # fmt: skip
    for stage, program in stages.items():
        text = compiled.program(stage)
        assert len(program["values"]) == len(re.findall(r"^%\w+: ", text, re.MULTILINE))
        for name, *_, operands in program["values"]:
            assert f"%{name}: " in text and all(o < len(program["values"]) for o in operands)
        places = [(v[9], v[10]) for v in program["values"]]
        assert len(set(places)) == len(places)
        assert all(program["values"][o][10] < v[10] for v in program["values"] for o in v[11])


def test_without_rates_and_without_memory_it_says_less(compiled: sarc.CompiledModule) -> None:
    with sarc.profile(memory=False) as found, torch.no_grad():
        compiled.eval()
        compiled(X, EDGES)
        compiled.train()
    made = make_report(compiled, found, title="a < b")
    assert made.document["predicted"] is None and made.document["memory"] == []
    assert "<title>sarc: a &lt; b</title>" in made.html
    compiled(X, EDGES)  # back to the variant that the other tests look at
    with sarc.profile() as nothing:
        pass
    with pytest.raises(ValueError, match="expected a profile with at least one call"):
        make_report(compiled, nothing)


def test_the_page_refers_to_nothing_outside(report: Report) -> None:
    references = re.findall(r'(?:src|href)="([^"]*)"', report.html)
    assert references and all(r.startswith("#") for r in references)
    outside = set(re.findall(r"https?://[\w./]+", report.html)) - {"http://www.w3.org/2000/svg"}
    assert not outside
    assert report.html.count("</script>") == 2
    assert report._repr_html_().startswith("<iframe srcdoc=")


INTERACT = """
const log = {};
for (const a of document.querySelectorAll("nav a"))
  if (!document.querySelector(a.getAttribute("href"))) log.missing = a.textContent;
const hover = e => {
  const r = e.getBoundingClientRect();
  e.dispatchEvent(new MouseEvent("mousemove", {clientX: r.left + 5, clientY: r.top + 5, bubbles: true}));
  return document.getElementById("tip").textContent;
};
log.node = hover(document.querySelector("#after .node.nodes"));
log.cell = hover(document.querySelector(".heat td:nth-child(3)"));
document.querySelector("#after .node.nodes").dispatchEvent(new MouseEvent("click", {bubbles: true}));
log.detail = document.querySelector("#after .detail").textContent;
const link = document.querySelector("#after .detail a"), goal = link.textContent; link.onclick();
log.followed = document.querySelector("#after .detail b").textContent.startsWith(goal + ":");
graphs[1].find("edge_call");
log.edge = document.querySelector("#after .detail pre").textContent;
const pick = document.querySelector("#before select"); pick.value = "joint"; pick.onchange();
log.joint = document.querySelector("#before .detail").textContent;
const kernel = document.querySelector("details.kernel"); kernel.open = true; kernel.dispatchEvent(new Event("toggle"));
log.kernel = kernel.textContent;
const part = document.querySelectorAll("#memory-legend button")[1]; part.onclick();
log.travels = document.getElementById("travels").textContent;
log.planned = document.getElementById("planned").textContent;
log.peak = document.getElementById("peak").textContent;
const out = document.createElement("pre");
out.id = "log"; out.textContent = JSON.stringify(log);
document.body.append(out);
"""


@needs_browser
def test_hover_links_and_search_work_in_a_browser(report: Report, tmp_path: Path) -> None:
    import html
    import json

    shown, _ = page_after(report.html, INTERACT, tmp_path)
    found = re.search(r'<pre id="log">(.*?)</pre>', shown, re.DOTALL)
    assert found is not None, "the script of the test stopped early"
    log = json.loads(html.unescape(found[1]))
    assert "missing" not in log
    assert re.search(r"f64\[\w+, .*rows of nodes\n[\w*]+ bytes: ", log["node"])
    assert re.fullmatch(r"part 0 sends [\d,]+ bytes to part 1 in the forward pass", log["cell"])
    assert log["detail"].startswith("%") and "over the whole graph" in log["detail"]
    assert log["followed"] is True
    assert log["edge"].startswith("edges @")
    assert log["joint"].startswith("joint: ")
    assert any(how in log["kernel"] for how in ("C++ kernel", "plain torch", "operator of PyTorch"))
    assert "rows fetched from their owners" in log["travels"] and "least time" in log["travels"]
    assert "predictedmeasured" in log["planned"] and "Kept between the passes" in log["planned"]
    assert log["peak"].startswith("Part 1, forward: ")


DEEP = """
import sys, torch, sarc
from torch_geometric.nn import GAT
from sarc.report.make_report import make_report
from sarc.report.predict import measure_rates
g = sarc.data.labelled_graph(2000, num_features=16, seed=0)
compiled = sarc.compile(GAT(16, 16, 100, 5, heads=2), sarc.partition(g.edge_index, 2000, 4))
compiled(g.x, g.edge_index).sum().backward()
with sarc.profile() as measured:
    compiled(g.x, g.edge_index).sum().backward()
make_report(compiled, measured, rates=measure_rates()).save(sys.argv[1])
"""


@needs_browser
@pytest.mark.slow
def test_a_hundred_layers_fit_on_a_page_that_opens_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep.html"
    subprocess.run([sys.executable, "-c", DEEP, str(path)], check=True, cwd=REPOSITORY, timeout=600)
    assert path.stat().st_size < 5_000_000
    _, milliseconds = page_after(path.read_text(), "", tmp_path)
    assert milliseconds < 3000


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    said = output("report", ":attention", "--nodes", 60, "--parts", 2, "-o", path)
    assert said.startswith(f"wrote {path} (") and path.read_text().startswith("<!doctype html>")
