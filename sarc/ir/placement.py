"""Where edge programs run: what each end of an edge lacks, the row sets that follow, and what each choice costs.

An edge is at home at the owner of the row that its *near* column names (its destination); its *far* column names rows
of other parts (its source). The pair (p, q) holds the edges at home on part p whose far rows part q owns: H_pq far rows
and B_pq near rows have such edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from sarc.ir.program import Input

Pair = tuple[int, int]

SITES = ("dst", "src", "cover")
PLACEMENTS = ("auto", *SITES)
OBJECTIVES = ("time", "bytes", "memory")


@dataclass(frozen=True)
class Ends:
    """The two columns of an edge space's programs: which rows of it may run where.

    Attributes:
        space: the edges.
        far, near: the columns; without a near one, edges need their far rows alone.
        far_rows, near_rows: the spaces whose rows they name.
    """

    space: str
    far: Input
    near: Input | None
    far_rows: str
    near_rows: str | None


@dataclass(frozen=True)
class Need:
    """What some edge programs ask of other parts: those that read the same rows, which travel once for all of them.

    Attributes:
        calls, programs: names of the edge calls and of their programs; `loc`, the user's line.
        ends: their columns; None when they need nothing, or can run at home only.
        home_only: why they can run at home only; "" when they may run elsewhere.
        whole: whether the rows of all peers travel at once (`sarc.ir.exchange`).
        far_fetch, far_return: bytes of a far row's operands and partial folds, at home.
        near_fetch, near_return: bytes of a near row's operands and partial folds, at the far row's owner.
        edge_bytes: bytes that an edge's operands and results have; `kept_bytes`, of an edge's columns and edge rows.
    """

    calls: tuple[str, ...]
    programs: tuple[str, ...]
    loc: str
    ends: Ends | None
    home_only: str = ""
    whole: bool = False
    far_fetch: int = 0
    far_return: int = 0
    near_fetch: int = 0
    near_return: int = 0
    edge_bytes: int = 0
    kept_bytes: int = 0

    @property
    def name(self) -> str:
        return " + ".join(f"@{program}" for program in self.programs)

    @property
    def weights(self) -> tuple[int, int]:
        """Bytes that a far row and a near row cost when they travel."""
        return self.far_fetch + self.far_return, self.near_fetch + self.near_return


@dataclass(frozen=True)
class Travel:
    """Rows that travel for one pair.

    Attributes:
        far, near: rows of each end.
        moved: edges that run at the far rows' owner.
        edges: edges of the pair.
    """

    far: int
    near: int
    moved: int
    edges: int


@dataclass(frozen=True)
class Site:
    """Where the edges of some ends run.

    Attributes:
        name: "dst" (at home), "src" (at the owner of the far row) or "cover" (either, by a vertex cover); of a cover's
            row sets "stay" and "moved".
        weights: of the cover's far and near rows, without common divisor.
    """

    ends: Ends
    name: str
    weights: tuple[int, int] | None = None


@dataclass(frozen=True)
class RowSet:
    """Edges at the parts where they run, the rows of `Space(name, "placed", (ends.space,))`: all of them at the far
    rows' owners ("src"), or those of a cover that run at home ("stay") or at the far rows' owners ("moved")."""

    name: str
    site: Site


@dataclass(frozen=True)
class Candidate:
    """One site of an edge program, with its price.

    Attributes:
        site: "dst", "src" or "cover".
        formula: bytes of one pair, in H_pq and B_pq; for a cover these are the rows of the cover.
        sent: bytes by sender and receiver.
        seconds: predicted time of one run; `memory`, bytes that the site takes in memory, on the part with most.
    """

    site: str
    formula: sympy.Expr
    sent: Mapping[Pair, int]
    seconds: float
    memory: int

    @property
    def nbytes(self) -> int:
        return sum(self.sent.values())


@dataclass(frozen=True)
class Choice:
    """The site of one edge program.

    Attributes:
        need: of the program.
        candidates: every site it could run at.
        chosen: one of them; None when it exchanges nothing that could be chosen.
        reason: why.
        row_sets: what it runs over, in order; empty at home.
    """

    need: Need
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    reason: str
    row_sets: tuple[RowSet, ...] = ()

    @property
    def visits(self) -> list[str]:
        """Names of the edge programs that visit the row sets, or the edges at home."""
        programs = self.need.programs
        return [f"{p}_{s.site.name}" for p in programs for s in self.row_sets] if self.row_sets else list(programs)
