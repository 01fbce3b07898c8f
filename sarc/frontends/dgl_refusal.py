"""The error for a DGL construct that cannot be recorded: its name, the user's file and line, what to write instead."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType

from sarc.errors import UnsupportedModelError

FRAMEWORKS = ("torch", "dgl", "sarc", "numpy")


def unsupported(construct: str, instead: str, came_from: TracebackType | None = None) -> UnsupportedModelError:
    """UnsupportedModelError "CONSTRUCT is not supported (FILE:LINE): INSTEAD", to be raised by the caller.

    FILE:LINE is the innermost frame outside torch, DGL and sarc: of `came_from` when given, else of the call stack.
    """
    stack = traceback.extract_tb(came_from) if came_from is not None else traceback.extract_stack()
    return UnsupportedModelError(f"{construct} is not supported ({_user_line(stack)}): {instead}")


def _user_line(stack: traceback.StackSummary) -> str:
    roots = tuple(
        os.path.dirname(os.path.abspath(module.__file__)) + os.sep
        for module in (sys.modules.get(name) for name in FRAMEWORKS)
        if module is not None and module.__file__ is not None
    )
    for frame in reversed(stack):
        if not frame.filename.startswith((*roots, "<")):
            return f"{frame.filename}:{frame.lineno}"
    return "no frame outside torch, dgl and sarc"
