"""What one part sends is what the other expects: checked once, when schedules are made, before anything travels.

A receive buffer of another size than its message aborts the process in gloo, or is filled without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sarc.errors import ExchangeError
from sarc.ir.schedule import Message, Schedule
from sarc.runtime.work import AllGather, Work

Named = tuple[str, int, int]


def check_messages(schedule: Schedule) -> Work:
    """ExchangeError, on every part, where a message and the buffer that waits for it differ."""
    sent, expected = _by_peer(schedule.sends()), _by_peer(schedule.receives())
    digests = {p: _digest(m) for p, m in sent.items()}, {p: _digest(m) for p, m in expected.items()}
    everyone = yield AllGather(digests)
    parts = range(len(everyone))
    wrong = [(p, q) for p in parts for q in parts if everyone[p][0].get(q) != everyone[q][1].get(p)]
    if not wrong:
        return
    everyone = yield AllGather((sent, expected))
    p, q = wrong[0]
    ours, theirs = everyone[p][0].get(q, []), everyone[q][1].get(p, [])
    place = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    raise ExchangeError(
        f"{schedule.stage}: message {place} from part {p} to peer part {q}: {_named(ours, place)} is sent, "
        f"{_named(theirs, place)} is expected; every rank must run the same program on the same partition"
    )


def _by_peer(messages: Sequence[tuple[str, Message]]) -> dict[int, list[Named]]:
    found: dict[int, list[Named]] = {}
    for name, message in messages:
        found.setdefault(message.peer, []).append((name, message.rows, message.nbytes))
    return found


def _digest(messages: Sequence[Named]) -> bytes:
    return hashlib.sha256(repr(messages).encode()).digest()[:8]


def _named(messages: Sequence[Named], place: int) -> str:
    if place >= len(messages):
        return "nothing"
    name, rows, nbytes = messages[place]
    return f"{rows} rows, {nbytes} B of buffer {name}"
