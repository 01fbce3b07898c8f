"""Warnings that a process gives once."""

from __future__ import annotations

import warnings
from functools import cache


@cache
def warn_once(message: str) -> None:
    """Warn; a message that was given before is not given again."""
    warnings.warn(message, UserWarning, stacklevel=3)
