"""Transport: how tensors travel between parts, within a process or between processes."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.ir.schedule import AllToAll, Message
from sarc.runtime.arrival import Arrival, Frames
from sarc.runtime.collectives import carrier
from sarc.runtime.logs import log
from sarc.runtime.messages import (
    AllToAllMessage,
    Handle,
    LocalMessage,
    Messages,
    QueuedMessage,
    SentMessage,
    StagedMessage,
)
from sarc.runtime.neighbours import EXCHANGE, neighbours_of
from sarc.runtime.together import all_reduce, gather_numbers, gather_objects

Empty = Callable[[int], Tensor]

_LARGEST_TAG = 2**30


class Transport:
    """The parts of this process and the processes of the others.

    Args:
        num_parts: P.
        hosted: the parts this process runs.
        process_of: the process of each part; None when this process runs all of them.
        group: process group, or None in one process.
        share: whether messages of all-to-alls to processes of this machine may lie in memory that these see, where the
            processes have met (`sarc.runtime.neighbours.meet`).
    """

    def __init__(
        self,
        num_parts: int,
        hosted: Sequence[int],
        process_of: Sequence[int] | None = None,
        group: dist.ProcessGroup | None = None,
        share: bool = False,
    ):
        self.num_parts, self.hosted = num_parts, tuple(hosted)
        self.process_of = tuple(process_of) if process_of is not None else (0,) * num_parts
        self.group = group
        self.rank = dist.get_rank(group) if process_of is not None else 0
        self.distributed = process_of is not None
        self.one_part_each = process_of is not None and list(process_of) == list(range(num_parts))
        self.sent_bytes = 0
        self.sent_messages = 0
        self.all_reduce_bytes = 0
        # NCCL knows no tags, and of two messages of one pair the first posted goes first: they are posted together.
        self.together = self.distributed and dist.get_backend(group) == "nccl"
        self.near = neighbours_of(group) if self.one_part_each and share else None
        self._queue: list[tuple[dist.P2POp, QueuedMessage]] = []
        self._posted: dict[tuple[int, int, int], deque[LocalMessage]] = defaultdict(deque)
        self._receiving: dict[tuple[int, int, int], deque[LocalMessage]] = defaultdict(deque)

    # --- messages between two parts

    def send(self, src: int, dst: int, buffer: Tensor, what: str, run: int = 0) -> Handle:
        """Post `buffer` uint8 [bytes] from part `src` (hosted here) to part `dst`; it must stay unchanged until done.

        Messages of one `run` between two parts are matched in order; those of different runs never meet.
        """
        self.sent_bytes += buffer.nbytes
        self.sent_messages += 1
        log("exchange", lambda: f"run {run}: send {buffer.nbytes} B, {src} -> {dst}: {what}")
        if self.process_of[dst] == self.process_of[src]:
            message = LocalMessage(buffer, f"send {what}")
            self._posted[src, dst, run].append(message)
            self._match((src, dst, run))
            return message
        return self._post(dist.isend, buffer, self.process_of[dst], self._tag(src, dst, run), f"send {what}")

    def receive(self, src: int, dst: int, buffer: Tensor, what: str, run: int = 0) -> Handle:
        """Post `buffer` for the next message from part `src` to part `dst` (hosted here)."""
        log("exchange", lambda: f"run {run}: receive {buffer.nbytes} B, {src} -> {dst}: {what}")
        if self.process_of[dst] == self.process_of[src]:
            message = LocalMessage(buffer, f"receive {what}")
            self._receiving[src, dst, run].append(message)
            self._match((src, dst, run))
            return message
        return self._post(dist.irecv, buffer, self.process_of[src], self._tag(src, dst, run), f"receive {what}")

    def _post(self, op: Callable[..., Any], buffer: Tensor, process: int, tag: int, what: str) -> SentMessage:
        """Post a message of another process, at once or with the others that are posted before the next wait."""
        carried = self._carried(buffer, copied=op is dist.isend)
        if self.together:
            sent: SentMessage = QueuedMessage(self.flush, what)
            self._queue.append((dist.P2POp(op, carried, process, self.group, tag), sent))  # type: ignore[arg-type]
        else:
            sent = SentMessage(op(carried, process, self.group, tag), what)
        return sent if carried is buffer else StagedMessage(sent, carried, buffer if op is dist.irecv else None)

    def _carried(self, buffer: Tensor, copied: bool) -> Tensor:
        """A buffer where the process group carries it: itself, or one of its size (with its content)."""
        where = carrier(self.group)
        if buffer.device.type == where.type:
            return buffer
        return buffer.to(where) if copied else torch.empty_like(buffer, device=where)

    def flush(self) -> None:
        """Post what is queued, in one call."""
        queue, self._queue = self._queue, []
        if not queue:
            return
        works = dist.batch_isend_irecv([op for op, _ in queue])
        for k, (_, message) in enumerate(queue):
            message.work = works[min(k, len(works) - 1)]

    def outbox(self, step: AllToAll, device: torch.device, empty: Empty) -> Tensor:
        """Memory uint8 [bytes] for the messages of `step`, one after the other: shared, or of `empty`."""
        nbytes = sum(m.nbytes for m in step.sends)
        if self.near is not None and device.type == "cpu":
            return self.near.blocks.empty(nbytes)
        return empty(nbytes)

    def all_to_all(self, part: int, step: AllToAll, sent: Tensor, empty: Empty, what: str, run: int = 0) -> Arrival:
        """Post the messages of `step`, one after the other in `sent` uint8 [bytes] (see `outbox`), of a hosted part.

        With one part a process those to this machine stay where they are and are named to their readers; the others
        travel in one all-to-all of the process group. Otherwise each travels for itself. Every part calls it, in the
        same order.

        Args:
            empty: uninitialised memory uint8 on the part's device, of so many bytes.
        """
        if not self.one_part_each:
            return self._each_for_itself(part, step, sent, empty, what, run)
        self.sent_bytes += sent.nbytes
        self.sent_messages += len(step.sends)
        log("exchange", lambda: f"run {run}: all-to-all, sends {sent.nbytes} B: {what}")
        self.flush()
        if self.near is None:
            return Arrival(step.receives, *self._all_to_all(step.sends, sent, step.receives, empty, what))
        if sent.device.type != "cpu":  # `outbox` gave memory of the device
            sent = self.near.blocks.empty(sent.nbytes).copy_(sent)
        tag, pieces = self.near.next_tag(EXCHANGE), sent.split([m.nbytes for m in step.sends])
        for message, piece in zip(step.sends, pieces, strict=True):
            if message.peer in self.near:
                self.near.send(message.peer, tag, piece, what)
        frames = Frames(self.near, [m.peer for m in step.receives if m.peer in self.near], tag, what)
        if self.near.are_all:
            return Arrival(step.receives, Messages(()), sent[:0], frames)
        far = [(m, piece) for m, piece in zip(step.sends, pieces, strict=True) if m.peer not in self.near]
        out = torch.cat([piece for _, piece in far]) if far else sent[:0]
        back = [m for m in step.receives if m.peer not in self.near]
        return Arrival(step.receives, *self._all_to_all([m for m, _ in far], out, back, empty, what), frames)

    def _each_for_itself(
        self, part: int, step: AllToAll, sent: Tensor, empty: Empty, what: str, run: int
    ) -> Arrival:
        sizes = [m.nbytes for m in step.receives]
        received = empty(sum(sizes))
        handles: list[Handle] = []
        for m, buffer in zip(step.receives, received.split(sizes), strict=True):
            handles.append(self.receive(m.peer, part, buffer, f"{what} from part {m.peer}", run))
        for m, buffer in zip(step.sends, sent.split([m.nbytes for m in step.sends]), strict=True):
            handles.append(self.send(part, m.peer, buffer, f"{what} to part {m.peer}", run))
        return Arrival(step.receives, Messages(handles), received)

    def _all_to_all(
        self, sends: Sequence[Message], sent: Tensor, receives: Sequence[Message], empty: Empty, what: str
    ) -> tuple[Handle, Tensor]:
        """An all-to-all of the process group, and where it puts what comes."""
        out, back = [0] * self.num_parts, [0] * self.num_parts
        for messages, sizes in ((sends, out), (receives, back)):
            for m in messages:
                sizes[m.peer] = m.nbytes
        received = empty(sum(back))
        there, here = self._carried(sent, copied=True), self._carried(received, copied=False)
        work = dist.all_to_all_single(here, there, back, out, self.group, async_op=True)
        posted = AllToAllMessage(work, what, self.group)
        return posted if here is received else StagedMessage(posted, here, received), received

    def _tag(self, src: int, dst: int, run: int) -> int:
        """gloo matches by tag, and a buffer of the wrong size aborts the process: a rank in another run times out."""
        pairs = self.num_parts**2
        return (run % max(1, _LARGEST_TAG // pairs)) * pairs + src * self.num_parts + dst

    def _match(self, key: tuple[int, int, int]) -> None:
        posted, receiving = self._posted[key], self._receiving[key]
        while posted and receiving:
            outgoing, incoming = posted.popleft(), receiving.popleft()
            source, target = outgoing.buffer, incoming.buffer
            assert source is not None and target is not None
            if source.shape != target.shape:
                raise ExchangeError(
                    f"{incoming.what}: expected {target.nbytes} bytes, got {source.nbytes}: the parts run different "
                    f"schedules"
                )
            target.copy_(source)
            outgoing.buffer = incoming.buffer = None
        if not posted and not receiving:
            del self._posted[key], self._receiving[key]

    # --- collectives

    def all_gather_numbers(self, numbers: Sequence[int]) -> list[tuple[int, ...]]:
        """The int64 `numbers` of every process, in rank order."""
        if not self.distributed:
            return [tuple(numbers)]
        self.flush()
        return gather_numbers(numbers, "agreement on a call", self.group)

    def all_reduce(self, tensors: Sequence[Tensor], op: str) -> Tensor:
        """Combine the hosted parts' tensors in part order, then those of the processes."""
        total = tensors[0].clone()
        for tensor in tensors[1:]:
            if op == "sum":
                total += tensor
            else:
                total = torch.maximum(total, tensor) if op == "max" else torch.minimum(total, tensor)
        if self.distributed:
            self.all_reduce_bytes += total.nbytes
            wide = total.to(torch.uint8) if total.dtype == torch.bool else total.contiguous()
            wide = self._carried(wide, copied=True)
            self.flush()
            all_reduce(wide, op, "all-reduce", self.group)
            total = wide.to(total.device, total.dtype)
        return total

    def all_gather(self, values: Mapping[int, Any]) -> list[Any]:
        """One object of every part, in part order."""
        everything = dict(values)
        if self.distributed:
            lists = gather_objects(everything, self.group)
            everything = {part: value for each in lists for part, value in each.items()}
        return [everything[part] for part in range(self.num_parts)]

    def exchange(self, outgoing: Mapping[int, Mapping[int, Tensor]]) -> dict[int, dict[int, Tensor]]:
        """Tensors from every hosted part to every part, by (sender, receiver); answered by (receiver, sender)."""
        incoming: dict[int, dict[int, Tensor]] = {p: {} for p in self.hosted}
        if not self.distributed:
            for src, messages in outgoing.items():
                for dst, tensor in messages.items():
                    incoming[dst][src] = tensor
            return incoming
        heads = {
            src: {dst: (tuple(t.shape), t.dtype, t.device.type) for dst, t in messages.items()}
            for src, messages in outgoing.items()
        }
        everyone = self.all_gather(heads)
        handles = []
        for src in range(self.num_parts):
            for dst, (shape, dtype, device) in sorted(everyone[src].items()):
                if dst not in self.hosted:
                    continue
                if src in self.hosted:
                    incoming[dst][src] = outgoing[src][dst]
                    continue
                buffer = torch.empty(shape, dtype=dtype, device=device)
                incoming[dst][src] = buffer
                raw = buffer.view(-1).view(torch.uint8) if buffer.numel() else None
                if raw is not None:
                    handles.append(self.receive(src, dst, raw, f"bind {src} -> {dst}"))
        for src, messages in sorted(outgoing.items()):
            for dst, tensor in sorted(messages.items()):
                if dst in self.hosted or not tensor.numel():
                    continue
                raw = tensor.contiguous().view(-1).view(torch.uint8)
                handles.append(self.send(src, dst, raw, f"bind {src} -> {dst}"))
        for handle in handles:
            handle.block()
        return incoming
