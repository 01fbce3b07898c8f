"""Source: a generated C++ kernel and the tables it reads."""

from __future__ import annotations

from dataclasses import dataclass

from sarc.codegen.pack import Pack


@dataclass(frozen=True)
class Source:
    """One kernel: a traversal of a block.

    Attributes:
        name: symbol of the launcher.
        text: the translation unit.
        order: index of the column that groups the edges, or None for edge order.
        results: indices of the program's results that this kernel makes.
        packs: tables it reads instead of the operands that they hold.
        draws: whether it reads row keys.
    """

    name: str
    text: str
    order: int | None
    results: tuple[int, ...]
    packs: tuple[Pack, ...]
    draws: bool
