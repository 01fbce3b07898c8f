"""`sarc run-pass`: one pass on a printed program."""

from __future__ import annotations

import re
from pathlib import Path

from sarc.commands.find_passes import find_pass, runner
from sarc.commands.output import write_code, write_json
from sarc.errors import CommandError, ParseError
from sarc.ir.parse import parse_program
from sarc.ir.print import format_program
from sarc.ir.program import Program
from sarc.ir.verify import verify
from sarc.report.describe_program import program_json


def run_pass(
    file: str, names: tuple[str, ...], stage: str | None, wrt: tuple[str, ...], remote: tuple[str, ...] | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Print what the passes make, in order, of the program in `file`; "verify" stands for checking alone.

    Raises:
        ParseError: the file cannot be read as programs.
        CommandError: no such pass, or several programs to choose from.
        VerifyError: a program breaks a rule of the IR.
    """
    programs = [verify(read_program(file, stage))]
    for name in names:
        run = (lambda program: program) if name == "verify" else runner(find_pass(name), wrt, remote)
        made: list[Program] = []
        for program in programs:
            result = run(program)
            made += result if isinstance(result, tuple) else [result]
        programs = [verify(p) for p in made]
    if as_json:
        write_json([program_json(p) for p in programs])
    else:
        write_code("\n".join(format_program(p) for p in programs))


def read_program(file: str, stage: str | None) -> Program:
    """The program in a file; of several, the one of `stage`."""
    path = Path(file)
    if not path.is_file():
        raise CommandError(f"there is no file {file}; write one with `sarc dump FILE.py:MODEL --after PASS > {file}`")
    text = path.read_text(encoding="utf-8")
    starts = [m.start() for m in re.finditer(r"^program ", text, re.MULTILINE)]
    if not starts:
        raise ParseError(f"{file}: expected a line 'program STAGE', got none")
    pieces = []
    for k, start in enumerate(starts):
        end = starts[k + 1] if k + 1 < len(starts) else len(text)
        # Blank lines in place of what stands before, so that errors name the file's own lines.
        pieces.append("\n" * text.count("\n", 0, start) + text[start:end])
    names = [piece.strip().splitlines()[0].removeprefix("program ") for piece in pieces]
    if stage is None and len(pieces) > 1:
        raise CommandError(f"{file} holds {len(pieces)} programs: choose one with --stage {' or '.join(names)}")
    if stage is not None and stage not in names:
        raise CommandError(f"{file}: --stage: expected one of {', '.join(names)}, got {stage!r}")
    try:
        return parse_program(pieces[names.index(stage) if stage is not None else 0])
    except ParseError as error:
        raise ParseError(f"{file}: {error}") from error
