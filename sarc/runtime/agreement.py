"""Agreement: what all ranks settle about a call before any of them runs it.

Each rank writes a note: what it was called with, in which mode, and what went wrong. One small collective compares
digests of the notes; the notes themselves travel when a combination of digests is new, so an ordinary epoch pays for
one all-gather of a few integers. An error of one rank is raised on all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from sarc import errors
from sarc.errors import GraphError, SarcError
from sarc.ir.program import Input
from sarc.runtime.together import gather_objects
from sarc.runtime.transport import Transport


@dataclass(frozen=True)
class Note:
    """One rank's account of a call.

    Attributes:
        problem: type and text of an error on this rank, or None.
        header: what must be equal on all ranks, by name, as printed.
        leaves: by argument name, (shape, dtype) and the row interpretations its shape allows.
        wrt: inputs that this rank wants gradients for.
    """

    problem: tuple[str, str] | None
    header: tuple[tuple[str, str], ...] = ()
    leaves: tuple[tuple[str, tuple, tuple[str, ...]], ...] = ()
    wrt: tuple[tuple[str, str], ...] = ()

    @cached_property
    def digest(self) -> int:
        """A signed 64-bit hash."""
        return int.from_bytes(hashlib.sha256(repr(self).encode()).digest()[:8], "little", signed=True)


@dataclass(frozen=True)
class Settled:
    """What the ranks agreed on.

    Attributes:
        header: as in the notes.
        kinds: whose rows each leaf holds.
        wrt: inputs that receive gradients: those that any rank asks for.
    """

    header: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    wrt: frozenset[Input]


class Agreement:
    """Settles calls, and remembers what was settled.

    Args:
        transport: reaches the other ranks.
    """

    def __init__(self, transport: Transport):
        self._transport = transport
        self._settled: dict[tuple[int, ...], Settled] = {}
        self._latest: dict[int, Settled] = {}

    def guess(self, note: Note) -> Settled | None:
        """What was settled the last time this rank wrote the same note."""
        return self._latest.get(note.digest)

    def settle(
        self,
        note: Note,
        problem: Exception | None,
        bound: int,
        has_data: bool,
        draws: tuple[int, int],
        decide: Callable[[list[Note]], tuple[str, ...]],
    ) -> tuple[Settled, bool, bool]:
        """What all ranks agree on for this call.

        Args:
            problem: the error behind `note.problem`.
            bound: number of the variant that is bound to this call's structure on this rank, or -1.
            has_data: whether what that variant made of data is of this call's, on this rank.
            draws: seed and step of the random draws.
            decide: the kinds of all leaves from every rank's note; raises when these do not fit together.

        Returns:
            the agreement, whether every rank reported the same `bound` variant, and whether all of them have its data.

        Raises:
            the problem of any rank; GraphError: the ranks call differently; ExchangeError: a rank does not answer.
        """
        mine = note.digest
        reports = self._transport.all_gather_numbers((mine, bound, has_data, *draws))
        key = tuple(digest for digest, *_ in reports)
        if key not in self._settled:
            notes = gather_objects(note) if self._transport.distributed else [note]
            _raise_problems(notes, problem)
            _check_headers(notes)
            wrt = frozenset(Input(kind, name) for each in notes for kind, name in each.wrt)
            self._settled[key] = Settled(note.header, decide(notes), wrt)
        for rank, (*_, seed, step) in enumerate(reports):
            if (seed, step) != tuple(reports[0][3:]):
                raise GraphError(
                    f"rank {rank} draws with seed {seed}, step {step}, rank 0 with seed {reports[0][3]}, step "
                    f"{reports[0][4]}: set compiled.seed and compiled.step to the same values on every rank"
                )
        settled = self._latest[mine] = self._settled[key]
        is_bound = bound >= 0 and all(report[1] == bound for report in reports)
        return settled, is_bound, is_bound and all(report[2] for report in reports)


def problem_note(error: Exception) -> Note:
    return Note((type(error).__name__, str(error)))


def _raise_problems(notes: list[Note], mine: Exception | None) -> None:
    if mine is not None:
        raise mine
    for rank, note in enumerate(notes):
        if note.problem is not None:
            raise error_of(rank, *note.problem)


def error_of(rank: int, name: str, text: str) -> SarcError:
    """An error that another rank met, as an error of the same kind here."""
    kind: Any = getattr(errors, name, GraphError)
    return kind(f"rank {rank}: {text}")


def _check_headers(notes: list[Note]) -> None:
    for rank, note in enumerate(notes):
        for (name, theirs), (_, first) in zip(note.header, notes[0].header, strict=True):
            if theirs != first:
                raise GraphError(
                    f"rank {rank} calls the model differently from rank 0: {name} is {_short(theirs)} there and "
                    f"{_short(first)} on rank 0; every rank must make the same calls in the same order and mode"
                )


def _short(text: str) -> str:
    return text if len(text) < 200 else f"{text[:200]}..."


_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def plain_attributes(model: nn.Module) -> str:
    """Digest of what tracing bakes in: plain Python attributes of all submodules, and names of their forward hooks."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            digest.update(f"{name} hook {getattr(hook, '__qualname__', type(hook).__qualname__)};".encode())
        for key, value in vars(module).items():
            if _is_plain(value):
                digest.update(f"{name}.{key}={value!r};".encode())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(_is_plain(k) and _is_plain(v) for k, v in value.items())
