"""Run `sarc` in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from sarc.cli import main

MODELS = Path(__file__).with_name("models.py")


def sarc(*arguments: Any) -> Result:
    """The result of `sarc ARGUMENTS`; a model is given as ":NAME" of models.py."""
    words = [f"{MODELS}{word}" if str(word).startswith(":") else str(word) for word in arguments]
    return CliRunner().invoke(main, words, catch_exceptions=False)


def output(*arguments: Any) -> str:
    """What it prints, when it succeeds."""
    result = sarc(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def error(*arguments: Any) -> str:
    """What it says when it fails."""
    result = sarc(*arguments)
    assert result.exit_code != 0, result.output
    return result.stderr
