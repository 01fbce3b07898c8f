"""Writes docs/ops.md from the op table: `python scripts/ops_table.py`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from sarc.ir.call import op_name
from sarc.ir.ops import POINTWISE, TABLE, OpDef

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

**Work** is what an application costs in `sarc/cost.py`: a *view* nothing, *create* writes its result, *move* reads and
writes rows, *entry* computes one number a result entry, *fold* one an operand entry, *product* a matrix product.
Operators marked with the stages `raised` and `structure` are bound once a graph and never part of a step.

| what happens to rows | work | completed by | stages | operators |
|---|---|---|---|---|
"""


def document() -> str:
    """The text of docs/ops.md."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    groups[columns(POINTWISE)].append("every operator that PyTorch tags as pointwise")
    for target, definition in TABLE.items():
        groups[columns(definition)].append(f"`{op_name(target)}`")
    rows = [f"| {' | '.join(cells)} | {', '.join(names)} |" for cells, names in groups.items()]
    return HEAD + "\n".join(rows) + "\n"


def columns(definition: OpDef) -> tuple[str, ...]:
    """The cells of a row before its operators."""
    return definition.doc.rstrip("."), definition.work, definition.contracts, ", ".join(definition.stages) or "all"


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
