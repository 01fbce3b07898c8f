"""What the report shows of a plan: what travels and why there, and the memory that a step was predicted to need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sarc.ir.placement import Choice
from sarc.runtime.plan import Plan
from sarc.runtime.plan_exchanges import ExchangePlan
from sarc.runtime.profile import PartRun


def planned_travel(plan: Plan) -> dict[str, Any]:
    """The exchanges of a step, what is made of data once, and the candidates for where edges run."""
    once = [
        {"what": f"{e.what} %{e.node}: sent", "value": _named(e.names), "bytes": e.sent_bytes}
        for e in plan.prologue_exchanges
    ]
    once += [{"what": "kept", "value": f"%{name}: {type_}", "bytes": size} for name, type_, size in plan.prologue]
    return {
        "exchanges": [_exchange(e) for e in plan.exchanges],
        "once": once,
        "placements": [row for stage, choice in plan.placements for row in _candidates(stage, choice)],
    }


def planned_memory(plan: Plan, runs: Sequence[PartRun]) -> list[dict[str, Any]]:
    """Bytes that a step needs on each part as predicted, by group, and the most that was alive in these runs."""
    rows = []
    for part in plan.memory:
        peaks = [r.memory.peak for r in runs if r.memory is not None and r.rank == part.rank]
        measured = max(peaks, default=None)
        rows.append({"rank": part.rank, "groups": part.by_group, "total": part.total, "measured": measured})
    return rows


def _exchange(exchange: ExchangePlan) -> dict[str, Any]:
    return {
        "stage": exchange.stage,
        "what": exchange.what,
        "names": list(exchange.names),
        "row_bytes": exchange.row_bytes,
        "how": exchange.how,
        "sent_bytes": exchange.sent_bytes,
        "messages": exchange.messages,
        "whole_seconds": exchange.whole_seconds,
        "ring_seconds": exchange.ring_seconds,
        "line": exchange.loc,
    }


def _candidates(stage: str, choice: Choice) -> list[dict[str, Any]]:
    """One row a candidate; one row alone where edge programs run at home only."""
    head = {"stage": stage, "programs": choice.need.name, "line": choice.need.loc}
    if choice.chosen is None:
        none = dict.fromkeys(("bytes", "seconds", "memory"))
        return [{**head, "site": "dst", "chosen": True, **none, "why": choice.reason}]
    return [
        {
            **head,
            "site": c.site,
            "chosen": c is choice.chosen,
            "bytes": c.nbytes,
            "seconds": c.seconds,
            "memory": c.memory,
            "why": choice.reason if c is choice.chosen else "",
        }
        for c in choice.candidates
    ]


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"%{name.removeprefix('%')}" for name in names)
