"""Arrival: the messages of an all-to-all to one part, wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sarc.ir.schedule import Message
from sarc.runtime.messages import Handle, Messages, SentMessage
from sarc.runtime.neighbours import Neighbours, Received, Tag


class Arrival:
    """Messages on their way.

    Args:
        messages: that come.
        handle: tells when they are there.
        received: where those lie that the process group brings, one after the other.
        frames: brings the others.
    """

    def __init__(self, messages: Sequence[Message], handle: Handle, received: Tensor, frames: Frames | None = None):
        self.messages, self.received, self.frames = messages, received, frames
        self.handle = handle if frames is None else Messages([frames, handle])

    def pieces(self, device: torch.device) -> list[Tensor]:
        """Every message uint8 [bytes], once they are there."""
        near = {} if self.frames is None else self.frames.found
        found, start = [], 0
        for message in self.messages:
            if message.peer in near:
                found.append(near[message.peer].content.to(device))
            else:
                found.append(self.received[start : start + message.nbytes])
                start += message.nbytes
        return found

    def release(self) -> None:
        """They are read: nobody looks at the pieces any more."""
        for each in () if self.frames is None else self.frames.found.values():
            each.release()


class Frames(SentMessage):
    """Messages of neighbours."""

    def __init__(self, near: Neighbours, peers: Sequence[int], tag: Tag, what: str):
        super().__init__(None, what)
        self.near, self.peers, self.tag = near, peers, tag
        self.found: dict[int, Received] = {}

    def done(self) -> bool:
        return len(self.found) == len(self.peers)

    def block(self) -> None:
        for peer in self.peers:
            if peer not in self.found:
                self.found[peer] = self.near.receive(peer, self.tag, self.what)
