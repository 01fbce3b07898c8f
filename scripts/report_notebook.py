"""Writes examples/report.ipynb, run and with its report inside: `python scripts/report_notebook.py`."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parents[1] / "examples" / "report.ipynb"

# Cells as a notebook shows them, one after another: "markdown:" or "code:" and the text.
CELLS = """
markdown:
# A compiled model, and where its time and memory go

One training step of a two-layer GCN over three partitions, in one process.

code:
import torch
from torch_geometric.nn import GCN

import sarc
from sarc.report.make_report import make_report
from sarc.report.predict import measure_rates

code:
data = sarc.data.labelled_graph(500, num_features=16, seed=0)
torch.manual_seed(0)
model = GCN(16, 16, 2, data.num_classes)
compiled = sarc.compile(model, sarc.partition(data.edge_index, 500, 3))

code:
def step():
    out = compiled(data.x, data.edge_index)
    loss = sarc.cross_entropy(out, data.y, data.train_mask)
    loss.backward()
    return float(loss.detach())

print(f"loss {step():.4f}")
print(compiled.plan())

markdown:
Measure a step, and look at it:

code:
with sarc.profile() as measured:
    step()
make_report(compiled, measured, rates=measure_rates())
"""


def run_cells() -> list[dict[str, Any]]:
    """The cells with their outputs, each run after the one before it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    made = []
    for number, found in enumerate(re.split(r"\n(?=(?:markdown|code):\n)", CELLS.strip())):
        kind, text = (part.strip() for part in found.split(":\n", 1))
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            cell |= {"execution_count": number, "outputs": _run(text, names, number)}
        made.append(cell)
    return made


def _run(text: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """What a notebook shows: what was printed, and the last expression's value as HTML."""
    *_, last = text.splitlines()
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if last.startswith("make_report"):
            exec(text.removesuffix(last), names)
            value = eval(last, names)
        else:
            exec(text, names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        lines = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None:
        data = {"text/html": [value._repr_html_()], "text/plain": ["Report"]}
        outputs.append({"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}})
    return outputs


def document() -> str:
    """The notebook's text."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    book = {"cells": run_cells(), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
    print(f"wrote {PATH.name}, {PATH.stat().st_size // 1024} KiB")
