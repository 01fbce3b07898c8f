"""`sarc plan`: what a model exchanges, stores and keeps; and, after a run, whether that is what happened."""

from __future__ import annotations

from typing import Any

from sarc.commands.output import as_records, write_json, write_lines, write_table
from sarc.commands.run_model import Session
from sarc.ir.placement import Choice
from sarc.runtime.memory_log import CATEGORIES
from sarc.runtime.memory_plan import GROUPS
from sarc.runtime.profile import PartRun, Profile, profile

_EDGES = ("direction", "edge program", "over", "folds", "fetches", "row B", "returns", "row B ", "sends B", "stores B",
          "runs as", "line")  # fmt: skip
_EXCHANGES = ("direction", "exchange", "of", "row B", "how", "sends B", "messages", "holds B", "ring ms", "whole ms",
              "line")  # fmt: skip
_PLACES = ("direction", "edge programs", "site", "chosen", "bytes of all parts", "of a pair of parts", "ms", "memory B",
           "why", "line")  # fmt: skip
_SAVED = ("saved value", "type", "bytes")
_MEMORY = ("part", "direction", "peak B", *CATEGORIES)
_ONCE = ("once", "what", "sends B", "keeps B")
_NEEDS = ("part", *GROUPS, "predicted B")
_CHECK = ("what", "predicted", "measured")


def plan(session: Session, run: bool, as_json: bool) -> None:
    """Print the plan of a training step over all parts of this process.

    Args:
        run: also measure one step, and print predicted against measured.
    """
    session.step()
    made = session.compiled.plan()
    edges = [
        (
            e.stage, f"@{e.name}", e.space, " + ".join(e.folds), ", ".join(e.fetched) or "-", e.fetch_row_bytes,
            e.returned, e.return_row_bytes, e.sent_bytes, e.stored_bytes,
            f"{e.runs.how}: {e.runs.why}" if e.runs.why else e.runs.how, e.loc,
        )
        for e in made.edges
    ]  # fmt: skip
    exchanges = [
        (
            e.stage, f"{e.what} %{e.node}", ", ".join(e.names), e.row_bytes, e.how, e.sent_bytes, e.messages,
            e.held_bytes, round(1e3 * e.ring_seconds, 3), round(1e3 * e.whole_seconds, 3), e.loc,
        )
        for e in made.exchanges
    ]  # fmt: skip
    places = [row for stage, choice in made.placements for row in _place_rows(stage, choice)]
    once = [(f"{e.what} %{e.node}", ", ".join(e.names), e.sent_bytes, 0) for e in made.prologue_exchanges]
    once += [(f"%{name}", type_, 0, size) for name, type_, size in made.prologue]
    needs = [(part.rank, *part.by_group.values(), part.total) for part in made.memory]
    reduces = [(stage, count, size) for stage, (count, size) in made.all_reduces.items()]
    work = [(stage, str(cost.flops), str(cost.nbytes)) for stage, cost in made.work.items()]
    document: dict[str, Any] = {
        "parts": made.num_parts,
        "sent_bytes": made.sent_bytes,
        "saved_bytes": made.saved_bytes,
        "chunk_limit": made.chunk_limit,
        "edge_programs": [{k.strip(): v for k, v in zip(_KEYS, row, strict=True)} for row in edges],
        "exchanges": as_records(_EXCHANGES, exchanges),
        "placements": as_records(_PLACES, places),
        "once": as_records(_ONCE, once),
        "predicted_memory": as_records(_NEEDS, needs),
        "saved": as_records(_SAVED, made.saved),
        "all_reduces": as_records(("direction", "count", "bytes a part"), reduces),
        "work_of_the_whole_graph": as_records(("direction", "operations", "bytes moved"), work),
    }
    measured = None
    if run:
        measured = _measure(session)
        document["memory"] = as_records(_MEMORY, _memory_rows(measured))
        document["predicted_and_measured"] = as_records(_CHECK, _checks(session, measured))
    if as_json:
        write_json(document)
        return
    title = (
        f"{session.found.name}: {made.num_parts} parts, sends {made.sent_bytes} B a step, keeps {made.saved_bytes} B "
        f"between forward and backward, at most {made.chunk_limit} chunks alive on a part"
    )
    write_table(title, _EDGES, edges, "bytes of all parts together, one forward and one backward")
    write_table("exchanges", _EXCHANGES, exchanges, "holds B: most on one part; ms: predicted, for either way")
    if places:
        note = "H_pq source and B_pq destination rows have such edges, a cover C_pq and D_pq of them; ms predicted"
        write_table("where edges run whose ends two parts own", _PLACES, places, note)
    if once:
        write_table("made of data, once a feature matrix", _ONCE, once, "not in the bytes of a step above")
    write_table("kept between forward and backward", _SAVED, made.saved)
    write_table("all-reduces", ("direction", "count", "bytes a part"), reduces)
    write_table("work, whole graph", ("direction", "operations", "bytes moved"), work)
    write_table("memory that a step needs, bytes", _NEEDS, needs, "at the peak, predicted from the schedule")
    if measured is not None:
        write_table("memory at the peak of one step, bytes", _MEMORY, _memory_rows(measured))
        write_table("predicted and measured", _CHECK, _checks(session, measured))
        write_lines(["(categories: " + "; ".join(f"{k}: {v}" for k, v in CATEGORIES.items()) + ")"])


_KEYS = (
    "direction", "edge_program", "over", "folds", "fetches", "fetch_row_bytes", "returns", "return_row_bytes",
    "sent_bytes", "stored_bytes", "runs_as", "line",
)  # fmt: skip


def _place_rows(stage: str, choice: Choice) -> list[tuple[Any, ...]]:
    """The candidates of some edge programs; one row where they run at home only."""
    need = choice.need
    if choice.chosen is None:
        return [(stage, need.name, "dst", "->", None, None, None, None, choice.reason, need.loc)]
    return [
        (
            stage, need.name, c.site, "->" if c is choice.chosen else "", c.nbytes, str(c.formula),
            round(1e3 * c.seconds, 3), c.memory, choice.reason if c is choice.chosen else "", need.loc,
        )
        for c in choice.candidates
    ]  # fmt: skip


def _measure(session: Session) -> tuple[Profile, dict[str, int]]:
    """A profiled step, and the bytes it sent."""
    before = session.compiled.traffic()
    with profile() as found:
        session.step()
    after = session.compiled.traffic()
    return found, {key: after[key] - before[key] for key in after}


def _memory_rows(measured: tuple[Profile, dict[str, int]]) -> list[tuple[Any, ...]]:
    rows = []
    for run in measured[0].runs:
        assert run.memory is not None
        parts = run.memory.by_category(run.memory.peak_place)
        rows.append((run.rank, run.stage, run.memory.peak, *(parts[c] for c in CATEGORIES)))
    return rows


def _checks(session: Session, measured: tuple[Profile, dict[str, int]]) -> list[tuple[Any, ...]]:
    found, sent = measured
    made, schedules = session.compiled.plan(), session.compiled._called().bound.schedules
    messages = sum(len(s.sends()) for each in schedules.values() for s in each)
    return [
        ("bytes sent in messages", made.sent_bytes, sent["sent_bytes"]),
        ("messages", messages, sent["messages"]),
        ("most chunks alive on a part (at most)", made.chunk_limit, max(map(_most_chunks, found.runs), default=0)),
        ("bytes saved for the backward pass", made.saved_bytes, _saved_bytes(found)),
        ("peak bytes of the largest part (at most)", max(p.total for p in made.memory), _peak_bytes(found)),
    ]


def _most_chunks(run: PartRun) -> int:
    assert run.memory is not None
    return run.memory.most("chunks")


def _peak_bytes(found: Profile) -> int:
    return max(run.memory.peak for run in found.runs if run.memory is not None)


def _saved_bytes(found: Profile) -> int:
    total = 0
    for run in found.runs:
        if run.stage == "backward":
            assert run.memory is not None
            total += run.memory.held("saved")
    return total
