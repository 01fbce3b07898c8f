"""How commands print: coloured on a terminal, plain text when piped, one JSON document with `--json`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLES = [
    (re.compile(r"#? ?[\w/.-]+\.py:\d+"), "dim"),
    (re.compile(r"%\w+"), "cyan"),
    (re.compile(r"\b(?:f64|f32|f16|bf16|i64|i32|i16|i8|u8|bool)\[[^\]]*\]"), "green"),
    (re.compile(r"\b(?:aten|sarc)\.[\w.]+"), "yellow"),
    (re.compile(r"^(?:program|space|return|edges)\b", re.MULTILINE), "bold"),
]


def write_json(document: Any) -> None:
    """The document, keys in the order given."""
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def write_code(text: str) -> None:
    """A program or a schedule: coloured on a terminal, byte for byte when piped."""
    if not sys.stdout.isatty():
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    styled = Text(text.rstrip("\n"))
    for pattern, style in _STYLES:
        styled.highlight_regex(pattern, style)
    Console(soft_wrap=True, highlight=False).print(styled)


def write_table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
    """A table: drawn on a terminal, aligned columns of plain text when piped. Numbers go to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[k], int | float) for row in rows) for k in range(len(head))]
    if sys.stdout.isatty():
        table = Table(title=title, title_justify="left", caption=note or None, caption_justify="left")
        for name, numeric in zip(head, right, strict=True):
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(name), *(len(row[k]) for row in cells)) if cells else len(name) for k, name in enumerate(head)]
    lines = [title]
    for row in [list(head), *cells]:
        padded = (v.rjust(w) if numeric else v.ljust(w) for v, w, numeric in zip(row, widths, right, strict=True))
        lines.append(("  " + "  ".join(padded)).rstrip())
    if note:
        lines.append(f"  {note}")
    sys.stdout.write("\n".join(lines) + "\n")


def write_lines(lines: Sequence[str]) -> None:
    """Plain sentences."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def as_records(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Mapping[str, Any]]:
    """The rows of a table as JSON objects."""
    return [dict(zip(head, row, strict=True)) for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if value and abs(value) < 0.1 else f"{value:.2f}"
    return str(value)
