"""Transport: how parts exchange tensors, within a process or between processes.

A part's work is a generator that yields requests (`AllReduce`, `Exchange`, `AllGather`, `Wait`); `run_parts` steps the
parts of this process in turn and answers them. So the same schedule runs on P parts in one process, on one part a
process under torchrun, and on several parts a process.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.ir.schedule import AllToAll
from sarc.runtime.logs import log


@dataclass(frozen=True)
class AllReduce:
    """Combine one tensor of every part: "sum", "max" or "min"; answered with the combined tensor."""

    tensor: Tensor
    op: str


@dataclass(frozen=True)
class Exchange:
    """Send one tensor to each peer; answered with the tensors received, by peer."""

    outgoing: Mapping[int, Tensor]


@dataclass(frozen=True)
class AllGather:
    """Share a small Python object; answered with the list of all parts' objects."""

    value: object


@dataclass(frozen=True)
class Wait:
    """Go on when `handle` is done. `clock` orders waits: the earliest of a process is served first."""

    handle: Handle
    clock: tuple[int, ...]


Request = AllReduce | Exchange | AllGather | Wait
Work = Generator[Request, Any, Any]


class Handle(Protocol):
    """A message on its way."""

    def done(self) -> bool: ...

    def block(self) -> None: ...


class _LocalMessage:
    """One side of a message between two parts of one process."""

    def __init__(self, buffer: Tensor, what: str):
        self.buffer: Tensor | None = buffer
        self.what = what

    def done(self) -> bool:
        return self.buffer is None

    def block(self) -> None:
        raise ExchangeError(f"{self.what}: the peer never answered; every part must run the same schedule")


class _Sent:
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
                f"rank {dist.get_rank()}: {self.what} failed: {_first_line(error)}; the peer has stopped, died or runs "
                f"another program: look at its output, then start all ranks again"
            ) from error
        self.work = None


class _Staged(_Sent):
    """A message of a tensor that the process group does not carry: it travels as a copy on another device."""

    def __init__(self, sent: _Sent, copy: Tensor, into: Tensor | None):
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


class _Queued(_Sent):
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


class _AllToAll(_Sent):
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
                f"rank {dist.get_rank(self.group)}: {self.what} failed: {_first_line(error)}; {_missing(self.group)}: "
                f"look at its output, then start all ranks again"
            ) from error
        self.work = None


# How long a rank that has met an error waits for the others to meet it too.
_ROLL_CALL_SECONDS = 3.0


def _missing(group: dist.ProcessGroup | None) -> str:
    """Which ranks do not answer: those that have met an error as well say so in the job's store."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"sarc/failed/{rank}", "1")
        until = time.monotonic() + _ROLL_CALL_SECONDS
        missing = list(range(world))
        while missing and time.monotonic() < until:
            missing = [r for r in missing if not store.check([f"sarc/failed/{r}"])]
            time.sleep(0.05)
    except RuntimeError:
        return "a peer has stopped or died, and the job's store with it"
    if not missing:
        return "every rank has met an error"
    return f"peer {', '.join(f'rank {r}' for r in missing)} does not answer: it has stopped, died or lags behind"


class _All:
    """Several messages as one."""

    def __init__(self, handles: Sequence[Handle]):
        self.handles = handles

    def done(self) -> bool:
        return all(handle.done() for handle in self.handles)

    def elsewhere(self) -> list[Handle]:
        """The messages of other processes that are still on their way."""
        return [h for h in self.handles if isinstance(h, _Sent) and not h.done()]

    def block(self) -> None:
        """Wait for the messages of other processes; without any, this process's own will never come."""
        for handle in self.elsewhere() or self.handles:
            handle.block()


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
        self._queue: list[tuple[dist.P2POp, _Queued]] = []
        self._posted: dict[tuple[int, int, int], deque[_LocalMessage]] = defaultdict(deque)
        self._receiving: dict[tuple[int, int, int], deque[_LocalMessage]] = defaultdict(deque)

    # --- messages between two parts

    def send(self, src: int, dst: int, buffer: Tensor, what: str, run: int = 0) -> Handle:
        """Post `buffer` uint8 [bytes] from part `src` (hosted here) to part `dst`; it must stay unchanged until done.

        Messages of one `run` between two parts are matched in order; those of different runs never meet.
        """
        self.sent_bytes += buffer.nbytes
        self.sent_messages += 1
        log("exchange", lambda: f"run {run}: send {buffer.nbytes} B, {src} -> {dst}: {what}")
        if self.process_of[dst] == self.process_of[src]:
            message = _LocalMessage(buffer, f"send {what}")
            self._posted[src, dst, run].append(message)
            self._match((src, dst, run))
            return message
        return self._post(dist.isend, buffer, self.process_of[dst], self._tag(src, dst, run), f"send {what}")

    def receive(self, src: int, dst: int, buffer: Tensor, what: str, run: int = 0) -> Handle:
        """Post `buffer` for the next message from part `src` to part `dst` (hosted here)."""
        log("exchange", lambda: f"run {run}: receive {buffer.nbytes} B, {src} -> {dst}: {what}")
        if self.process_of[dst] == self.process_of[src]:
            message = _LocalMessage(buffer, f"receive {what}")
            self._receiving[src, dst, run].append(message)
            self._match((src, dst, run))
            return message
        return self._post(dist.irecv, buffer, self.process_of[src], self._tag(src, dst, run), f"receive {what}")

    def _post(self, op: Callable[..., Any], buffer: Tensor, process: int, tag: int, what: str) -> _Sent:
        """Post a message of another process, at once or with the others that are posted before the next wait."""
        carried = self._carried(buffer, copied=op is dist.isend)
        if self.together:
            sent: _Sent = _Queued(self.flush, what)
            self._queue.append((dist.P2POp(op, carried, process, self.group, tag), sent))  # type: ignore[arg-type]
        else:
            sent = _Sent(op(carried, process, self.group, tag), what)
        return sent if carried is buffer else _Staged(sent, carried, buffer if op is dist.irecv else None)

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
            return _All(handles)
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
        posted = _AllToAll(work, what, self.group)
        return posted if here is received else _Staged(posted, here, received)

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


def carrier(group: dist.ProcessGroup | None = None) -> torch.device:
    """Where the tensors are that a process group carries: on the current GPU for NCCL, else on the CPU."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def run_collective(what: str, run: Callable[[], object], group: dist.ProcessGroup | None = None) -> None:
    """Run a collective; ExchangeError when a rank does not join it in time or has died."""
    try:
        run()
    except RuntimeError as error:
        raise ExchangeError(
            f"rank {dist.get_rank(group)}: {what} failed: {_first_line(error)}; every rank must compile and "
            f"call the model the same number of times and in the same order, and all of them must be alive"
        ) from error


def _first_line(error: Exception) -> str:
    """What gloo says, without its source file and its advice to read other logs."""
    text = str(error).splitlines()[0].split(". This is typically")[0]
    return re.sub(r"^\[[^\]]*\] ", "", text)


def gather_objects(value: object, group: dist.ProcessGroup | None = None) -> list[Any]:
    """A small Python object of every process, in rank order."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    run_collective("all-gather", lambda: dist.all_gather_object(everyone, value, group), group)
    return everyone


def run_parts(works: Mapping[int, Work], transport: Transport) -> dict[int, Any]:
    """Step the works of the hosted parts until all have returned; returns their results.

    Collectives are answered when every hosted part asks for one; a wait for a message of another process blocks only
    when no part of this process can go on, earliest clock first.
    """
    results: dict[int, Any] = {}
    pending: dict[int, Request] = {}
    answers: dict[int, Any] = {part: None for part in works}
    while len(results) < len(works):
        for part, work in works.items():
            while part not in results and part not in pending:
                try:
                    request = work.send(answers[part])
                except StopIteration as stop:
                    results[part] = stop.value
                    break
                answers[part] = None
                if isinstance(request, Wait) and request.handle.done():
                    continue
                pending[part] = request
        if not pending:
            continue
        waits = {p: r for p, r in pending.items() if isinstance(r, Wait)}
        ready = [p for p, r in waits.items() if r.handle.done()]
        if ready:
            for part in ready:
                del pending[part]
            continue
        if waits:
            remote = [p for p in waits if _is_elsewhere(waits[p].handle)]
            part = min(remote or waits, key=lambda p: waits[p].clock)
            waits[part].handle.block()
            if waits[part].handle.done():
                del pending[part]
            continue
        answers.update(_answer(pending, results, transport))
        pending.clear()
    return results


def _is_elsewhere(handle: Handle) -> bool:
    return isinstance(handle, _Sent) or (isinstance(handle, _All) and bool(handle.elsewhere()))


def _answer(pending: dict[int, Request], results: dict[int, Any], transport: Transport) -> dict[int, Any]:
    """Answers to one collective that all hosted parts ask for."""
    kinds = {type(r) for r in pending.values()}
    if results or len(kinds) > 1:
        raise ExchangeError(
            f"parts {sorted(pending)} wait for a collective ({', '.join(sorted(k.__name__ for k in kinds))}) that the "
            f"others never join: the parts run different programs"
        )
    order = sorted(pending)
    first: Any = pending[order[0]]
    asked: dict[int, Any] = dict(pending)
    if isinstance(first, AllReduce):
        total = transport.all_reduce([asked[p].tensor for p in order], first.op)
        return {p: total if k == 0 else total.clone() for k, p in enumerate(order)}
    if isinstance(first, AllGather):
        everything = transport.all_gather({p: asked[p].value for p in order})
        return dict.fromkeys(order, everything)
    incoming = transport.exchange({p: asked[p].outgoing for p in order})
    return {p: incoming[p] for p in order}
