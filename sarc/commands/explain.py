"""`sarc explain`: was the model captured, what of it runs how, and what costs."""

from __future__ import annotations

import linecache
import re
from collections import Counter
from typing import Any

from sarc.codegen.explain import why_no_kernel
from sarc.commands.output import as_records, write_json, write_lines, write_table
from sarc.commands.run_model import Session, Wanted, start
from sarc.errors import GraphError, UnsupportedModelError
from sarc.ir.collective import all_reduce
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.program import Program
from sarc.report.describe_program import bytes_formula

_PROGRAMS = ("program", "values", "edge programs", "all-reduces", "draws")
_EDGES = ("direction", "edge program", "over", "exchanges", "kernel", "line")
_STORED = ("direction", "value", "type", "bytes", "because", "line")


def explain(wanted: Wanted, as_json: bool) -> bool:
    """Print the explanation; returns whether the model can be compiled."""
    try:
        session = start(wanted)
        session.call()
    except (UnsupportedModelError, GraphError) as error:
        _refused(wanted, error, as_json)
        return False
    _explain(session, as_json)
    return True


def _refused(wanted: Wanted, error: Exception, as_json: bool) -> None:
    place, lines = source_of(str(error))
    if as_json:
        write_json({
            "model": wanted.model, "captured": False, "error": type(error).__name__, "message": str(error),
            "line": place, "source": lines,
        })  # fmt: skip
        return
    message = str(error).removeprefix(f"{place}: ")
    write_lines([
        f"{wanted.model}: cannot be compiled ({type(error).__name__})", *([f"at {place}:", *lines] if place else []),
        "", message,
    ])  # fmt: skip


def source_of(message: str, around: int = 2) -> tuple[str, list[str]]:
    """The file:line that a message begins with, and the code there with an arrow; ("", []) without one."""
    found = re.match(r"(\S+\.py):(\d+): ", message)
    if found is None:
        return "", []
    number = int(found[2])
    lines = []
    for at in range(max(1, number - around), number + around + 1):
        text = linecache.getline(found[1], at).rstrip("\n")
        if text or at == number:
            lines.append(f"{'->' if at == number else '  '} {at:5} | {text}")
    return f"{found[1]}:{number}", lines


def _explain(session: Session, as_json: bool) -> None:
    variant = session.compiled._called()
    bound = variant.bound
    programs = {**variant.stages.programs, **{f"partitioned {k}": p for k, p in bound.programs.items()}}
    counts = [(name, *_counts(program)) for name, program in programs.items()]
    edges = [(stage, *_edge_row(e)) for stage, p in bound.programs.items() for e in _edge_programs(p)]
    stored = [(stage, *row) for stage, p in bound.programs.items() for row in stored_values(p)]
    notes = _notes(session, edges, stored)
    if as_json:
        write_json({
            "model": session.found.name, "captured": True, "programs": as_records(_PROGRAMS, counts),
            "edge_programs": as_records(_EDGES, edges), "stored_over_edges": as_records(_STORED, stored),
            "notes": notes,
        })  # fmt: skip
        return
    given = f" for {', '.join(session.inputs.described)}" if session.inputs.described else ""
    write_lines([f"{session.found.name}: captured{given}, {session.partitions.num_parts} parts", ""])
    write_table("programs", _PROGRAMS, counts)
    write_lines([""])
    write_table("traversals of the edges", _EDGES, edges)
    write_lines([""])
    if stored:
        write_table("tensors with a row an edge that are stored whole", _STORED, stored)
    else:
        write_lines(["no tensor with a row an edge is stored: all of them are computed block by block"])
    write_lines(["", *(f"- {note}" for note in notes)])


def _counts(program: Program) -> tuple[int, int, int, int]:
    targets = Counter(n.target for n in program.graph.nodes if n.op == "call_function")
    inner = Counter(n.target for e in _edge_programs(program) for n in e.body.nodes)
    draws = targets[UNIFORM] + inner[UNIFORM]
    return targets.total(), targets[edge_call], targets[all_reduce], draws


def _edge_programs(program: Program) -> list[EdgeProgram]:
    return [n.args[0] for n in program.graph.nodes if n.target is edge_call]


def _edge_row(edges: EdgeProgram) -> tuple[str, str, str, str, str]:
    fetched = any(o.column is not None and o.column == edges.remote for o in edges.operands)
    returned = any(r.column is not None and r.column == edges.remote for r in edges.results)
    moves = " and ".join([*(["fetches rows"] if fetched else []), *(["returns folds"] if returned else [])])
    return (
        f"@{edges.name}",
        edges.space,
        moves or "nothing",
        f"no: {why}" if (why := why_no_kernel(edges)) else "yes",
        edges.loc,
    )


def stored_values(program: Program) -> list[tuple[str, str, str, str, str]]:
    """Every tensor of one row an edge that a partitioned program holds whole, with the reason."""
    returned = {n.name: str(o) for n, o in zip(program.returned, program.outputs, strict=True)}
    found = []
    for node in program.graph.nodes:
        if node.target is not edge_call:
            continue
        edges = node.args[0]
        for k, result in enumerate(edges.results):
            if result.kind != "store":
                continue
            reader = next((u for u in node.users if u.args[1] == k), node)
            if "_read" in edges.name:
                why = "rows of a second column are read first: a traversal exchanges rows through one column"
            elif any(u.target is edge_call and "_fold" in u.args[0].name for u in reader.users):
                why = "folded later through a second column: a traversal exchanges rows through one column"
            elif reader.name in returned:
                why = f"the call returns it ({returned[reader.name]})"
            else:
                why = "another row set is made of it, or several traversals read it"
            size = bytes_formula((result.type,), program.spaces)
            found.append((f"%{reader.name}", str(result.type), size, why, edges.loc))
    return found


def _notes(session: Session, edges: list[tuple[Any, ...]], stored: list[tuple[Any, ...]]) -> list[str]:
    """What makes the model slow, large or captured anew; most important first."""
    notes = []
    missing = [row for row in edges if row[4] != "yes"]
    if missing:
        notes.append(
            f"{len(missing)} of {len(edges)} traversals have no C++ kernel, plain torch runs their operators: "
            + ", ".join(f"{row[1]} ({row[4].removeprefix('no: ')})" for row in missing)
        )
    elif edges:
        notes.append(f"all {len(edges)} traversals have C++ kernels: sarc.compile(..., backend='cpp') uses them")
    large = [row for row in stored if "the call returns" not in row[4]]
    if large:
        notes.append(
            f"{len(large)} tensors of one row an edge are stored, so memory grows with E: "
            + ", ".join(f"{row[1]} ({row[3]} B over all parts, {row[5]})" for row in large)
        )
    answers = session.compiled._called().stages.captured_answers
    if answers:
        notes.append(
            f"the model turns {len(answers)} numbers taken from structural tensors into Python numbers (values "
            f"{answers}): it is captured again when the graph changes"
        )
    if any(e.kind == "rng" for e in session.compiled._called().stages["step"].inputs):
        notes.append("it draws random numbers, keyed by row: the same for every number of parts, never stored")
    notes.append(
        "it is captured anew when feature sizes, dtypes, the mode (train, eval), the gradient mode, autocast, plain "
        "attributes of its modules or Python arguments change"
    )
    return notes
