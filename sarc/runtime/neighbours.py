"""Neighbours: the ranks of a process group that run on this machine, reached by sockets and shared memory.

A message is a *frame* on the socket of two ranks: a head and the content, or, where that is large, the place in a block
of the sender's memory (`sarc/runtime/shared_memory.py`) where it lies; the receiver maps the block and reads it there.
A head also says which messages its sender has read, so that their memory is used again. The kernel orders what is
written to memory before a frame before what is read behind it.

Through gloo a message between two processes wakes a thread on either side, and its bytes are copied four times: where
there are more ranks than cores, a collective of a few bytes takes milliseconds. A frame takes some microseconds.
"""

from __future__ import annotations

import os
import pickle
import secrets
import select
import socket
import struct
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.runtime.collectives import carrier, gather_objects
from sarc.runtime.shared_memory import Blocks, map_block

INLINE = 1 << 12  # bytes of content that travel in a frame
# A sum of more bytes is made by all ranks together, each of a slice.
_SLICED = 1 << 18
# Kind and number of the message; its number among those in blocks, or 0; the last one read; its block, start and bytes;
# the sender's oldest block.
_HEAD = struct.Struct("<8q")
EXCHANGE, COLLECTIVE = 0, 1
_TOKEN_BYTES = 16
_COMBINE: dict[str, Any] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}

Tag = tuple[int, int]


class Received:
    """A message: `content` uint8 [bytes], where its sender wrote it, until it is released or dropped."""

    def __init__(self, content: Tensor, peer: _Peer | None = None, number: int = 0):
        self.content = content
        self._end = None
        if peer is not None:
            peer.held.add(number)
            self._end = weakref.finalize(self, peer.held.discard, number)
            self._end.atexit = False

    def release(self) -> None:
        """Nobody looks at the content any more."""
        if self._end is not None:
            self._end()


@dataclass
class _Peer:
    """A rank of this machine.

    Attributes:
        sent: messages in blocks that were sent to it; has_read: the last of them that it has read, with all before.
        seen: the last message in a block that came from it; held: of these, those not read yet.
        blocks: its blocks that are mapped here, by number.
        inbox: messages that came before they were asked for.
    """

    socket: socket.socket
    sent: int = 0
    has_read: int = 0
    seen: int = 0
    held: set[int] = field(default_factory=set)
    blocks: dict[int, Tensor] = field(default_factory=dict)
    inbox: dict[Tag, Received] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """The last of its messages that is read here, with all before."""
        return min(self.held) - 1 if self.held else self.seen


class Neighbours:
    """The ranks of `group` on this machine. Every rank makes one, at the same time (see `meet`).

    Attributes:
        are_all: whether all ranks run on one machine.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        found = _connect(group, self.rank)
        self._peers = {rank: _Peer(connection) for rank, connection in sorted(found.items())}
        self.are_all = all(gather_objects(len(self._peers) == self.world - 1, group))
        seconds = _timeout(group)
        for peer in self._peers.values():
            peer.socket.settimeout(seconds)
        self.blocks = Blocks(lambda rank: self._peers[rank].has_read)
        self._begun = [0, 0]
        self._broken = ""

    def __contains__(self, rank: int) -> bool:
        return rank in self._peers

    def next_tag(self, kind: int) -> Tag:
        """Of the next exchange or collective, which all ranks begin in the same order."""
        self._begun[kind] += 1
        return kind, self._begun[kind]

    def send(self, rank: int, tag: Tag, content: Tensor, what: str) -> None:
        """Send `content` uint8 [bytes]; one of more than `INLINE` bytes lies in a block (see `Blocks.empty`).

        Raises:
            ExchangeError: the rank has died, or no message has reached it for as long as the process group waits.
        """
        peer, nbytes = self._peer(rank, what), content.nbytes
        block, descriptors, carried = None, [], b""
        if nbytes > INLINE:
            block = self.blocks.find(content)
            assert block is not None, "a large message must lie in a block"
            peer.sent += 1
            block.readers[rank] = peer.sent
            if rank not in block.known:
                block.known.add(rank)
                descriptors = [block.fd]
        else:
            carried = content.numpy().tobytes()
        place = (0, 0, 0) if block is None else (peer.sent, block.number, block.start_of(content))
        head = _HEAD.pack(*tag, place[0], peer.read, *place[1:], nbytes, self.blocks.oldest)
        try:
            socket.send_fds(peer.socket, [head, carried], descriptors)
        except OSError as error:
            raise self._fail(rank, what, error) from error

    def receive(self, rank: int, tag: Tag, what: str) -> Received:
        """The message of a rank with this tag; waits for it.

        Raises:
            ExchangeError: the rank has died, or does not send for as long as the process group waits.
        """
        peer = self._peer(rank, what)
        while tag not in peer.inbox:
            try:
                frame, descriptors, _, _ = socket.recv_fds(peer.socket, _HEAD.size + INLINE, 1)
            except OSError as error:
                raise self._fail(rank, what, error) from error
            if not frame:
                raise self._fail(rank, what, None)
            self._enter(peer, frame, descriptors)
        return peer.inbox.pop(tag)

    def _enter(self, peer: _Peer, frame: bytes, descriptors: Sequence[int]) -> None:
        kind, number, place, peer.has_read, block, start, nbytes, oldest = _HEAD.unpack_from(frame)
        peer.blocks = {k: b for k, b in peer.blocks.items() if k >= oldest}
        for fd in descriptors:
            peer.blocks[block] = map_block(fd)
        if not place:
            content = torch.frombuffer(bytearray(frame), dtype=torch.uint8)[_HEAD.size :]
            peer.inbox[kind, number] = Received(content)
            return
        peer.seen = place
        peer.inbox[kind, number] = Received(peer.blocks[block][start : start + nbytes], peer, place)

    def _peer(self, rank: int, what: str) -> _Peer:
        if self._broken:
            raise ExchangeError(f"rank {self.rank}: {what} failed: {self._broken}")
        return self._peers[rank]

    def _fail(self, rank: int, what: str, error: OSError | None) -> ExchangeError:
        """What to raise; from now on nothing travels, and the others are told by the end of their connections."""
        gone = [r for r, peer in self._peers.items() if _has_ended(peer.socket)]
        why = f"peer rank {rank} does not answer: it has stopped, died or lags behind"
        if gone or not isinstance(error, TimeoutError):
            names = ", ".join(f"peer rank {r}" for r in sorted({*gone, rank}))
            why = f"{names} has stopped, died or met an error"
        self._broken = "an exchange has failed before: start all ranks again"
        for peer in self._peers.values():
            peer.socket.close()
        return ExchangeError(
            f"rank {self.rank}: {what} failed: {why}; every rank must compile and call the model the same number of "
            f"times and in the same order: look at its output, then start all ranks again"
        )

    # --- collectives, where all ranks are neighbours

    def _share(self, content: Tensor) -> Tensor:
        """`content` uint8 [bytes], in a block where it must be."""
        return content if content.nbytes <= INLINE else self.blocks.empty(content.nbytes).copy_(content)

    def all_gather(self, content: Tensor, what: str) -> list[Received]:
        """`content` uint8 [bytes] of every rank, in rank order."""
        tag, mine = self.next_tag(COLLECTIVE), self._share(content)
        for rank in self._peers:
            self.send(rank, tag, mine, what)
        return [
            Received(content) if rank == self.rank else self.receive(rank, tag, what) for rank in range(self.world)
        ]

    def gather_objects(self, value: object, what: str = "all-gather") -> list[Any]:
        """A small Python object of every rank, in rank order."""
        mine = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        found = self.all_gather(mine, what)
        objects = [pickle.loads(each.content.numpy().tobytes()) for each in found]
        for each in found:
            each.release()
        return objects

    def all_reduce(self, tensor: Tensor, op: str, what: str) -> None:
        """Combine a contiguous tensor of every rank in place, in rank order: "sum", "max" or "min"."""
        flat = tensor.view(-1)
        if flat.nbytes <= _SLICED:
            self._combine(flat, self.all_gather(flat.view(torch.uint8), what), op, what)
            return
        slices = list(flat.tensor_split(self.world))
        starts = [0]
        for piece in slices:
            starts.append(starts[-1] + piece.nbytes)
        tag, mine = self.next_tag(COLLECTIVE), self._share(flat.view(torch.uint8))
        for rank in self._peers:
            self.send(rank, tag, mine[starts[rank] : starts[rank + 1]], what)
        own = slices[self.rank]
        found = [
            Received(own.view(torch.uint8)) if rank == self.rank else self.receive(rank, tag, what)
            for rank in range(self.world)
        ]
        self._combine(own, found, op, what)
        for piece, each in zip(slices, self.all_gather(own.view(torch.uint8), what), strict=True):
            piece.copy_(_as(each.content, piece, what))
            each.release()

    def _combine(self, into: Tensor, shares: Sequence[Received], op: str, what: str) -> None:
        total = _as(shares[0].content, into, what).clone()
        for share in shares[1:]:
            _COMBINE[op](total, _as(share.content, into, what), out=total)
        into.copy_(total)
        for share in shares:
            share.release()


def _as(content: Tensor, like: Tensor, what: str) -> Tensor:
    """A message's bytes as a tensor of the shape and dtype of another."""
    if content.nbytes != like.nbytes:
        raise ExchangeError(
            f"{what}: expected {like.nbytes} bytes of every rank, got {content.nbytes}: the ranks run other programs"
        )
    aligned = content if content.data_ptr() % like.dtype.itemsize == 0 else content.clone()
    return aligned.view(like.dtype).view(like.shape)


# --- meeting

_MET: weakref.WeakKeyDictionary[dist.ProcessGroup, Neighbours] = weakref.WeakKeyDictionary()


def meet(group: dist.ProcessGroup | None = None) -> Neighbours | None:
    """The neighbours of a process group, or of the default one; made once. All ranks call it, in the same order.

    None where tensors travel between GPUs.
    """
    found = neighbours_of(group)
    if found is None and carrier(group).type == "cpu":
        found = _MET[_key(group)] = Neighbours(group)
    return found


def neighbours_of(group: dist.ProcessGroup | None = None) -> Neighbours | None:
    """The neighbours of a process group whose ranks have met."""
    return _MET.get(_key(group))


def _key(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    return group if group is not None else dist.distributed_c10d._get_default_group()


def _timeout(group: dist.ProcessGroup | None) -> float:
    """Seconds that a process group waits."""
    options: Any = _key(group)._get_backend(torch.device("cpu")).options
    return options._timeout.total_seconds()


def _connect(group: dist.ProcessGroup | None, rank: int) -> dict[int, socket.socket]:
    """A connection to every rank that can be reached by a local socket, by rank.

    Each rank listens for a moment, and answers those alone that know the token it has told the group.

    Raises:
        ExchangeError: a rank has died meanwhile.
    """
    mine: tuple[str, bytes] | None = None
    listener = None
    with suppress(OSError, AttributeError):  # no such sockets or memory on this system: a rank without neighbours
        os.close(os.memfd_create("sarc"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        name = f"\0sarc-{secrets.token_hex(16)}"
        listener.bind(name)
        listener.listen(dist.get_world_size(group))
        mine = name, secrets.token_bytes(_TOKEN_BYTES)
    everyone = gather_objects(mine, group)
    found: dict[int, socket.socket] = {}
    for other, shown in enumerate(everyone[:rank]):
        if mine is not None and shown is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(shown[0])
                connection.send(shown[1] + struct.pack("<q", rank))
                found[other] = connection
            except OSError:  # another machine, where nobody has that name
                connection.close()
    reached = gather_objects(set(found), group)
    if listener is not None and mine is not None:
        with listener:
            listener.settimeout(_timeout(group))
            found |= _accept(listener, mine[1], {r for r, others in enumerate(reached) if rank in others})
    return found


def _accept(listener: socket.socket, token: bytes, expected: set[int]) -> dict[int, socket.socket]:
    """The connections of the expected ranks, which have all been begun."""
    found: dict[int, socket.socket] = {}
    while found.keys() != expected:
        try:
            connection, _ = listener.accept()
            connection.settimeout(listener.gettimeout())
            said = connection.recv(_TOKEN_BYTES + 8)
        except OSError as error:
            missing = ", ".join(f"peer rank {r}" for r in sorted(expected - found.keys()))
            raise ExchangeError(f"connections between the ranks of this machine: {missing} has died") from error
        if said[:_TOKEN_BYTES] == token:
            found[struct.unpack("<q", said[_TOKEN_BYTES:])[0]] = connection
        else:
            connection.close()
    return found


def _has_ended(connection: socket.socket) -> bool:
    """Whether the other side of a connection is gone."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))
