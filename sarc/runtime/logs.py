"""Logs: what SARC_LOGS=passes,plan,schedule,kernels,exchange prints to stderr, through Python's logging.

Each topic is the logger `sarc.TOPIC` at level INFO, so a program may also set levels and handlers of its own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from sarc.errors import OptionError

TOPICS = {
    "passes": "the program after every pass",
    "plan": "what a bound model exchanges, stores and keeps",
    "schedule": "the instructions of every part of this process",
    "kernels": "which edge programs have kernels, and why others have none",
    "exchange": "every message when it is posted",
}
VARIABLE = "SARC_LOGS"


def logs_from_environment() -> None:
    """Turn on the topics that SARC_LOGS names ("all" is every one).

    Raises:
        OptionError: a name in it is no topic.
    """
    enable_logs([word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()])


def enable_logs(topics: list[str]) -> None:
    """Print `topics` to stderr from now on; a second call with the same ones changes nothing."""
    for topic in TOPICS if "all" in topics else topics:
        if topic not in TOPICS:
            raise OptionError(f"{VARIABLE}: expected some of {', '.join(TOPICS)} or all, got {topic!r}")
        logger = logging.getLogger(f"sarc.{topic}")
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
            logger.addHandler(_Stderr())
            logger.propagate = False


def log(topic: str, text: Callable[[], str]) -> None:
    """Print `text()` when the topic is on."""
    logger = logging.getLogger(f"sarc.{topic}")
    if logger.isEnabledFor(logging.INFO):
        logger.info(text())


class _Stderr(logging.Handler):
    """Writes to the stderr of the moment, every line with its topic and, under torchrun, its rank."""

    def emit(self, record: logging.LogRecord) -> None:
        rank = os.environ.get("RANK")
        head = f"[{record.name}{f' rank {rank}' if rank else ''}] "
        lines = record.getMessage().rstrip("\n").split("\n")
        sys.stderr.write("".join(f"{head}{line}\n" for line in lines))
