"""The compiler's passes, found by looking: every module of `sarc/passes` whose docstring begins "name: purpose".

A new pass appears here, in `sarc passes`, `sarc run-pass` and the documentation once its file exists.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sarc.passes
from sarc.errors import CommandError
from sarc.ir.program import Program
from sarc.pipeline import Pipeline

LEVELS = ("forward", "joint", "partitioned")
_HEAD = re.compile(r"([a-z][a-z0-9-]*): (.*)")
_PARTS = re.compile(r"(.*?)\nBefore:\n((?:    .*\n|\n)+?)After:\n((?:    .*\n|\n)+?)(?=\S)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Pass:
    """One pass, as its docstring tells it.

    Attributes:
        name: as printed: "fuse-edge-programs".
        level: the folder of its file: what kind of program it works on.
        module: "sarc.passes.joint.fuse_edge_programs".
        summary: the first line.
        purpose, before, after, rest: the parts of the docstring; before and after are programs (or code) as text.
    """

    name: str
    level: str
    module: str
    summary: str
    purpose: str
    before: str
    after: str
    rest: str


def find_passes() -> list[Pass]:
    """All passes, in the order in which the pipeline names them; those that it does not name come last."""
    order = inspect.getsource(Pipeline)
    found = []
    for entry in pkgutil.walk_packages(sarc.passes.__path__, "sarc.passes."):
        module = importlib.import_module(entry.name)
        head = _HEAD.match(module.__doc__ or "")
        if head is None:
            continue
        parts = _PARTS.fullmatch((module.__doc__ or "").split(": ", 1)[1])
        texts = (
            [textwrap.dedent(p).strip("\n") for p in parts.groups()] if parts else [module.__doc__ or "", "", "", ""]
        )
        level = entry.name.split(".")[2]
        places = list(re.finditer(rf"\b({entry.name.split('.')[-1]}|{_class_name(head[1])})\b", order))
        rank = places[-1].start() if places else len(order)
        found.append((LEVELS.index(level) if level in LEVELS else len(LEVELS), rank, Pass(
            head[1], level, entry.name, head[2], *(t.strip("\n") for t in texts)
        )))  # fmt: skip
    return [made for *_, made in sorted(found, key=lambda item: (*item[:2], item[2].name))]


def find_pass(name: str) -> Pass:
    """The pass called `name`.

    Raises:
        CommandError: there is none; lists those there are.
    """
    passes = find_passes()
    for found in passes:
        if found.name == name:
            return found
    raise CommandError(f"pass {name!r}: expected one of {', '.join(p.name for p in passes)}")


def runner(found: Pass, wrt: tuple[str, ...] = (), remote: tuple[str, ...] | None = None) -> Callable[[Program], Any]:
    """A function that runs the pass on a program read from text.

    Args:
        wrt: names of the inputs to differentiate by, for passes that ask; none: all parameters.
        remote: columns that reach other parts, for passes that ask; None: all columns.

    Raises:
        CommandError: the pass needs what no text holds (a captured graph, a partition).
    """
    module = importlib.import_module(found.module)
    made = getattr(module, _class_name(found.name), None) or getattr(module, found.name.replace("-", "_"))

    def answers(program: Program) -> dict[str, Any]:
        named = {e.name for e in program.inputs if e.kind == "param"} if not wrt else set(wrt)
        columns = [c.name for c, _ in Pipeline().columns(program)] if remote is None else remote
        return {"wrt": frozenset(e for e in program.inputs if e.name in named and e.kind in ("param", "arg")),
                "remote": frozenset(columns), "columns": frozenset(columns)}  # fmt: skip

    asked = _asked(made) if inspect.isclass(made) else _asked(made)[1:]
    unknown = [name for name in asked if name not in ("wrt", "remote", "columns")]
    if unknown:
        raise CommandError(
            f"pass {found.name} needs {' and '.join(unknown)}, which the text of a program does not hold; run it with "
            f"`sarc dump FILE.py:MODEL --after {found.name}`"
        )

    def run(program: Program) -> Any:
        known = {name: value for name, value in answers(program).items() if name in asked} if asked else {}
        if inspect.isclass(made):
            maker: Any = made
            return maker(**known).run(program)
        return made(program, **known)

    return run


def _asked(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters without a default."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))
