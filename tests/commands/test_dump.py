"""`sarc dump` and `sarc run-pass`."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from sarc.ir.parse import parse_program
from sarc.ir.print import format_program
from tests.commands.run import error, output

SMALL = ("--nodes", 40, "--parts", 3)
# A pass, and the stages of the programs that it makes.
MADE = {
    "raise-graph-ops": ["raised"],
    "bind": ["structure", "step"],
    "differentiate": ["joint"],
    "split": ["forward", "backward"],
    "fuse-edge-programs": ["data", "forward", "backward"],
    "partition-program": ["data", "forward", "backward"],
}


def programs(text: str) -> list[str]:
    """The programs of an output."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    return [p.rstrip("\n") + "\n" for p in re.split(r"^(?=program )", text, flags=re.MULTILINE) if p.strip()]


@pytest.mark.parametrize("name", MADE)
def test_after_every_pass_the_text_reads_back(name: str) -> None:
    found = programs(output("dump", ":attention", *SMALL, "--after", name))
    assert [p.splitlines()[0].removeprefix("program ") for p in found] == MADE[name]
    for text in found:
        assert format_program(parse_program(text)) == text


def test_without_after_it_prints_what_parts_run() -> None:
    ring = (*SMALL, "--exchange", "ring", "--objective", "memory")
    assert output("dump", ":Sum", *ring) == output("dump", ":Sum", *ring, "--after", "reuse-storage")
    assert "remote #" in output("dump", ":Sum", *ring)
    assert "= fetch([" in output("dump", ":Sum", *SMALL)


def test_the_text_is_the_same_every_time() -> None:
    assert output("dump", ":attention", *SMALL, "--all") == output("dump", ":attention", *SMALL, "--all")


def test_bytes_stand_behind_the_line_and_still_read_back() -> None:
    plain = programs(output("dump", ":Sum", *SMALL, "--after", "bind", "--stage", "step"))[0]
    with_bytes = programs(output("dump", ":Sum", *SMALL, "--after", "bind", "--stage", "step", "--bytes"))[0]
    assert re.search(r"%x: f32\[N, 6\] = input arg x   #  \| 24\*N B\n", with_bytes)
    assert re.search(r"models\.py:\d+ \| 12\*N B\n", with_bytes)
    assert format_program(parse_program(with_bytes)) == plain


def test_it_names_the_users_line() -> None:
    text = output("dump", ":Sum", *SMALL, "--after", "bind", "--stage", "step")
    source = Path(__file__).with_name("models.py").read_text().splitlines()
    line = re.search(r"sarc\.reduce.*models\.py:(\d+)", text)
    assert line is not None and "index_add" in source[int(line[1]) - 1]


def test_diff_shows_what_a_pass_changed() -> None:
    text = output("dump", ":Sum", *SMALL, "--diff", "--after", "fuse-edge-programs", "--stage", "forward")
    assert text.startswith("--- forward after split\n+++ forward after fuse-edge-programs\n")
    assert re.search(r"^-%\w+: .* = sarc.gather", text, re.MULTILINE)
    assert re.search(r"^\+edges @edges0 over E", text, re.MULTILINE)
    whole = output("dump", ":Sum", *SMALL, "--diff")
    assert re.search(r"--- raised after [\w-]+\n\+\+\+ step after bind", whole)


def test_python_and_dot_and_json() -> None:
    ast.parse(output("dump", ":attention", *SMALL, "--format", "python"))
    dot = output("dump", ":Sum", *SMALL, "--format", "dot", "--stage", "forward")
    assert dot.startswith('digraph "forward" {') and dot.count("{") == dot.count("}")
    (found,) = json.loads(output("dump", ":Sum", *SMALL, "--json", "--stage", "forward", "--objective", "memory"))
    assert found["after"] == "reuse-storage" and found["stage"] == "forward"
    assert found["edge_programs"][0]["over"] == "E"
    by_name = {v["name"]: v for v in found["values"]}
    assert by_name["x"]["type"] == ["f32[N, 6]"] and by_name["x"]["bytes"] == "24*N"


def test_the_schedule_is_the_last_pass() -> None:
    text = output("dump", ":Sum", *SMALL, "--after", "build-schedule")
    first = next(line for line in text.splitlines() if line.startswith("schedule "))
    assert first.startswith("schedule forward part 0:")
    found = json.loads(output("dump", ":Sum", *SMALL, "--after", "build-schedule", "--json", "--stage", "backward"))
    assert [s["part"] for s in found] == [0, 1, 2] and found[0]["instructions"][0]["instruction"]


def test_eval_mode_has_no_backward() -> None:
    text = output("dump", ":Dropped", *SMALL, "--eval", "--all")
    assert "program backward" not in text and "sarc.uniform" not in text
    assert "sarc.uniform" in output("dump", ":Dropped", *SMALL, "--all")


def test_one_pass_of_a_dumped_program_runs_again(tmp_path: Path) -> None:
    small = (*SMALL, "--objective", "memory")  # no program for data alone
    file = tmp_path / "split.sarc"
    file.write_text(output("dump", ":attention", *small, "--after", "split"))
    wanted = programs(output("dump", ":attention", *small, "--after", "fuse-edge-programs"))
    for stage, text in zip(("forward", "backward"), wanted, strict=True):
        assert output("run-pass", file, "--stage", stage, "--pass", "fuse-edge-programs") == text
    step = tmp_path / "step.sarc"
    step.write_text(programs(output("dump", ":attention", *small, "--after", "bind"))[1])
    joint = programs(output("dump", ":attention", *small, "--after", "differentiate"))[0]
    assert output("run-pass", step, "--pass", "differentiate") == joint
    both = output("run-pass", step, "--pass", "differentiate", "--pass", "simplify")
    assert programs(both) == programs(output("dump", ":attention", *small, "--after", "simplify"))
    planned = tmp_path / "planned.sarc"
    planned.write_text(output("dump", ":attention", *small, "--after", "rematerialise"))
    both = output("run-pass", planned, "--pass", "split", "--pass", "fuse-edge-programs")
    assert programs(both) == wanted
    found = json.loads(output("run-pass", step, "--pass", "verify", "--json"))
    assert [p["stage"] for p in found] == ["step"]


def test_partition_program_takes_the_columns_that_leave_the_part(tmp_path: Path) -> None:
    file = tmp_path / "forward.sarc"
    file.write_text(output("dump", ":Sum", *SMALL, "--after", "fuse-edge-programs", "--stage", "forward"))
    made = programs(output("dump", ":Sum", *SMALL, "--stage", "forward", "--exchange", "ring"))[0]
    column = re.search(r"edge_call\(@edges0, \[.*\], \[%(\w+), %(\w+)\]\)", made)
    assert column is not None
    source = column[1]
    assert output("run-pass", file, "--pass", "partition-program", "--remote", source) == made


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    assert "'fuse' is no pass; passes that ran: capture, canonicalise" in error(
        "dump", ":Sum", *SMALL, "--after", "fuse"
    )
    assert "stages are" in error("dump", ":Sum", *SMALL, "--stage", "middle")
    assert "did not run on this model" in error("dump", ":Sum", *SMALL, "--eval", "--after", "differentiate")
    file = tmp_path / "broken.sarc"
    assert "there is no file" in error("run-pass", file, "--pass", "bind")
    file.write_text("program forward\nspace N = nodes\n%x: f32[N, 4] = aten.rely(%y)\n")
    assert f"{file}: line 3: %y is not defined" in error("run-pass", file, "--pass", "bind")
    file.write_text("program forward\nspace N = nodes\n%x: f32[N, 4] = input arg x\nreturn result 0 = %x\n")
    assert "expected one of canonicalise" in error("run-pass", file, "--pass", "tidy")
    assert "needs rank and num_parts" in error("run-pass", file, "--pass", "build-schedule")
    file.write_text("program forward\nspace N = nodes\n%x: f32[N] = input arg x\n%y: f32[N, 2] = aten.relu(%x)\n"
                    "return result 0 = %y\n")  # fmt: skip
    assert "the op table infers f32[N]" in error("run-pass", file, "--pass", "verify")
    file.write_text("nothing")
    assert "expected a line 'program STAGE'" in error("run-pass", file, "--pass", "verify")
