"""Messages on their way: between two parts of a process, or of a process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.runtime.collectives import first_line, name_missing


class Handle(Protocol):
    """A message on its way."""

    def done(self) -> bool: ...

    def block(self) -> None: ...


class LocalMessage:
    """One side of a message between two parts of one process."""

    def __init__(self, buffer: Tensor, what: str):
        self.buffer: Tensor | None = buffer
        self.what = what

    def done(self) -> bool:
        return self.buffer is None

    def block(self) -> None:
        raise ExchangeError(f"{self.what}: the peer never answered; every part must run the same schedule")


class SentMessage:
    """A message of a process group; `wait` is the only way to learn that it is complete."""

    def __init__(self, work: dist.Work | None, what: str):
        self.work: dist.Work | None = work
        self.what = what

    def done(self) -> bool:
        return self.work is None

    def block(self) -> None:
        if self.work is None:
            return
        try:
            self.work.wait()
        except RuntimeError as error:
            raise ExchangeError(
                f"rank {dist.get_rank()}: {self.what} failed: {first_line(error)}; the peer has stopped, died or runs "
                f"another program: look at its output, then start all ranks again"
            ) from error
        self.work = None


class StagedMessage(SentMessage):
    """A message of a tensor that the process group does not carry: it travels as a copy on another device."""

    def __init__(self, sent: SentMessage, copy: Tensor, into: Tensor | None):
        super().__init__(None, sent.what)
        self.sent, self.copy, self.into = sent, copy, into
        self.finished = False

    def done(self) -> bool:
        return self.finished

    def block(self) -> None:
        if self.finished:
            return
        self.sent.block()
        if self.into is not None:
            self.into.copy_(self.copy)
        self.finished = True


class QueuedMessage(SentMessage):
    """A message that leaves with others: those of one pair of processes pass each other in one call only."""

    def __init__(self, flush: Callable[[], None], what: str):
        super().__init__(None, what)
        self.flush, self.finished = flush, False

    def done(self) -> bool:
        return self.finished

    def block(self) -> None:
        if not self.finished:
            self.flush()
            super().block()
            self.finished = True


class AllToAllMessage(SentMessage):
    """An all-to-all of a process group. What fails it does not say whose fault it is: the ranks call the roll."""

    def __init__(self, work: dist.Work, what: str, group: dist.ProcessGroup | None):
        super().__init__(work, what)
        self.group = group

    def block(self) -> None:
        if self.work is None:
            return
        try:
            self.work.wait()
        except RuntimeError as error:
            raise ExchangeError(
                f"rank {dist.get_rank(self.group)}: {self.what} failed: {first_line(error)}; "
                f"{name_missing(self.group)}: look at its output, then start all ranks again"
            ) from error
        self.work = None


class Messages:
    """Several messages as one."""

    def __init__(self, handles: Sequence[Handle]):
        self.handles = handles

    def done(self) -> bool:
        return all(handle.done() for handle in self.handles)

    def elsewhere(self) -> list[Handle]:
        """The messages of other processes that are still on their way."""
        return [h for h in self.handles if isinstance(h, SentMessage) and not h.done()]

    def block(self) -> None:
        """Wait for the messages of other processes; without any, this process's own will never come."""
        for handle in self.elsewhere() or self.handles:
            handle.block()
