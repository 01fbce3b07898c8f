"""The textual form: every printed program is read back, means the same, and a wrong text is refused with its line."""

from __future__ import annotations

import pytest
import torch

from sarc.errors import ParseError
from sarc.ir.operand_text import read_size
from sarc.ir.parse import parse_program
from sarc.ir.print import format_program
from sarc.ir.verify import verify
from tests.ir.stages import MODELS, TRAINED, compiled, run_step


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_reads_back_as_it_is_printed(name: str) -> None:
    made = compiled(name)
    of_data = {"data", "bound step"}  # where something is made of data alone
    assert set(made.texts) in ({*TRAINED}, {*TRAINED, *of_data})
    for stage, text in made.texts.items():
        parsed = verify(parse_program(text))
        assert format_program(parsed) == text, stage
        original = made.programs[stage]
        assert parsed.inputs == original.inputs
        assert parsed.outputs == original.outputs
        assert parsed.spaces == original.spaces


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prefix", ["", "partitioned "])
def test_a_parsed_program_computes_the_same_numbers(name: str, prefix: str) -> None:
    made = compiled(name)
    parsed = {stage: parse_program(text) for stage, text in made.texts.items()}
    stages = (f"{prefix}forward", f"{prefix}backward")
    for ours, theirs in zip(run_step(made, parsed, *stages), run_step(made, made.programs, *stages), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            # Bit for bit: the same operators on the same operands.
            assert torch.equal(ours[key], theirs[key]), key


HEAD = "program step\nspace N = nodes\nspace E = edges on edges\n%x: f32[N, 4] = input arg x\n"

WRONG = {
    "empty": ("", "expected a program, got an empty text"),
    "no stage first": ("space N = nodes\n", "line 1: expected 'program STAGE' first"),
    "space": ("program step\nspace N nodes\n", "line 2: expected space NAME = KIND"),
    "parent": ("program step\nspace S0 = filter(E, %m)\n", "line 2: unknown space E"),
    "value": (HEAD + "%y f32[N, 4] = aten.relu(%x)\n", "line 5: expected %NAME: TYPE"),
    "dtype": (HEAD + "%y: f31[N, 4] = aten.relu(%x)\n", "line 5: unknown dtype f31"),
    "dimension": (HEAD + "%y: f32[M, 4] = aten.relu(%x)\n", "line 5: unknown space in dimension M"),
    "operator": (HEAD + "%y: f32[N, 4] = aten.rely(%x)\n", "line 5: unknown operator aten.rely"),
    "function": (HEAD + "%y: f32[N, 4] = relu(%x)\n", "line 5: unknown operator relu"),
    "operand": (HEAD + "%y: f32[N, 4] = aten.relu(%z)\n", "line 5: %z is not defined"),
    "list": (HEAD + "%y: f32[N, 4] = aten.view(%x, [|N|, 4)\n", "line 5: expected ] to end a list"),
    "comma": (HEAD + "%y: f32[N, 4] = aten.add.Tensor(%x %x)\n", "line 5: expected a comma before %x"),
    "token": (HEAD + "%y: f32[N, 4] = aten.add.Tensor(%x, ?)\n", "line 5: expected an operand at"),
    "size": (HEAD + "%y: f32[N, 4] = aten.view(%x, [|N.a|, 4])\n", "line 5: expected a size formula, got N.a"),
    "twice": (HEAD + "%x: f32[N, 4] = aten.relu(%x)\n", "line 5: %x is defined twice"),
    "return": (HEAD + "return result 0\n", "line 5: expected return KIND NAME = %VALUE"),
    "returned": (HEAD + "return result 0 = %y\n", "line 5: %y is not defined"),
    "indent": (HEAD + "  %y: f32[N, 4] = aten.relu(%x)\n", "line 5: expected no indentation outside"),
    "edges": (HEAD + "%y: (f32[N, 4]) = edge_call(@e, [%x], [])\n", "line 5: @e is not defined"),
    "fate": (HEAD + "edges @e over E\n  %y: f32[E, 4] = gather $0\n", "line 6: expected OPERATOR(OPERANDS)"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_text_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ParseError) as error:
        parse_program(text)
    assert str(error.value).startswith(message), error.value


@pytest.mark.parametrize("text", ["N + S0", "2*N", "1/N", "N**2", "(N + 3)//4", "Mod(N, 3)", "1/(N - 1)", "-N"])
def test_size_formulas_read_back_as_they_are_printed(text: str) -> None:
    found = read_size(text)
    assert read_size(str(found)) == found
    assert found.free_symbols


def test_numbers_and_words_keep_their_type() -> None:
    line = "%y: f32[N, 4] = aten.full([|N|, 4], -inf, dtype=f32)\n"
    more = "%z: bool[N, 4] = aten.full([|N|, 4], True, dtype=bool)\n%w: f32[N, 4] = aten.mul.Tensor(%y, 2.0)\n"
    program = parse_program(HEAD + line + more + "return result 0 = %w\n")
    values = {n.name: n for n in program.graph.nodes}
    assert values["y"].args[1] == float("-inf")
    assert values["z"].args[1] is True and values["z"].kwargs == {"dtype": torch.bool}
    assert isinstance(values["w"].args[1], float)
