"""Pack: narrow tables that one column gathers, side by side, so that one piece of memory holds a row of all.

Scores, maxima and sums of a source's row come with one cache line (one sector of a GPU's) instead of one each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarc.codegen.body import Body, width


@dataclass(frozen=True)
class Pack:
    """Narrow operands gathered by one column, side by side in the rows of one table.

    Attributes:
        operands: (operand, first feature) pairs.
        width: features of a row: a power of two, so that a row lies in one cache line.
    """

    operands: tuple[tuple[int, int], ...]
    width: int


def find_packs(body: Body) -> tuple[Pack, ...]:
    """Narrow operands of one type that one other column than the kernel's gathers, where there are several."""
    found: dict[tuple[int, torch.dtype], list[tuple[int, int]]] = {}
    for k, node in enumerate(body.placeholders):
        operand = body.program.operands[k]
        if node not in body.nodes or operand.column in (None, body.order) or body.is_wide(node):
            continue
        group = found.setdefault((operand.column, operand.type.dtype), [])
        first = sum(width(body.placeholders[j]) for j, _ in group)
        group.append((k, first))
    packs = []
    for group in found.values():
        total = sum(width(body.placeholders[j]) for j, _ in group)
        if len(group) > 1:
            packs.append(Pack(tuple(group), 1 << (total - 1).bit_length()))
    return tuple(packs)


def places(packs: Sequence[Pack]) -> dict[int, tuple[int, int]]:
    """The pack that holds an operand, and its first feature there, by operand."""
    return {k: (p, first) for p, pack in enumerate(packs) for k, first in pack.operands}


def lay_out(pack: Pack, tables: Sequence[Tensor], empty: Callable[..., Tensor]) -> Tensor:
    """The table of a pack, [rows, width]; features behind the last operand's are not set."""
    first = tables[pack.operands[0][0]]
    packed = empty((first.shape[0], pack.width), dtype=first.dtype)
    for k, at in pack.operands:
        rows = tables[k].reshape(first.shape[0], -1)
        packed[:, at : at + rows.shape[1]] = rows
    return packed


def packed_bytes(packs: Sequence[Pack], tables: Sequence[Tensor]) -> int:
    """Bytes of the tables of some packs."""
    first = [(tables[pack.operands[0][0]], pack.width) for pack in packs]
    return sum(table.shape[0] * width * table.element_size() for table, width in first)
