"""Which results of an edge program may be written over a table that it reads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx as fx

from sarc.codegen.body import Body
from sarc.codegen.divide import divide
from sarc.codegen.views import NoKernel
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.space import Rows, ValueType


def overwritable(program: EdgeProgram) -> list[tuple[int, int]]:
    """Pairs (result, place among the call's values): the kernel reads a row of the value last when it visits that row.

    The fold to a row is written when its visit ends; the value is read through the same column alone, so nobody asks
    for the row again, in this traversal and in those behind it. A row that is stored without any traversal is computed
    of the same row, entry by entry, and written last.
    """
    try:
        return list(_pairs(program))
    except NoKernel:
        return []


def _pairs(program: EdgeProgram) -> Iterator[tuple[int, int]]:
    stages = divide(program).stages
    for at, stage in enumerate(stages):
        if stage.order is None:
            if len(stages) == 1:
                yield from _stored_in_place(stage.program)
            continue
        later = {place for behind in stages[at + 1 :] for place in behind.operands}
        for place, result in zip(stage.results, stage.program.results, strict=True):
            if place < 0 or result.kind != "reduce" or result.axis != 0 or result.column != stage.order:
                continue
            for value, types in _read_by_rows(program, stage.order):
                reads = {k for k, o in enumerate(program.operands) if o.value == value}
                if not reads & later and all(_fits(t, result.type) for t in types):
                    yield place, value


def _stored_in_place(program: EdgeProgram) -> Iterator[tuple[int, int]]:
    """Pairs (stored result, place among the call's values) of rows that are read at each entry before it is written."""
    body = Body(program, None, tuple(range(len(program.results))))
    for k, result in enumerate(program.results):
        root = body.roots[k]
        if result.kind != "store" or result.axis != 0 or not body.is_wide(root):
            continue
        phase = body.fold_phase(root)
        for value in dict.fromkeys(o.value for o in program.operands):
            operands = [(n, o) for n, o in zip(body.placeholders, program.operands, strict=True) if o.value == value]
            if not all(o.column is None and o.axis == 0 and _fits(o.type, result.type) for _, o in operands):
                continue
            # What is made of the row's sums alone is made when the row has been read.
            made = _made_entrywise(body, [n for n, _ in operands])
            entries = all(_keeps_entries(n, root) for n in made & _behind(root))
            visits = [body.phases[n] for n in body.nodes if body.sinks(n) and made & set(n.all_input_nodes)]
            visits += [body.fold_phase(n) for n in body.roots.values() if n in made]
            later = range(k + 1, len(program.results))
            stored_later = any(body.roots[j] in made for j in later if program.results[j].kind == "store")
            if entries and max(visits, default=0) <= phase and not stored_later:
                yield k, value


def _keeps_entries(node: fx.Node, root: fx.Node) -> bool:
    """Whether each entry of a value is made of the same entry of its operands, and is one of `root`'s shape."""
    pointwise = node.op == "placeholder" or torch.Tag.pointwise in getattr(node.target, "tags", ())
    return pointwise and node.meta["type"].dims[1:] == root.meta["type"].dims[1:]


def _made_entrywise(body: Body, nodes: list[fx.Node]) -> set[fx.Node]:
    """`nodes` and what is computed from them, but by way of sums over a row's entries."""
    found = set(nodes)
    for node in body.nodes:
        if not body.sinks(node) and any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _behind(root: fx.Node) -> set[fx.Node]:
    """`root` and what it is computed from."""
    found: set[fx.Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
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
