"""Everything the report shows, as one JSON document."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sympy

from sarc.codegen.cuda_kernels import CudaKernel
from sarc.codegen.explain import try_emit
from sarc.ir.edge_program import edge_call
from sarc.ir.program import Program
from sarc.report.describe_plan import planned_memory, planned_travel
from sarc.report.describe_program import describe_values, edge_program_json
from sarc.report.place_graph import place_graph
from sarc.report.predict import Rates, least_seconds, predict
from sarc.report.program_dot import row_kind
from sarc.runtime.memory_log import CATEGORIES
from sarc.runtime.module import CompiledModule
from sarc.runtime.plan import Plan
from sarc.runtime.profile import PartRun, Profile
from sarc.runtime.trace import COMPUTE, LANES

# A page stays small: the shortest events are left out beyond these numbers, and it says how many.
MOST_EVENTS = 20_000
MOST_POINTS = 1_500
MOST_VALUES = 12_000
MOST_ALIVE = 40


def collect(compiled: CompiledModule, measured: Profile, rates: Rates | None, title: str) -> dict[str, Any]:
    """The report's document.

    Args:
        compiled: has been called.
        measured: at least one call of it; the last one is shown.
        rates: of the machine, for the prediction; None leaves it out.
    """
    variant = compiled._called()
    binding, plan = variant.bound, compiled.plan()
    programs = {**variant.stages.programs, **{f"partitioned {k}": p for k, p in binding.programs.items()}}
    runs = last_step(measured)
    in_turn = len({r.rank for r in runs}) > 1 and len(compiled._placed.transport.hosted) > 1
    sizes = {k: int(v) for k, v in binding.order.states[0].total_sizes().items()}
    zero = min((r.starts[0] for r in runs if r.starts), default=0.0)
    return {
        "title": title,
        "in_turn": in_turn,
        "facts": _facts(compiled, plan, runs, sizes),
        "sizes": sizes,
        "programs": _programs(programs, sizes),
        "matrix": _matrix(compiled),
        **planned_travel(plan),
        "lines": _lines(compiled, runs),
        "timeline": _timeline(runs, zero),
        "predicted": _predicted(binding, runs, rates) if rates is not None and compiled._placed.whole else None,
        "rates": None if rates is None else vars(rates),
        "memory": [_memory(r) for r in runs if r.memory is not None],
        "categories": CATEGORIES,
        "planned": planned_memory(plan, runs),
        "saved": sorted(plan.saved, key=lambda s: -s[2])[:MOST_ALIVE],
        "kernels": _kernels(compiled, plan, runs),
    }


def last_step(measured: Profile) -> list[PartRun]:
    """The runs of the last call: its forward, and its backward if there is one."""
    if not measured.runs:
        raise ValueError("expected a profile with at least one call of the compiled module, got an empty one")
    last = max(r.number // 2 for r in measured.runs)
    return [r for r in measured.runs if r.number // 2 == last]


def _facts(compiled: CompiledModule, plan: Plan, runs: Sequence[PartRun], sizes: dict[str, int]) -> dict[str, Any]:
    computing = sum(
        e - s for r in runs for k, s, e in zip(r.kinds, r.starts, r.ends, strict=True) if LANES[k] == COMPUTE
    )
    peaks = [r.memory.peak for r in runs if r.memory is not None]
    return {
        "model": type(compiled.model).__name__,
        "parts": plan.num_parts,
        "ranks shown": sorted({r.rank for r in runs}),
        "nodes": sizes["N"],
        "edges": sizes["E"],
        "cut by": compiled._placed.partitions.method,
        "sent_bytes": plan.sent_bytes,
        "saved_bytes": plan.saved_bytes,
        "peak_bytes": max(peaks, default=0),
        "seconds": max((r.ends[-1] for r in runs if r.ends), default=0.0)
        - min((r.starts[0] for r in runs if r.starts), default=0.0),
        "compute_seconds": computing,
        "parameters": sum(p.numel() for p in compiled.parameters()),
    }


def _programs(programs: dict[str, Program], sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Every stage, or only the first and the last ones where the model is very large."""
    count = sum(len(p.graph.nodes) for p in programs.values())
    if count > MOST_VALUES:
        kept = ("raised", "structure", "partitioned forward", "partitioned backward")
        programs = {name: p for name, p in programs.items() if name in kept}
    return [_program(name, p, sizes) for name, p in programs.items()]


def _program(name: str, program: Program, sizes: dict[str, int]) -> dict[str, Any]:
    values = describe_values(program)
    places = place_graph(values)
    number = {v.name: k for k, v in enumerate(values)}
    numbers = {sympy.Symbol(k): v for k, v in sizes.items()}
    known: dict[str, int] = {}

    def count(formula: str) -> int:
        if formula not in known:
            known[formula] = (
                int(sympy.sympify(formula, locals={k: sympy.Symbol(k) for k in sizes}).subs(numbers)) if formula else 0
            )
        return known[formula]

    rows = [
        [
            v.name, v.op, v.call, ", ".join(v.types), v.nbytes, count(v.nbytes), v.loc, v.result, row_kind(program, v),
            x, y, [number[o] for o in v.operands],
        ]
        for v, (x, y) in zip(values, places, strict=True)
    ]  # fmt: skip
    edges = {
        e["name"]: e["text"]
        for e in (edge_program_json(n.args[0]) for n in program.graph.nodes if n.target is edge_call)
    }
    spaces = [f"{s}: {sizes[s.name]} rows" if s.name in sizes else str(s) for s in program.spaces]
    return {"stage": name, "spaces": spaces, "values": rows, "edges": edges}


def _matrix(compiled: CompiledModule) -> list[dict[str, Any]]:
    """Bytes that each part sends to each other, by direction; None where another process holds the sender."""
    binding = compiled._called().bound
    parts = binding.order.states[0].part.num_parts
    found = []
    for stage, schedules in binding.schedules.items():
        table: list[list[int | None]] = [[None] * parts for _ in range(parts)]
        for schedule in schedules:
            table[schedule.rank] = [0] * parts
            for _, message in schedule.sends():
                table[schedule.rank][message.peer] = (table[schedule.rank][message.peer] or 0) + message.nbytes
        found.append({"stage": stage, "bytes": table})
    return found


def _lines(compiled: CompiledModule, runs: Sequence[PartRun]) -> list[dict[str, Any]]:
    """What each line of the model costs, all shown ranks together: seconds computing, bytes sent."""
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    sent: dict[tuple[str, str], int] = defaultdict(int)
    for run in runs:
        for kind, line, start, end in zip(run.kinds, run.lines, run.starts, run.ends, strict=True):
            if LANES[kind] == COMPUTE and kind != "Free":
                seconds[line, run.stage] += end - start
    binding = compiled._called().bound
    for stage, schedules in binding.schedules.items():
        lines = {n.name: n.meta.get("loc", "") for n in binding.programs[stage].graph.nodes}
        for schedule in schedules:
            for name, message in schedule.sends():
                sent[lines[name], stage] += message.nbytes
    keys = list(dict.fromkeys([*seconds, *sent]))
    rows = [{"line": line or "(no line)", "stage": stage, "seconds": seconds[line, stage], "sent": sent[line, stage]}
            for line, stage in keys]  # fmt: skip
    return sorted(rows, key=lambda r: (-float(r["seconds"]), str(r["line"]), str(r["stage"])))


def _timeline(runs: Sequence[PartRun], zero: float) -> dict[str, Any]:
    """Events as [rank, lane, start us, duration us, text, line]; texts and lines by number."""
    events = []
    for run in runs:
        for kind, name, line, start, end in zip(run.kinds, run.names, run.lines, run.starts, run.ends, strict=True):
            if kind != "Free":
                text = f"{run.stage} {event_text(kind, name)}"
                events.append((run.rank, LANES[kind], kind, start - zero, end - start, text, line))
    return _packed(events)


def _predicted(binding: Any, runs: Sequence[PartRun], rates: Rates) -> dict[str, Any]:
    """The same for the prediction, with the shortest times of the measured instructions."""
    events = []
    spent = [e - s for r in runs for s, e in zip(r.starts, r.ends, strict=True)]
    least = least_seconds([k for r in runs for k in r.kinds], spent)
    offset = 0.0
    for stage, schedules in binding.schedules.items():
        program = binding.programs[stage]
        lines = {n.name: n.meta.get("loc", "") for n in program.graph.nodes}
        found = predict(program, schedules, binding.order.states, rates, least)
        for part, schedule in zip(found, schedules, strict=True):
            for step, start, end in zip(schedule.instructions, part.starts, part.ends, strict=True):
                kind = type(step).__name__
                if kind == "Free":
                    continue
                value = str(
                    getattr(step, "node", "") or getattr(step, "call", "") or getattr(step, "buffer", "").split(".")[0]
                )
                text = f"{stage} {event_text(kind, ' '.join(str(step).split()))}"
                events.append((part.rank, LANES[kind], kind, offset + start, end - start, text, lines.get(value, "")))
        offset += max((p.ends[-1] for p in found if p.ends), default=0.0)
    return {**_packed(events), "least": least}


def event_text(kind: str, name: str) -> str:
    """An instruction's text without what differs from chunk to chunk: a page has room for few different texts."""
    if kind not in ("PostRecv", "Send", "Wait"):
        return re.sub(r"( part \d+) chunk .*", r"\1", name)
    word, buffer, *rest = name.split(" ")
    call, place, _ = buffer.rsplit(".", 2)
    peer = re.search(r"part \d+", " ".join(rest))
    return f"{word} {call}.{place.rstrip('0123456789')}{f' {peer[0]}' if peer else ''}"


def _packed(events: list[tuple[int, int, str, float, float, str, str]]) -> dict[str, Any]:
    left_out = 0
    if len(events) > MOST_EVENTS:
        bound = sorted((e[4] for e in events), reverse=True)[MOST_EVENTS]
        kept = [e for e in events if e[4] > bound]
        left_out, events = len(events) - len(kept), kept
    names: dict[str, int] = {}
    rows = []
    for rank, lane, kind, start, seconds, text, line in events:
        rows.append([
            rank, lane, names.setdefault(kind, len(names)), round(start * 1e6), max(1, round(seconds * 1e6)),
            names.setdefault(text, len(names)), names.setdefault(line, len(names)),
        ])  # fmt: skip
    return {"names": list(names), "events": rows, "left_out": left_out}


def _memory(run: PartRun) -> dict[str, Any]:
    """Bytes alive after each instruction (the largest of each stretch where there are many), and what is alive at the
    peak."""
    assert run.memory is not None
    live = run.memory.live
    step = max(1, -(-len(live) // MOST_POINTS))
    points = [[k, max(live[k : k + step])] for k in range(0, len(live), step)]
    at = run.memory.peak_place
    lines = dict(zip(run.values, run.lines, strict=True))
    alive = run.memory.alive_at(at)
    return {
        "rank": run.rank,
        "stage": run.stage,
        "points": points,
        "peak": run.memory.peak,
        "at": at,
        "instruction": run.names[at] if run.names else "",
        "line": run.lines[at] if run.lines else "",
        "by_category": {k: v for k, v in run.memory.by_category(at).items() if v},
        "alive": [[v.name, v.category, v.nbytes, lines.get(v.name, "")] for v in alive[:MOST_ALIVE]],
        "rest": [max(0, len(alive) - MOST_ALIVE), sum(v.nbytes for v in alive[MOST_ALIVE:])],
    }


def _kernels(compiled: CompiledModule, plan: Plan, runs: Sequence[PartRun]) -> list[dict[str, Any]]:
    """Edge programs and plain operators by their share of the computing time; equal sources stand together."""
    binding = compiled._called().bound
    how = {(e.stage, e.name): e.runs for e in plan.edges}
    cuda = any(isinstance(kernel, CudaKernel) for made in binding.kernels.values() for kernel in made.values())
    target, language = ("cuda", "CUDA C++") if cuda else ("cpp", "C++")
    groups: dict[str, dict[str, Any]] = {}
    calls: dict[tuple[str, str], str] = {}
    for stage, program in binding.programs.items():
        for node in program.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target is not edge_call:
                key = str(getattr(node.target, "__name__", node.target)).removesuffix(".default")
                entry = groups.setdefault(key, _group(key, "operator of PyTorch on the rows of a part"))
            else:
                edges = node.args[0]
                found = try_emit(edges, target)
                text = found if isinstance(found, str) else "\n".join(s.text for s in found)
                key = re.sub(r"//[^\n]*", "", text) if not isinstance(found, str) else f"{stage} {edges.name}"
                entry = groups.setdefault(key, _group(f"{stage} @{edges.name}", ""))
                compiled_now = edges.name in binding.kernels.get(stage, {})
                why = how[stage, edges.name].why if (stage, edges.name) in how else ""
                reason = f" (no kernel: {found if isinstance(found, str) else why})" if why else ""
                entry["language"] = language
                in_torch = f"plain torch, operator by operator{reason}"
                entry["runs as"] = f"{language} kernel" if compiled_now else in_torch
                entry["program"] = entry["program"] or edge_program_json(edges)["text"]
                entry["source"] = entry["source"] or ("" if isinstance(found, str) else text)
                entry["names"].append(f"{stage} @{edges.name}   {edges.loc}")
            calls[stage, node.name] = key
    for run in runs:
        for kind, value, start, end in zip(run.kinds, run.values, run.starts, run.ends, strict=True):
            if (run.stage, value) in calls and LANES[kind] == COMPUTE and kind != "Free":
                entry = groups[calls[run.stage, value]]
                entry["seconds"] += end - start
                entry["calls"] += 1
    total = sum(g["seconds"] for g in groups.values()) or 1.0
    for entry in groups.values():
        entry["share"] = entry["seconds"] / total
    return sorted(groups.values(), key=lambda g: (-g["seconds"], g["name"]))


def _group(name: str, runs_as: str) -> dict[str, Any]:
    texts = {"name": name, "runs as": runs_as, "language": "", "program": "", "source": ""}
    return {**texts, "names": [], "seconds": 0.0, "calls": 0}
