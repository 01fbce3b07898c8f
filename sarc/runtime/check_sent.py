"""What was planned is what is sent: bytes of every edge program and pair, twice compared.

The cost model counts rows that travel; a schedule lists messages; an executor counts the bytes it hands over. When a
program is bound its schedules must send what the chosen placements cost, and every run what its schedule lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.fx as fx

from sarc.errors import ExchangeError
from sarc.ir.collective import fetch
from sarc.ir.edge_program import edge_call
from sarc.ir.frontier import row_width
from sarc.ir.placement import Choice
from sarc.ir.program import Program
from sarc.ir.schedule import Message, Schedule

# Bytes by name of the edge call or exchange, and receiving part.
Sent = Mapping[tuple[str, int], int]


def scheduled(schedule: Schedule) -> Counter[tuple[str, int]]:
    """What a part sends by its schedule."""
    found: Counter[tuple[str, int]] = Counter()
    for name, message in schedule.sends():
        found[name, message.peer] += message.nbytes
    return found


def check_planned(program: Program, schedules: Sequence[Schedule], choices: Sequence[Choice]) -> None:
    """ExchangeError unless schedules of a partitioned program send what the choices of its edge programs cost."""
    group_of = {name: k for k, choice in enumerate(choices) if choice.chosen for name in choice.visits}
    nodes = {n.name: n for n in program.graph.nodes}
    for schedule in schedules:
        listed: Counter[tuple[int, int]] = Counter()
        for name, message in schedule.sends():
            for group, row_bytes in _shares(nodes[name], group_of, schedule.wire, message):
                listed[group, message.peer] += row_bytes * message.rows
        for k, choice in enumerate(choices):
            sent = choice.chosen.sent if choice.chosen else {}
            to = {q for p, q in sent if p == schedule.rank} | {q for group, q in listed if group == k}
            for peer in sorted(to):
                planned, found = sent.get((schedule.rank, peer), 0), listed[k, peer]
                if planned != found:
                    raise _mismatch(schedule, choice.need.name, peer, "planned", planned, "scheduled", found)


def _shares(
    node: fx.Node, group_of: Mapping[str, int], wire: torch.dtype | None, message: Message
) -> list[tuple[int, int]]:
    """Bytes of a row that travel for each choice, in one message of a fetch, a give-back or an edge call."""
    if node.target is edge_call:
        group = group_of.get(node.args[0].name)
        return [] if group is None else [(group, message.nbytes // message.rows)]
    found = []
    for k, value in enumerate(node.args[0]):
        if node.target is fetch:
            groups = _readers((u for u in node.users if u.args[1] == k), group_of)
        else:
            groups = {group_of[name] for name in [value.args[0].args[0].name] if name in group_of}
        found += [(group, row_width(value.meta["type"], wire)) for group in sorted(groups)]
    return found


def _readers(values: Iterable[fx.Node], group_of: Mapping[str, int]) -> set[int]:
    """Groups whose edge programs read values over a reach, or what is computed of them for its rows."""
    found, stack = set(), list(values)
    while stack:
        node = stack.pop()
        reaches = _spaces(node)
        for user in node.users:
            if user.target is edge_call and user.args[0].name in group_of:
                found.add(group_of[user.args[0].name])
            elif user.op == "call_function" and reaches & _spaces(user):
                stack.append(user)
    return found


def _spaces(node: fx.Node) -> set[str]:
    types = node.meta["type"] if isinstance(node.meta["type"], tuple) else (node.meta["type"],)
    return {space for type_ in types for space in type_.spaces}


def check_sent(schedule: Schedule, counted: Sent) -> None:
    """ExchangeError unless a run has sent what its schedule lists."""
    listed = scheduled(schedule)
    for name, peer in sorted({*listed, *counted}):
        planned, found = listed.get((name, peer), 0), counted.get((name, peer), 0)
        if planned != found:
            raise _mismatch(schedule, f"%{name}", peer, "planned", planned, "sent", found)


def _mismatch(
    schedule: Schedule, what: str, peer: int, name: str, planned: int, other: str, found: int
) -> ExchangeError:
    return ExchangeError(
        f"internal error: {schedule.stage} {what}, part {schedule.rank} to part {peer}: {planned} B {name}, {found} B "
        f"{other}; please report it with the model and the number of parts"
    )
