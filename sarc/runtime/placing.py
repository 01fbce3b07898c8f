"""Placing: choosing where a program's edge programs run, and moving the edges there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sarc.ir.placement import Choice, Ends, RowSet, Site
from sarc.ir.program import Input, Program
from sarc.ir.space import Space
from sarc.runtime.part_state import PartState
from sarc.runtime.row_sets import Crossings, HomeValue, count_travels, make_row_set
from sarc.runtime.transport import Transport
from sarc.runtime.work import run_parts


@dataclass
class Placing:
    """What a binding knows of placements; row sets are shared by its programs.

    Attributes:
        choices: of every edge call, by stage.
        programs: by stage, over the chosen row sets and not partitioned yet.
        named: row sets by site.
        values: of each hosted part, what the edges of row sets have, by input name.
        known: each hosted part's crossings.
    """

    choices: dict[str, list[Choice]] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    named: dict[Site, RowSet] = field(default_factory=dict)
    values: list[dict[str, Tensor]] = field(default_factory=list)
    known: list[Crossings] = field(default_factory=list)

    def enter_spaces(self, state: PartState) -> None:
        """Tell a part's state of the row sets made so far."""
        for row_set in self.named.values():
            if row_set.name in state.keys and row_set.name not in state.spaces:
                state.spaces.add(Space(row_set.name, "placed", (row_set.site.ends.space,), on_edges=True))


def place(
    compiler,
    transport: Transport,
    program: Program,
    remote: frozenset[str],
    states: Sequence[PartState],
    homes: Sequence[Mapping[Input, Tensor]],
    placing: Placing,
) -> Program:
    """The program with its edge programs where the compiler wants them; row sets that are missing are made.

    Args:
        compiler: the passes (`sarc.runtime.variants.Compiler`).
        remote: names of the columns through which some part reaches rows of another.
        states, homes: of each hosted part; what it has at home of every input that the structure decides.
        placing: gains the choices and the row sets.
    """
    needs = compiler.needs(program, remote, states[0].columns)
    sites: list[Site] = compiler.sites(needs)
    if not placing.values:
        placing.values = [{} for _ in states]
        placing.known = [Crossings() for _ in states]
    numbers = {}
    if sites:
        columns = [{site.ends: _ends(site.ends, home) for site in sites} for home in homes]
        works = {
            s.rank: count_travels(s, sites, each, known)
            for s, each, known in zip(states, columns, placing.known, strict=True)
        }
        numbers = run_parts(works, transport)[states[0].rank]
    choices: list[Choice] = compiler.choose_sites(needs, numbers, states[0].part.num_parts, placing.named)
    placing.choices[program.stage] = choices
    placed = compiler.place(program, {call: c.row_sets for c in choices if c.row_sets for call in c.need.calls})
    if placed is not program:
        _make_row_sets(transport, program, placed, states, homes, placing)
    return placed


def _ends(ends: Ends, home: Mapping[Input, Tensor]) -> tuple[Tensor, Tensor | None]:
    return home[ends.far], None if ends.near is None else home[ends.near]


def _make_row_sets(
    transport: Transport,
    program: Program,
    placed: Program,
    states: Sequence[PartState],
    homes: Sequence[Mapping[Input, Tensor]],
    placing: Placing,
) -> None:
    """Make what the inputs of the placed program hold; inputs made for an earlier program are there already."""
    at_home = {entry.name: (node, entry) for node, entry in zip(program.placeholders, program.inputs, strict=True)}
    for row_set in placing.named.values():
        wanted: dict[str, tuple] = {}
        for entry in placed.inputs:
            name, _, where = entry.name.rpartition("@")
            if where == row_set.name and entry.name not in placing.values[0]:
                wanted[entry.name] = at_home[name]
        if not wanted:
            continue
        ends = row_set.site.ends
        targets = {ends.far: ends.far_rows, ends.near: ends.near_rows}
        works = {}
        for state, home, known in zip(states, homes, placing.known, strict=True):
            values = {
                name: HomeValue(home[entry], node.meta["type"], targets.get(entry))
                for name, (node, entry) in wanted.items()
            }
            works[state.rank] = make_row_set(state, row_set, known, values)
        made = run_parts(works, transport)
        for state, held in zip(states, placing.values, strict=True):
            held.update(made[state.rank])
