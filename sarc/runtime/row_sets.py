"""Row sets: which edges of a part cross to others, and the edges of others that run here.

Edges move once a graph: their keys, the entries of their columns with the owners of the rows they name, and what the
structure program has made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sarc.ir.edge_program import open_rows
from sarc.ir.placement import Ends, Pair, RowSet, Site, Travel
from sarc.ir.space import Rows, ValueType
from sarc.partition.cover import minimum_cover, ratio
from sarc.runtime.part_state import PartState
from sarc.runtime.work import AllGather, Exchange, Work


@dataclass(frozen=True)
class Crossing:
    """Edges of a part whose far rows one peer owns.

    Attributes:
        rows: int64 [K], positions among the part's edges.
        far, near: int64 [K], their ends, numbered from 0 in ascending order of ids.
        num_far, num_near: rows at each end.
    """

    rows: Tensor
    far: Tensor
    near: Tensor
    num_far: int
    num_near: int


@dataclass
class Crossings:
    """What one part knows of its edges that cross, by ends; made when asked for."""

    peers: dict[Ends, dict[int, Crossing]] = field(default_factory=dict)
    moved: dict[tuple[Ends, tuple[int, int] | None], dict[int, Tensor]] = field(default_factory=dict)
    covers: dict[tuple[Ends, tuple[int, int]], dict[int, tuple[Travel, Tensor]]] = field(default_factory=dict)


def count_travels(
    state: PartState, sites: Sequence[Site], columns: Mapping[Ends, tuple[Tensor, Tensor | None]], known: Crossings
) -> Work:
    """Rows that travel at each site, by pair, of all parts.

    Args:
        columns: int64 [S_p], entries of the far and the near column of each pair of ends.
        known: gains the part's crossings and covers.
    """
    mine: list[dict[Pair, Travel]] = []
    for site in sites:
        ends = site.ends
        if ends not in known.peers:
            known.peers[ends] = _crossings(state, ends, *columns[ends])
        found = {}
        for q, crossing in known.peers[ends].items():
            edges = crossing.rows.numel()
            if site.name == "dst":
                found[state.rank, q] = Travel(crossing.num_far, 0, 0, edges)
            elif site.name == "src":
                found[state.rank, q] = Travel(0, crossing.num_near, edges, edges)
            else:
                assert site.weights is not None
                covers = known.covers.setdefault((ends, ratio(*site.weights)), {})
                if q not in covers:
                    covers[q] = _cover(crossing, site.weights)
                found[state.rank, q], known.moved.setdefault((ends, site.weights), {})[q] = covers[q]
        mine.append(found)
    everyone: list[list[dict[Pair, Travel]]] = yield AllGather(mine)
    return {
        site: {pair: travel for found in everyone for pair, travel in found[k].items()} for k, site in enumerate(sites)
    }


def _crossings(state: PartState, ends: Ends, far: Tensor, near: Tensor | None) -> dict[int, Crossing]:
    owner, _ = state.locate(far, ends.far_rows, "")
    found = {}
    for q in range(state.part.num_parts):
        rows = (owner == q).nonzero().view(-1)
        if q == state.rank or not rows.numel():
            continue
        far_ids, at_far = far[rows].unique(return_inverse=True)
        if near is None:
            found[q] = Crossing(rows, at_far, torch.zeros_like(at_far), far_ids.numel(), 0)
            continue
        near_ids, at_near = near[rows].unique(return_inverse=True)
        found[q] = Crossing(rows, at_far, at_near, far_ids.numel(), near_ids.numel())
    return found


def _cover(crossing: Crossing, weights: tuple[int, int]) -> tuple[Travel, Tensor]:
    """What travels by a cover, and which edges run at the far rows' owner: those whose far row does not travel."""
    edges = crossing.rows.numel()
    if not crossing.num_near:
        return Travel(0, 0, edges, edges), torch.ones(edges, dtype=torch.bool, device=crossing.rows.device)
    cover = minimum_cover(crossing.far.cpu(), crossing.near.cpu(), crossing.num_far, crossing.num_near, weights)
    moved = ~cover.far.to(crossing.far.device)[crossing.far]
    # Only what edges use: of an edge with both ends in the cover, the far row travels.
    near = crossing.near[moved].unique().numel()
    return Travel(crossing.far[~moved].unique().numel(), near, int(moved.sum()), edges), moved


@dataclass(frozen=True)
class HomeValue:
    """What the edges at home have, one entry an edge, and a row set's edges shall have.

    Attributes:
        value: the entries; `type`, their type.
        target: the space whose rows a column names, else None.
    """

    value: Tensor
    type: ValueType
    target: str | None


def make_row_set(state: PartState, row_set: RowSet, known: Crossings, values: Mapping[str, HomeValue]) -> Work:
    """Enter the rows of a row set, on every part; returns what its edges have, by the names of `values`.

    A column's owners travel with it: a part does not know who owns the ends of edges that were at home elsewhere.
    """
    space, kind = row_set.site.ends.space, row_set.site.name
    out = _leaving(row_set.site, known)
    keys = state.row_keys(space)
    stays = torch.ones(keys.numel(), dtype=torch.bool, device=keys.device)
    for rows in out.values():
        stays[rows] = False
    kept = stays.nonzero().view(-1) if kind != "moved" else keys[:0]
    moving = out if kind != "stay" else None
    held = yield from _rehome(keys, kept, moving)
    order = held.argsort()
    state.keys[row_set.name] = held[order]
    state.local[row_set.name] = held.numel()
    state.total[row_set.name] = state.total_sizes()[space]
    made: dict[str, Tensor] = {}
    for name, entry in values.items():
        axis = entry.type.axis_of(space)
        dim = entry.type.dims[axis]
        assert isinstance(dim, Rows)
        opened, at = open_rows(entry.value, axis, dim)
        moved = yield from _rehome(opened.movedim(at, 0), kept, moving)
        shape = [d if not isinstance(d, Rows) else d.before * d.after * held.numel() for d in entry.type.dims]
        made[name] = moved[order].movedim(0, at).reshape(shape)
        if entry.target is not None:
            owner, _ = state.locate(entry.value, entry.target, "")
            state.owners[name] = (yield from _rehome(owner, kept, moving))[order]
    return made


def _rehome(value: Tensor, kept: Tensor, moving: Mapping[int, Tensor] | None) -> Work:
    """Of a value's rows (first axis), those kept and those that arrive; None: on no part any moves."""
    pieces = [value[kept]]
    if moving is not None:
        arrived = yield Exchange({q: value[rows].contiguous() for q, rows in moving.items()})
        pieces += [arrived[q] for q in sorted(arrived)]
    return torch.cat(pieces)


def _leaving(site: Site, known: Crossings) -> dict[int, Tensor]:
    """Positions of the edges that run at each peer."""
    crossings = known.peers[site.ends]
    if site.name == "src":
        return {q: c.rows for q, c in crossings.items()}
    moved = known.moved.get((site.ends, site.weights), {})
    found = {q: c.rows[moved[q]] for q, c in crossings.items()}
    return {q: rows for q, rows in found.items() if rows.numel()}
