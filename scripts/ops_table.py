"""Writes docs/ops.md from the op table: `python scripts/ops_table.py`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from sarc.ir.call import op_name
from sarc.ir.ops import POINTWISE, TABLE

PATH = Path(__file__).resolve().parents[1] / "docs" / "ops.md"

HEAD = """# Operators

Made by `python scripts/ops_table.py` from the op table, `sarc/ir/ops.py`. Do not edit.

What each operator does with *rows*, the dimensions that are spread over parts. A value without rows is held whole by
every part: any operator is fine on it. **Completed by** names the all-reduce that makes the parts' shares whole where
an operator contracts rows; where it is empty, contracting rows is refused. Everything in this table is differentiated
by PyTorch and computed by PyTorch on the rows at hand.

Many operators never reach the table: means, variances, norms, losses and matrix products with a bias are taken apart
while the model is captured, in-place forms become plain ones, random operators become `sarc.uniform`, and `x[index]`,
`scatter`, `index_add`, `index_put` and their kin become `sarc.gather` and `sarc.reduce`.

| what happens to rows | completed by | operators |
|---|---|---|
"""


def document() -> str:
    """The text of docs/ops.md."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    groups[POINTWISE.doc, POINTWISE.contracts].append("every operator that PyTorch tags as pointwise")
    for target, definition in TABLE.items():
        groups[definition.doc, definition.contracts].append(f"`{op_name(target)}`")
    rows = [f"| {doc.rstrip('.')} | {share} | {', '.join(names)} |" for (doc, share), names in groups.items()]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
