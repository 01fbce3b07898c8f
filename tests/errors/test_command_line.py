"""What the command line says of files, names and specifications that it cannot use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sarc.commands.dump import dump
from sarc.commands.find_model import find_model
from sarc.commands.find_passes import find_pass
from sarc.commands.make_inputs import make_inputs
from sarc.commands.run_model import Wanted, start
from sarc.commands.run_pass import run_pass
from sarc.errors import SarcError
from tests.errors.refusals import check_golden, refusal

MODELS = "tests/commands/models.py"
HERE = Path(__file__).resolve().parents[2]


def model(name: str):
    return lambda: find_model(f"{MODELS}:{name}")


def inputs(name: str, *specs: str):
    return lambda: make_inputs(find_model(f"{MODELS}:{name}"), specs, "generated", 30)


def dumped(**options):
    given = {"after": None, "everything": False, "diff": False, "format_": "text", "stage": None, "with_bytes": False}
    return lambda: dump(start(Wanted(f"{MODELS}:Sum", nodes=30, parts=2)), **(given | options))


CASES = {
    "no colon": lambda: find_model("models"),
    "no file": lambda: find_model("nowhere.py:Net"),
    "no such name": model("Net"),
    "constructor arguments missing": model("Needs"),
    "constructor arguments that are no literals": model("Needs(width)"),
    "arguments for an object": model("made(3)"),
    "no model": model("a_number"),
    "an argument of unknown type": inputs("Weighted"),
    "an unknown space": inputs("Weighted", "x", "edge_index", "strength:f32[M]"),
    "an unknown dtype": inputs("Weighted", "x", "edge_index", "strength:float[E]"),
    "a malformed specification": inputs("Weighted", "x = 3"),
    "arguments twice": inputs("with_arguments", "x"),
    "an unknown pass after": dumped(after="fuse"),
    "an unknown stage": dumped(stage="middle"),
    "a schedule as Python": dumped(after="build-schedule", format_="python"),
    "an unknown pass": lambda: find_pass("fuse"),
    "no program file": lambda: run_pass("nothing.sarc", ("bind",), None, (), None, False),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    error = refusal(CASES[case])
    # New passes add names to these lists.
    text = re.sub(r"(expected one of|passes that ran:) [\w, -]+", r"\1 (names)", str(error))
    check_golden("command_line", case, type(error)(text))


PROGRAM = "program forward\nspace N = nodes\n%x: f32[N, 4] = input arg x\n"
FILES = {
    "no program": "nothing\n",
    "several programs": PROGRAM + "return result 0 = %x\n" + PROGRAM.replace("forward", "backward"),
    "a line that cannot be read": PROGRAM + "%y: f32[N, 4] = aten.rely(%x)\n",
    "a program that is wrong": PROGRAM + "%y: f32[N] = aten.relu(%x)   # model.py:3\nreturn result 0 = %y\n",
}


@pytest.mark.parametrize("case", FILES)
def test_files_are_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("program.sarc").write_text(FILES[case])
    with pytest.raises(SarcError) as caught:
        run_pass("program.sarc", ("bind",), None, (), None, False)
    check_golden("command_line", case, caught.value)


def test_a_pass_that_needs_more_than_text_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("program.sarc").write_text(PROGRAM + "return result 0 = %x\n")
    error = refusal(lambda: run_pass("program.sarc", ("build-schedule",), None, (), None, False))
    assert re.search(r"pass build-schedule needs rank and .* does not hold; run it with `sarc dump", str(error))
