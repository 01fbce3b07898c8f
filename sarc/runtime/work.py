"""Work of a part: a generator that yields requests; `run_parts` steps the parts of this process and answers them.

So one schedule runs on P parts in one process, on one part a process under torchrun, and on several parts a process.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sarc.errors import ExchangeError
from sarc.runtime.messages import Handle, Messages, SentMessage
from sarc.runtime.transport import Transport


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
    return isinstance(handle, SentMessage) or (isinstance(handle, Messages) and bool(handle.elsewhere()))


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
