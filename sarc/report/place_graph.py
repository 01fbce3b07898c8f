"""Places the values of a program on a plane: operands above what reads them, chains straight down."""

from __future__ import annotations

from collections.abc import Sequence

from sarc.report.describe_program import Value


def place_graph(values: Sequence[Value]) -> list[tuple[int, int]]:
    """(column, row) of every value; no two share a place.

    A value stands one row below the lowest of its operands, in the free column nearest to their mean; an input stands
    one row above its highest reader.
    """
    number = {v.name: k for k, v in enumerate(values)}
    reads = [[number[o] for o in v.operands] for v in values]
    inputs = {k for k, v in enumerate(values) if not reads[k]}
    rows: list[int] = [0] * len(values)
    for k, operands in enumerate(reads):
        rows[k] = 1 + max((rows[o] for o in operands if o not in inputs), default=0)
    first: dict[int, int] = {}
    for k, operands in enumerate(reads):
        for o in operands:
            if o not in first or rows[k] < rows[first[o]]:
                first[o] = k
    for k in inputs:
        rows[k] = rows[first[k]] - 1 if k in first else 0
    taken: dict[int, set[int]] = {}
    columns: list[int | None] = [None] * len(values)
    for k, operands in enumerate(reads):
        if k in inputs:
            continue
        known = [c for o in operands if (c := columns[o]) is not None]
        columns[k] = _free(taken.setdefault(rows[k], set()), round(sum(known) / len(known)) if known else 0)
    for k in sorted(inputs):
        wish = columns[first[k]] if k in first else 0
        columns[k] = _free(taken.setdefault(rows[k], set()), wish or 0)
    least = min((c for c in columns if c is not None), default=0)
    return [((c or 0) - least, row) for c, row in zip(columns, rows, strict=True)]


def _free(taken: set[int], wish: int) -> int:
    """The free column nearest to `wish`, which is then taken."""
    distance = 0
    while True:
        for column in (wish + distance, wish - distance):
            if column not in taken:
                taken.add(column)
                return column
        distance += 1
