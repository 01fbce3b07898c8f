"""What the parts of this process exchange in one run of a program, how, and what the other way would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sarc.ir.collective import fetch, give_back
from sarc.ir.edge_program import edge_call, fetch_layout, return_layout, whole_layout
from sarc.ir.exchange import ring_seconds, whole_seconds
from sarc.ir.program import Program
from sarc.ir.schedule import Schedule
from sarc.partition.columns import ColumnMap
from sarc.runtime.part_state import PartState


@dataclass(frozen=True)
class ExchangePlan:
    """One exchange of rows between parts.

    Attributes:
        stage: "forward" or "backward".
        node: the fetch, the give-back or the edge call it belongs to.
        what: "fetch" or "return"; a ring may do both.
        how: "whole" (all peers at once) or "ring".
        names: values fetched, or the edge call whose folds are returned.
        row_bytes: of one row of all that travels.
        sent_bytes: payload this process sends for it in one run.
        held_bytes: rows of other parts held at once on the part that holds most of them.
        messages: most messages that a part sends for it.
        ring_seconds, whole_seconds: predicted for the part that reads most rows.
        loc: the user's line.
    """

    stage: str
    node: str
    what: str
    how: str
    names: tuple[str, ...]
    row_bytes: int
    sent_bytes: int
    held_bytes: int
    messages: int
    ring_seconds: float
    whole_seconds: float
    loc: str

    def __str__(self) -> str:
        times = f"ring {1e3 * self.ring_seconds:.2f} ms, whole {1e3 * self.whole_seconds:.2f} ms predicted"
        at = f"   # {self.loc}" if self.loc else ""
        held = f"holds {self.held_bytes} B{at}"
        return (
            f"{self.stage:8} %{self.node}: {self.what} of {', '.join(self.names)} ({self.row_bytes} B a row), "
            f"{self.how} ({times}); sends {self.sent_bytes} B in {self.messages} messages, {held}"
        )


def plan_exchanges(
    stage: str, program: Program, schedules: Sequence[Schedule], states: Sequence[PartState]
) -> list[ExchangePlan]:
    """Every exchange of a program, in order."""
    found = []
    spaces, wire = program.spaces, schedules[0].wire
    parents = {s.mask: s.parents[0] for s in spaces if s.kind == "reach"}
    columns = states[0].columns
    sent: dict[str, list[list[int]]] = {}
    for schedule in schedules:
        for name in {name for name, _ in schedule.sends()}:
            sent.setdefault(name, []).append([m.nbytes for call, m in schedule.sends() if call == name])
    for node in program.graph.nodes:
        common = (node.meta.get("loc", ""), sent.get(node.name, []))
        if node.target in (fetch, give_back):
            column = columns[node.args[1].name, parents[node.args[1].name]]
            what = "fetch" if node.target is fetch else "return"
            names = tuple(f"%{v.name}" for v in node.args[0])
            row = whole_layout(node, wire).row_bytes
            found.append(_plan(stage, node.name, what, "whole", names, row, column, 0, *common))
        elif node.target is edge_call and node.args[0].remote is not None:
            edges, values, names = node.args
            fetched = fetch_layout(edges, [v.meta["type"] for v in values], spaces, wire)
            back = return_layout(edges, spaces, wire)
            column = next(
                m for (c, _), m in columns.items() if c == names[edges.remote].name and m.remote
            )
            row = fetched.row_bytes + back.row_bytes
            if row:
                what = " and ".join(w for w, layout in (("fetch", fetched), ("return", back)) if layout.entries)
                read = tuple(f"%{values[key].name}" for key, *_ in fetched.entries)
                folds = tuple(f"{len(back.entries)} folds" for _ in range(bool(back.entries)))
                chunk = max((n for needs in column.needs for n in needs), default=0)
                found.append(_plan(stage, node.name, what, "ring", read + folds, row, column, chunk, *common))
    return found


def _plan(
    stage: str, node: str, what: str, how: str, names: tuple[str, ...], row: int, column: ColumnMap, chunk: int,
    loc: str, sent: Any,
) -> ExchangePlan:
    nbytes = column.most_halo_rows * row
    return ExchangePlan(
        stage,
        node,
        what,
        how,
        names,
        row,
        sum(map(sum, sent)),
        nbytes if how == "whole" else chunk * row,
        max(map(len, sent), default=0),
        ring_seconds(nbytes, sum(column.round_chunks)),
        whole_seconds(nbytes),
        loc,
    )
