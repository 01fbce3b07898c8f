"""A bound on memory, so that a contestant that wants more fails with an exception instead of ending the run."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

KEPT_FREE = 0.1


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
    """Bounds this process and its children to what it has and 90 % of what is free now, until the context ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _kilobytes("/proc/self/status", "VmData") + int(
        (1 - KEPT_FREE) * _kilobytes("/proc/meminfo", "MemAvailable")
    )
    known = [limit * 1024, *(n for n in (soft, hard) if n != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _kilobytes(path: str, field: str) -> int:
    lines = Path(path).read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))
