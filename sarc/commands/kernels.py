"""`sarc kernels`: the generated code of every edge program, or why it has none."""

from __future__ import annotations

from typing import Any

from sarc.commands.output import as_records, write_code, write_json, write_table
from sarc.commands.run_model import Session
from sarc.errors import CodegenError

_HEAD = ("stage", "edge program", "kernels", "why none", "line")


def kernels(session: Session, target: str, only: str | None, table: bool, as_json: bool) -> None:
    """Print the sources of the model's kernels, nothing compiled.

    Args:
        target: "cpp" or "cuda".
        only: name of one edge program.
        table: the list alone, without sources.
    """
    session.call()
    rows: list[tuple[Any, ...]] = []
    texts: list[str] = []
    everything = session.compiled.kernel_sources(target)
    for stage, edges, found in everything:
        if only is not None and edges.name != only:
            continue
        sources = [] if isinstance(found, str) else found
        rows.append((stage, f"@{edges.name}", len(sources), found if isinstance(found, str) else "", edges.loc))
        texts += [f"// {stage} @{edges.name}, traversal {k}\n{text}" for k, text in enumerate(sources)]
    if only is not None and not rows:
        names = ", ".join(edges.name for _, edges, _ in everything)
        raise CodegenError(f"no edge program {only!r}; there are {names or 'none'}")
    if as_json:
        records = [dict(r) for r in as_records(_HEAD, rows)]
        write_json({"kernels": records, "sources": texts})
    elif table:
        write_table(f"kernels for {'CUDA' if target == 'cuda' else 'C++'}", _HEAD, rows)
    else:
        write_code("\n".join(texts) if texts else "// no edge program has a kernel\n")
