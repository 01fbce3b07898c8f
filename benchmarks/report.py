"""Results as a table on the terminal and as JSON."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.options import Options


class Report:
    """Rows of results, shown as they come and kept in a file.

    Args:
        title: of the benchmark.
        options: written into the file, and which file.
        columns: keys of a row, shown in this order; a row may lack some. "graph" and "case" head a table.
    """

    def __init__(self, title: str, options: Options, columns: tuple[str, ...]):
        self.title, self.options, self.columns = title, options, columns
        self.rows: list[dict[str, object]] = []
        self._shown = 0

    def add(self, **row: object) -> None:
        self.rows.append(row)

    def show(self) -> None:
        """Print the rows added since the last call, a table for each graph and case, and write all to the file."""
        fresh = self.rows[self._shown :]
        self._shown = len(self.rows)
        for graph, case in dict.fromkeys((row["graph"], row["case"]) for row in fresh):
            chosen = [row for row in fresh if (row["graph"], row["case"]) == (graph, case)]
            columns = [c for c in self.columns if any(row.get(c) is not None for row in chosen)]
            table = Table(title=f"{self.title}: {case}, {graph}", title_justify="left")
            for column in columns:
                numeric = any(isinstance(row.get(column), (int, float)) for row in chosen)
                table.add_column(column, justify="right" if numeric else "left")
            for row in chosen:
                table.add_row(*(_text(row.get(column)) for column in columns))
            # Tables that go to a file keep their columns whole.
            Console(width=None if sys.stdout.isatty() else 140).print(table)
        if self.options.json is not None:
            self.options.json.write_text(json.dumps(self.document(), indent=1) + "\n")

    def document(self) -> dict[str, object]:
        """What the JSON file holds: the machine, the options, the rows."""
        options = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self.options).items()}
        return {"benchmark": self.title, "machine": machine(), "options": options, "rows": self.rows}


def machine() -> dict[str, object]:
    """Processor, cores, and the versions that took part."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x.split(":", 1)[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0] if names else model
    versions = {}
    for name in ("sarc", "torch", "dgl", "torch_geometric"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"processor": model, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if value != 0 and abs(value) < 1e-2:
        return f"{value:.0e}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
