"""Which folds of an edge program may be written over a table that it reads."""

from __future__ import annotations

from collections.abc import Iterator

from sarc.codegen.divide import divide
from sarc.codegen.views import NoKernel
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.space import Rows, ValueType


def overwritable(program: EdgeProgram) -> list[tuple[int, int]]:
    """Pairs (result, place among the call's values): the kernel reads a row of the value last when it visits that row.

    The fold to a row is written when its visit ends; the value is read through the same column alone, so nobody asks
    for the row again, in this traversal and in those behind it.
    """
    try:
        stages = divide(program)[0]
    except NoKernel:
        return []
    found = []
    for at, stage in enumerate(stages):
        if stage.order is None:
            continue
        later = {place for behind in stages[at + 1 :] for place in behind.operands}
        for place, result in zip(stage.results, stage.program.results, strict=True):
            if place < 0 or result.kind != "reduce" or result.axis != 0 or result.column != stage.order:
                continue
            for value, types in _read_by_rows(program, stage.order):
                reads = {k for k, o in enumerate(program.operands) if o.value == value}
                if not reads & later and all(_fits(t, result.type) for t in types):
                    found.append((place, value))
    return found


def _read_by_rows(program: EdgeProgram, column: int) -> Iterator[tuple[int, list[ValueType]]]:
    """The call's values that are gathered through `column` and read in no other way, with the types of their rows."""
    for value in dict.fromkeys(o.value for o in program.operands):
        operands = [o for o in program.operands if o.value == value]
        if all(o.column == column and o.axis == 0 for o in operands):
            yield value, [o.type for o in operands]


def _fits(row: ValueType, result: ValueType) -> bool:
    """Whether rows of an operand take as many bytes as those of a result, with the rows on the first axis."""
    first, plain = row.dims[0], isinstance(result.dims[0], Rows) and result.dims[0].plain
    return plain and isinstance(first, Rows) and row.dims[1:] == result.dims[1:] and row.dtype == result.dtype
