"""`sarc dump`: the program of a model after any pass."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sarc.commands.find_passes import find_passes
from sarc.commands.output import write_code, write_json
from sarc.commands.run_model import Seen, Session
from sarc.errors import CommandError
from sarc.ir.print import format_program
from sarc.ir.print_python import format_python
from sarc.ir.program import Program
from sarc.report.describe_program import describe_values, program_json
from sarc.report.program_dot import program_dot

SCHEDULE = "build-schedule"
FORMATS = ("text", "python", "dot", "json")


def dump(
    session: Session, after: str | None, everything: bool, diff: bool, format_: str, stage: str | None, with_bytes: bool
) -> None:
    """Compile, and print what was asked for.

    Args:
        after: name of a pass; None: the last programs, those that parts run.
        everything: after every pass.
        diff: what each pass changed, as unified diffs.
        format_: one of FORMATS.
        stage: only programs of this stage ("forward", "backward", "joint", ...).
        with_bytes: add the bytes of every value to the text.
    """
    session.call()
    if after == SCHEDULE:
        _dump_schedules(session, format_, stage)
        return
    shown = _chosen(session.seen, after, everything or diff)
    shown = [s for s in shown if stage is None or s.program.stage == stage]
    if not shown:
        stages = sorted({s.program.stage for s in session.seen})
        raise CommandError(f"--stage: no program of stage {stage!r} there; stages are {', '.join(stages)}")
    if diff:
        write_code("\n".join(_difference(session.seen, s) for s in shown))
    elif format_ == "json":
        write_json([{"after": s.name, **program_json(s.program)} for s in shown])
    elif format_ == "dot":
        write_code("\n".join(program_dot(s.program) for s in shown))
    elif format_ == "python":
        write_code("\n\n".join(f"# after {s.name}: {s.program.stage}\n{format_python(s.program)}" for s in shown))
    else:
        texts = [annotated(s.program) if with_bytes else s.text for s in shown]
        write_code("\n".join(f"# after {s.name}\n{text}" for s, text in zip(shown, texts, strict=True)))


def _chosen(seen: Sequence[Seen], after: str | None, everything: bool) -> list[Seen]:
    if everything and after is None:
        return list(seen)
    name = after or seen[-1].name
    found = [s for s in seen if s.name == name]
    if not found:
        ran = ", ".join([*dict.fromkeys(s.name for s in seen), SCHEDULE])
        known = [p.name for p in find_passes()]
        why = "did not run on this model" if name in known else "is no pass"
        raise CommandError(f"--after: {name!r} {why}; passes that ran: {ran}")
    return found


def _difference(seen: Sequence[Seen], made: Seen) -> str:
    """What a pass changed: against the program it worked on."""
    at = next(k for k, s in enumerate(seen) if s is made)
    earlier = seen[:at]
    same = [s for s in earlier if s.program.stage == made.program.stage and s.name != made.name]
    other = [s for s in earlier if s.name != made.name]
    before = (same or other or [Seen("nothing", made.program, "")])[-1]
    lines = difflib.unified_diff(
        before.text.splitlines(),
        made.text.splitlines(),
        f"{before.program.stage} after {before.name}",
        f"{made.program.stage} after {made.name}",
        lineterm="",
        n=2,
    )
    text = "\n".join(lines)
    return (text or f"# {made.name} leaves {made.program.stage} as it was") + "\n"


def annotated(program: Program) -> str:
    """The program's text with the bytes of every value after its line; it still parses."""
    sizes = {v.name: v.nbytes for v in describe_values(program)}
    lines = []
    for line in format_program(program).splitlines():
        name = re.match(r"%(\w+): ", line)
        if name and sizes.get(name[1]):
            separator = "" if "   # " in line else "   # "
            line = f"{line}{separator} | {sizes[name[1]]} B"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _dump_schedules(session: Session, format_: str, stage: str | None) -> None:
    """The instructions of every part."""
    if format_ not in ("text", "json"):
        raise CommandError(f"--format: a schedule is printed as text or json, got {format_}")
    binding = session.compiled._called().bound
    schedules = [s for name, each in binding.schedules.items() if stage in (None, name) for s in each]
    if format_ == "text":
        write_code("\n\n".join(map(str, schedules)))
        return
    documents: list[dict[str, Any]] = []
    for schedule in schedules:
        steps = [{"instruction": type(i).__name__, **asdict(i)} for i in schedule.instructions]
        documents.append({"part": schedule.rank, "stage": schedule.stage, "instructions": steps})
    write_json(documents)
