"""The error for a DGL construct that cannot be recorded: its name, the user's file and line, what to write instead."""

from __future__ import annotations

import traceback
from types import TracebackType

from sarc.errors import UnsupportedModelError
from sarc.frontends.source import current_line, user_line


def unsupported(construct: str, instead: str, came_from: TracebackType | None = None) -> UnsupportedModelError:
    """UnsupportedModelError "FILE:LINE: CONSTRUCT is not supported: INSTEAD", to be raised by the caller.

    FILE:LINE is the user's: of `came_from` when given, else of the call stack (see `user_line`).
    """
    line = user_line(traceback.extract_tb(came_from)) if came_from is not None else current_line()
    return UnsupportedModelError(f"{line}: {construct} is not supported: {instead}")
