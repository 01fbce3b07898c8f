"""Transport: how tensors travel between parts, within a process or between processes."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.ir.schedule import AllToAll
from sarc.runtime.collectives import carrier, gather_objects, run_collective
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

_LARGEST_TAG = 2**30


class Transport:
    """The parts of this process and the processes of the others.

    Args:
        num_parts: P.
        hosted: the parts this process runs.
        process_of: the process of each part; None when this process runs all of them.
        group: process group, or None in one process.
    """

    def __init__(
        self,
        num_parts: int,
        hosted: Sequence[int],
        process_of: Sequence[int] | None = None,
        group: dist.ProcessGroup | None = None,
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

    def all_to_all(
        self, part: int, step: AllToAll, sent: Tensor, received: Tensor, what: str, run: int = 0
    ) -> Handle:
        """Post the messages of `step`, one after the other in `sent` and `received` uint8 [bytes], of a hosted part.

        With one part a process they travel in one all-to-all of the process group, otherwise each for itself. Every
        part calls it, in the same order.
        """
        if not self.one_part_each:
            handles, start = [], 0
            for m in step.receives:
                buffer = received[start : start + m.nbytes]
                handles.append(self.receive(m.peer, part, buffer, f"{what} from part {m.peer}", run))
                start += m.nbytes
            start = 0
            for m in step.sends:
                buffer = sent[start : start + m.nbytes]
                handles.append(self.send(part, m.peer, buffer, f"{what} to part {m.peer}", run))
                start += m.nbytes
            return Messages(handles)
        self.sent_bytes += sent.nbytes
        self.sent_messages += len(step.sends)
        log("exchange", lambda: f"run {run}: all-to-all, sends {sent.nbytes} B, receives {received.nbytes} B: {what}")
        out, back = [0] * self.num_parts, [0] * self.num_parts
        for messages, sizes in ((step.sends, out), (step.receives, back)):
            for m in messages:
                sizes[m.peer] = m.nbytes
        self.flush()
        there, here = self._carried(sent, copied=True), self._carried(received, copied=False)
        work = dist.all_to_all_single(here, there, back, out, self.group, async_op=True)
        posted = AllToAllMessage(work, what, self.group)
        return posted if here is received else StagedMessage(posted, here, received)

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
        mine = torch.tensor(numbers, dtype=torch.int64, device=carrier(self.group))
        everyone = mine.new_empty((dist.get_world_size(self.group), mine.numel()))
        rows = list(everyone.unbind())
        self._collective("agreement on a call", lambda: dist.all_gather(rows, mine, self.group))
        return [tuple(row) for row in everyone.tolist()]

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
            kinds = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
            self._collective("all-reduce", lambda: dist.all_reduce(wide, kinds[op], self.group))
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

    def _collective(self, what: str, run: Callable[[], object]) -> None:
        self.flush()
        run_collective(what, run, self.group)
