"""The verifier catches a broken program and shows ten lines of it with an arrow at the fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sarc.errors import VerifyError
from sarc.ir.parse import parse_program
from sarc.ir.program import Program
from sarc.ir.verify import verify

HEAD = """program step
space N = nodes
space E = edges on edges
%x: f32[N, 4] = input arg x
%w: f32[4, 8] = input param w
%dst: i64[E] = input bound dst
%src: i64[E] = input bound src
"""
EDGES = """edges @edges0 over E
  %m: f32[E, 4] = gather $0 by #0 axis 0
  %r: f32[E, 4] = aten.relu(%m)
  reduce sum by #1 axis 0 %r: f32[N, 4]
"""
SQUARE = "%t: f32[8, 4] = aten.t(%w)\n%sq: f32[4, 4] = aten.mm(%w, %t)\n"
CALL = "%call: (f32[N, 4]) = edge_call(@edges0, [%x], [%src, %dst])\n"


def program(lines: str, result: str = "y", blocks: str = "") -> Program:
    head, rest = HEAD.split("%x", 1)
    return parse_program(f"{head}{blocks}%x{rest}{lines}return result 0 = %{result}\n")


BROKEN = {
    "wrong shape": ("%y: f32[N, 4] = aten.mm(%x, %w)\n", "%y has type f32[N, 4], the op table infers f32[N, 8]"),
    "wrong space": ("%y: f32[E, 4] = aten.relu(%x)\n", "the op table infers f32[N, 4]"),
    "wrong dtype": ("%y: f64[N, 4] = aten.relu(%x)\n", "the op table infers f32[N, 4]"),
    "in place": ("%y: f32[N, 4] = aten.relu_(%x)\n", "%y alters its operand in place"),
    "a sum in place on an input": ("%y: f32[N, 4] = aten.addmm_(%x, %x, %w)\n", "%y alters its operand in place"),
    "a sum in place on what is read": (
        "%p: f32[N, 8] = aten.mm(%x, %w)\n%y: f32[N, 8] = aten.addmm_(%p, %x, %w)\n%z: f32[N, 8] = aten.exp(%p)\n",
        "%y alters its operand in place",
    ),
    "a product over an input": (SQUARE + "%y: f32[N, 4] = sarc.mm_(%x, %sq)\n", "%y alters its operand in place"),
    "a product over what is read later": (
        SQUARE + "%p: f32[N, 4] = aten.exp(%x)\n%v: f32[4, N] = aten.t(%p)\n%y: f32[N, 4] = sarc.mm_(%p, %sq)\n"
        "%z: f32[4, N] = aten.exp(%v)\n",
        "%y alters its operand in place",
    ),
    "two spaces meet": (
        "%e: f32[E, 4] = sarc.gather(%x, %src, 0)\n%y: f32[E, 4] = aten.add.Tensor(%e, %x)\n",
        "%y is illegal: aten.add.Tensor(f32[E, 4], f32[N, 4])",
    ),
    "rows by rows": (
        "%t: f32[4, N] = aten.t(%x)\n%y: f32[N, N] = aten.mm(%x, %t)\n",
        "%y is illegal: aten.mm(f32[N, 4], f32[4, N]) makes a matrix of rows by rows",
    ),
    "missing operand": ("%y: f32[N, 8] = aten.mm(%x)\n", "%y is illegal"),
    "wrong element": (
        "%t: (f32[N, 4], i64[N, 4]) = aten.sort(%x, 1)\n%y: f32[N, 4] = getitem(%t, 1)\n",
        "the op table infers i64[N, 4]",
    ),
}


@pytest.mark.parametrize(("lines", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_call_is_caught(lines: str, message: str) -> None:
    with pytest.raises(VerifyError) as error:
        verify(program(lines))
    assert message in str(error.value)
    arrows = [line for line in str(error.value).splitlines() if line.startswith("-> ")]
    assert len(arrows) == 1 and arrows[0].startswith("-> %y")


def test_the_error_shows_ten_lines_around_the_fault() -> None:
    lines = [f"%a{k}: f32[N, 4] = aten.relu({'%x' if k == 0 else f'%a{k - 1}'})" for k in range(20)]
    lines[12] = "%a12: f32[E, 4] = aten.relu(%a11)   # model.py:12"
    with pytest.raises(VerifyError) as error:
        verify(program("\n".join(lines) + "\n", "a19"))
    *shown, source = str(error.value).splitlines()[1:]
    assert len(shown) == 10 and source == "from model.py:12"
    assert shown[0] == "   " + lines[7] and shown[-1] == "   " + lines[16]
    assert shown[5] == "-> " + lines[12]


def test_one_space_on_two_axes_is_caught() -> None:
    broken = program("%y: f32[N, 4] = aten.relu(%x)\n")
    broken.placeholders[0].meta["type"] = parse_program(
        "program p\nspace N = nodes\n%x: f32[N, N] = input arg x\nreturn result 0 = %x\n"
    ).placeholders[0].meta["type"]
    with pytest.raises(VerifyError, match="one space on two axes"):
        verify(broken)


def test_a_value_without_a_type_is_caught() -> None:
    broken = program("%y: f32[N, 4] = aten.relu(%x)\n")
    del next(n for n in broken.graph.nodes if n.name == "y").meta["type"]
    with pytest.raises(VerifyError, match="%y has no type"):
        verify(broken)


def test_a_signature_that_does_not_fit_is_caught() -> None:
    whole = program("%y: f32[N, 4] = aten.relu(%x)\n")
    with pytest.raises(VerifyError, match="4 placeholders, 3 inputs"):
        verify(replace(whole, inputs=whole.inputs[:3]))
    with pytest.raises(VerifyError, match="1 results, 0 outputs"):
        verify(replace(whole, outputs=()))


def test_a_module_call_is_no_program() -> None:
    broken = program("%y: f32[N, 4] = aten.relu(%x)\n")
    node = next(n for n in broken.graph.nodes if n.name == "y")
    with broken.graph.inserting_before(node):
        broken.graph.call_method("relu", (broken.placeholders[0],))
    with pytest.raises(VerifyError, match="unexpected call_method"):
        verify(broken)


def test_edge_programs_are_checked_inside() -> None:
    get = "%y: f32[N, 4] = getitem(%call, 0)\n"
    assert verify(program(CALL + get, blocks=EDGES))
    wrong_body = EDGES.replace("%r: f32[E, 4]", "%r: f32[E, 3]")
    with pytest.raises(VerifyError, match=r"@edges0: %r has type f32\[E, 3\], expected f32\[E, 4\]"):
        verify(program(CALL + get, blocks=wrong_body))
    with pytest.raises(VerifyError, match="reads an operand it is not given"):
        verify(program(CALL.replace("[%src, %dst]", "[]") + get, blocks=EDGES))
    wrong_result = EDGES.replace("%r: f32[N, 4]", "%r: f64[N, 4]")
    with pytest.raises(VerifyError, match="%call has type"):
        verify(program(CALL + get, blocks=wrong_result))


def test_a_sound_program_is_returned_as_it_is() -> None:
    sound = program("%y: f32[N, 8] = aten.mm(%x, %w)\n")
    assert verify(sound) is sound
    assert sound.placeholders[0].meta["type"].dtype is torch.float32


def test_the_error_ends_with_the_users_line_and_its_code(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text("h = x @ w\nreturn h.relu()\n")
    with pytest.raises(VerifyError) as error:
        verify(program(f"%y: f32[N, 4] = aten.mm(%x, %w)   # {file}:1\n"))
    assert str(error.value).endswith(f"\nfrom {file}:1: h = x @ w")
