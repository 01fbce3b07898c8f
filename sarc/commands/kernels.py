"""`sarc kernels`: the generated code of every edge program, or why it has none."""

from __future__ import annotations

from typing import Any

from sarc.codegen.explain import try_emit
from sarc.commands.output import as_records, write_code, write_json, write_table
from sarc.commands.run_model import Session
from sarc.errors import CodegenError
from sarc.ir.edge_program import EdgeProgram, edge_call

TARGETS = ("cpp", "cuda")
_HEAD = ("stage", "edge program", "kernels", "why none", "line")


def check_target(target: str) -> None:
    """CodegenError for a target without an emitter."""
    if target == "cuda":
        raise CodegenError("target cuda is not available: sarc has no CUDA emitter yet; use --target cpp")


def kernels(session: Session, only: str | None, table: bool, as_json: bool) -> None:
    """Print the sources of the model's kernels, nothing compiled.

    Args:
        only: name of one edge program.
        table: the list alone, without sources.
    """
    session.call()
    rows: list[tuple[Any, ...]] = []
    texts: list[str] = []
    for stage, edges in edge_programs(session):
        if only is not None and edges.name != only:
            continue
        found = try_emit(edges)
        sources = [] if isinstance(found, str) else found
        rows.append((stage, f"@{edges.name}", len(sources), found if isinstance(found, str) else "", edges.loc))
        texts += [f"// {stage} @{edges.name}, traversal {k}\n{s.text}" for k, s in enumerate(sources)]
    if only is not None and not rows:
        names = ", ".join(edges.name for _, edges in edge_programs(session))
        raise CodegenError(f"no edge program {only!r}; there are {names or 'none'}")
    if as_json:
        records = [dict(r) for r in as_records(_HEAD, rows)]
        write_json({"kernels": records, "sources": texts})
    elif table:
        write_table("kernels for C++", _HEAD, rows)
    else:
        write_code("\n".join(texts) if texts else "// no edge program has a kernel\n")


def edge_programs(session: Session) -> list[tuple[str, EdgeProgram]]:
    """(stage, edge program) of everything that parts run, in order."""
    programs = session.compiled._called().bound.programs
    return [
        (stage, node.args[0])
        for stage, program in programs.items()
        for node in program.graph.nodes
        if node.target is edge_call
    ]
