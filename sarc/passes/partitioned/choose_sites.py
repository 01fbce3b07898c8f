"""The site of every edge program, from what it needs and the numbers of rows that cross: `choose_sites`.

Every number here is of the whole graph, so all ranks choose alike. Prices of one edge program, summed over pairs (p, q)
of H_pq far and B_pq near rows, with f bytes of operands and r bytes of folds a row:

- dst: (f_far + r_far) H_pq;
- src: (f_near + r_near) B_pq;
- cover: both, of the rows of a vertex cover of the least weight; each edge runs where a row of the cover travels to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from sarc.ir.exchange import ring_seconds, whole_seconds
from sarc.ir.placement import SITES, Candidate, Choice, Need, Pair, RowSet, Site, Travel
from sarc.partition.cover import ratio

# Bytes a second that the edges of a part read and write, on one core.
MOVED_PER_SECOND = 4e9
# Edges leave home when that is predicted to take at most this share of the time.
LEAST_GAIN = 0.9

Numbers = Mapping[Site, Mapping[Pair, Travel]]


def sites_to_count(needs: Sequence[Need], placement: str) -> list[Site]:
    """The sites that may be chosen, once each: their rows must be counted."""
    found: dict[Site, None] = {}
    for need in needs:
        if need.ends is not None:
            for name in SITES if placement == "auto" else dict.fromkeys(("dst", placement)):
                found[_site(need, name)] = None
    return list(found)


def _site(need: Need, name: str) -> Site:
    assert need.ends is not None
    return Site(need.ends, name, ratio(*need.weights) if name == "cover" else None)


def choose_sites(
    needs: Sequence[Need], numbers: Numbers, num_parts: int, placement: str, objective: str, named: dict[Site, RowSet]
) -> list[Choice]:
    """A choice for each need.

    Args:
        numbers: rows that travel at each site.
        placement: one of `PLACEMENTS`; "auto" takes the site that `objective` prices lowest.
        named: row sets of earlier choices; gains the new ones, so that equal ones have one name.
    """
    return [_choose(need, numbers, num_parts, placement, objective, named) for need in needs]


def _choose(
    need: Need, numbers: Numbers, num_parts: int, placement: str, objective: str, named: dict[Site, RowSet]
) -> Choice:
    if need.ends is None:
        return Choice(need, (), None, need.home_only or "every row it names is owned")
    candidates = []
    for name in SITES:
        pairs = numbers.get(_site(need, name))
        if pairs is not None:
            candidates.append(_candidate(need, name, pairs, num_parts))
    by_site = {c.site: c for c in candidates}
    if placement != "auto":
        return _at(need, candidates, by_site[placement], f"placement={placement!r}", named)
    price: dict[str, Callable[[Candidate], float]] = {
        "bytes": lambda c: c.nbytes, "time": lambda c: c.seconds, "memory": lambda c: c.memory,
    }  # fmt: skip
    chosen = min(candidates, key=price[objective])  # of equal prices the earliest: home
    if objective == "time" and chosen.seconds > LEAST_GAIN * by_site["dst"].seconds:
        chosen = by_site["dst"]  # within what a prediction may be wrong by
    reason = {"bytes": "fewest bytes", "time": "least time", "memory": "least memory"}[objective]
    return _at(need, candidates, chosen, reason, named)


def _at(
    need: Need, candidates: list[Candidate], chosen: Candidate, reason: str, named: dict[Site, RowSet]
) -> Choice:
    return Choice(need, tuple(candidates), chosen, reason, _row_sets(need, chosen.site, named))


def _candidate(need: Need, site: str, pairs: Mapping[Pair, Travel], num_parts: int) -> Candidate:
    far, near = need.weights
    sent: dict[Pair, int] = {}
    loads = [_Load() for _ in range(num_parts)]
    for (p, q), travel in sorted(pairs.items()):
        out = travel.far * need.far_fetch + travel.near * need.near_return
        back = travel.far * need.far_return + travel.near * need.near_fetch
        for (sender, receiver), size in (((q, p), out), ((p, q), back)):
            if size:
                sent[sender, receiver] = sent.get((sender, receiver), 0) + size
                loads[sender].sent += size
                loads[receiver].received += size
        messages = bool(travel.far) * (bool(need.far_fetch) + bool(need.far_return))
        messages += bool(travel.near) * (bool(need.near_fetch) + bool(need.near_return))
        for part, run_here in ((p, travel.edges - travel.moved), (q, travel.moved)):
            loads[part].messages += messages
            loads[part].edges += run_here
        loads[p].memory += travel.far * far
        loads[q].memory += travel.near * near + travel.moved * need.kept_bytes
    # At home a kernel visits an edge once for all programs of a group whose rows are at hand.
    visit = need.edge_bytes // len(need.programs) if site == "dst" and need.whole else need.edge_bytes
    exchanges = sum(map(bool, (need.far_fetch, need.far_return))) * (site != "src")
    exchanges += sum(map(bool, (need.near_fetch, need.near_return))) * (site != "dst")
    seconds = max(load.seconds(visit, exchanges if need.whole else None) for load in loads)
    return Candidate(site, _formula(need, site), sent, seconds, max(load.memory for load in loads))


@dataclass
class _Load:
    """What falls to one part: bytes, messages, edges of pairs; bytes in memory for rows of others and moved edges."""

    sent: int = 0
    received: int = 0
    messages: int = 0
    edges: int = 0
    memory: int = 0

    def seconds(self, edge_bytes: int, exchanges: int | None) -> float:
        """Time of one run; `exchanges`: all-to-alls, or None where rows travel chunk by chunk."""
        sent = max(self.sent, self.received)
        if exchanges is None:
            on_the_way = ring_seconds(sent, self.messages)
        else:
            on_the_way = whole_seconds(sent) + (exchanges - 1) * whole_seconds(0)
        return on_the_way + self.edges * edge_bytes / MOVED_PER_SECOND


def _formula(need: Need, site: str) -> sympy.Expr:
    far, near = need.weights
    h, b = sympy.symbols("H_pq B_pq" if site != "cover" else "C_pq D_pq", integer=True, nonnegative=True)
    return sympy.expand({"dst": far * h, "src": near * b, "cover": far * h + near * b}[site])


def _row_sets(need: Need, site: str, named: dict[Site, RowSet]) -> tuple[RowSet, ...]:
    """The row sets of a site; equal ones, of this program or another, have one name."""
    if site == "dst":
        return ()
    found = []
    for kind in ("src",) if site == "src" else ("stay", "moved"):
        key = replace(_site(need, site), name=kind)
        if key not in named:
            stem = "_".join([key.ends.space, kind, *map(str, key.weights or ())])
            taken = {s.name for s in named.values()}
            name = next(n for n in (stem, *(f"{stem}_{k}" for k in range(2, 3 + len(taken)))) if n not in taken)
            named[key] = RowSet(name, key)
        found.append(named[key])
    return tuple(found)
