"""Needs: for every edge program, what each end of an edge that crosses parts lacks, and is owed.

An edge program reads rows through columns and folds to rows of columns: at home it lacks the rows that its far column
names and owes partial folds to them; at the far row's owner the same holds of its near column. So a sum of neighbours
needs rows forward and owes folds backward, and nothing is said of it: a derivative that reads only what arrives (a
gradient of the destination) shows in the columns its operands come through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.fx as fx

from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.fold_states import FoldState, find_fold_states
from sarc.ir.frontier import Again, exact_values, find_frontier, row_width, tells_extremes
from sarc.ir.placement import Ends, Need
from sarc.ir.program import Input, Program
from sarc.ir.space import Rows, Spaces, ValueType

aten = torch.ops.aten

PRODUCTS = {aten.mm.default, aten.bmm.default}


@dataclass(frozen=True)
class Reading:
    """How operands travel.

    Attributes:
        whole: of a column value, the space it names and bytes of its rows: whether all peers' rows travel at once.
        products: whether what travels may lie before matrix products, which are then computed for the rows of others.
        wire: dtype of wider floating-point numbers on the way.
        home: why everything runs at home; "" when it need not.
    """

    whole: Callable[[fx.Node, str, int], bool] = lambda column, space, row: False
    products: bool = False
    wire: torch.dtype | None = None
    home: str = ""


@dataclass(frozen=True)
class _Group:
    """Edge calls of which none can be placed without the others.

    Attributes:
        far: the column through which they reach other parts; None when they reach none.
        ends: None when they run at home, for the reason `home`.
        targets: the space whose rows each column names that rows may travel through.
        travels: by such a column, what is read through it and what travels in its stead.
        states: sums of its calls that need not wait for their maximum, if that is one of its calls' as well.
    """

    calls: tuple[fx.Node, ...]
    far: fx.Node | None
    near: fx.Node | None
    ends: Ends | None
    home: str
    targets: Mapping[fx.Node, str]
    travels: Mapping[fx.Node, frozenset[fx.Node]]
    states: tuple[FoldState, ...] = ()

    def meets(self, other: _Group) -> bool:
        """Whether some rows would travel once for both, or folds of one in the message of the other."""
        if any(self.travels[c] & other.travels[c] for c in self.travels if c in other.travels):
            return True
        return self.ends == other.ends and any(s.source in self.calls for s in other.states)

    def at_hand(self, column: fx.Node) -> frozenset[fx.Node]:
        """Maxima that its calls read through a column and take of their own edges: nobody sends them back."""
        read = {
            (call, k): call.args[1][o.value] for call in self.calls for k, o in enumerate(call.args[0].operands)
            if o.column is not None and call.args[2][o.column] is column
        }  # fmt: skip
        own = {(s.call, s.operand): s.value for s in self.states if s.source in self.calls}
        own = {place: value for place, value in own.items() if place in read}
        others = {value for place, value in read.items() if place not in own}
        return frozenset(own.values()) - others

    def joined(self, other: _Group, reading: Reading) -> _Group:
        home = self.home or other.home or ("" if self.ends == other.ends else "shares rows with edges of other ends")
        made = replace(
            self, calls=self.calls + other.calls, home=home, ends=None if home else self.ends,
            targets={**self.targets, **other.targets}, states=self.states + other.states,
        )  # fmt: skip
        return replace(made, travels=_travels(made.calls, made.far, made.targets, reading))


def find_needs(program: Program, remote: frozenset[str], reading: Reading | None = None) -> list[Need]:
    """What the edge calls of a fused program need, in order.

    Args:
        remote: names of the column values through which some part reaches rows of another.
        reading: how operands travel; None: chunk by chunk, each as it is.
    """
    reading = reading or Reading()
    entries = dict(zip(program.placeholders, program.inputs, strict=True))
    groups: list[_Group] = []
    states = find_fold_states(program) if reading.wire is None else []
    for node in program.graph.nodes:
        if node.target is not edge_call:
            continue
        group = _group(node, remote, entries, reading, program.spaces)
        if group.travels:
            group = replace(group, states=tuple(s for s in states if s.call is node))
        while met := next((g for g in groups if g.meets(group)), None):
            groups.remove(met)
            group = met.joined(group, reading)  # what travels for both may meet others
        groups.append(group)
    order = {n: k for k, n in enumerate(program.graph.nodes)}
    return [_need(g, reading) for g in sorted(groups, key=lambda g: order[g.calls[0]])]


def _group(
    node: fx.Node, remote: frozenset[str], entries: Mapping[fx.Node, Input], reading: Reading, spaces: Spaces
) -> _Group:
    """One call by itself."""
    edges, values, columns = node.args
    targets, at_hand = _targets(edges, values, spaces)
    far = [c for c in targets if columns[c].name in remote and targets[c] is not None]
    if not far:
        return _Group((node,), None, None, None, "", {}, {})
    why = reading.home or ("reads rows that this part has made of its halo's data" if at_hand else "")
    why = why or _home_only(edges, values, columns, far, targets, entries)
    if not why and reading.wire is not None and tells_extremes(edges):
        why = "tells extremes by equality, and rows are rounded on the way"
    near = next((c for c in targets if c != far[0] and targets[c] is not None), None)
    named = {columns[c]: targets[c] or "" for c in (far if why or near is None else [far[0], near])}
    travels = _travels((node,), columns[far[0]], named, reading)
    if why:
        return _Group((node,), columns[far[0]], None, None, why, named, travels)
    near_column = None if near is None else columns[near]
    ends = Ends(
        edges.space,
        entries[columns[far[0]]],
        None if near_column is None else entries[near_column],
        targets[far[0]] or "",
        None if near is None else targets[near],
    )
    return _Group((node,), columns[far[0]], near_column, ends, "", named, travels)


def _travels(
    calls: tuple[fx.Node, ...], far: fx.Node | None, targets: Mapping[fx.Node, str], reading: Reading
) -> dict[fx.Node, frozenset[fx.Node]]:
    """What calls read through each column, and what travels in its stead; nothing where each call reads for itself."""
    if far is None or not _is_whole(calls, far, targets[far], reading):
        return {}
    found = {}
    for column, space in targets.items():
        wanted = _fetched(calls, column)
        if wanted:
            found[column] = find_frontier(wanted, again(calls, column, space, reading.products), reading.wire).known
    return found


def _need(group: _Group, reading: Reading) -> Need:
    programs: list[EdgeProgram] = [call.args[0] for call in group.calls]
    calls, names = tuple(call.name for call in group.calls), tuple(e.name for e in programs)
    if group.far is None or group.ends is None:
        return Need(calls, names, programs[0].loc, None, group.home)
    whole = _is_whole(group.calls, group.far, group.ends.far_rows, reading)
    near_fetch = near_return = 0
    far_at_hand = group.at_hand(group.far) if whole else frozenset()
    if group.near is not None and group.ends.near_rows is not None:
        at_hand = group.at_hand(group.near) if whole else frozenset()
        near_fetch = _fetch_bytes(group.calls, group.near, group.ends.near_rows, whole, reading, at_hand)
        near_return = _returned(group.calls, group.near, reading.wire)
    kept = {call.args[1][o.value] for call in group.calls for o in call.args[0].operands
            if o.column is None and o.axis is not None}  # fmt: skip
    return Need(
        calls,
        names,
        programs[0].loc,
        group.ends,
        "",
        whole,
        _fetch_bytes(group.calls, group.far, group.ends.far_rows, whole, reading, far_at_hand),
        _returned(group.calls, group.far, reading.wire),
        near_fetch,
        near_return,
        sum(row_width(o.type) for e in programs for o in e.operands)
        + sum(row_width(r.type) for e in programs for r in e.results),
        8 * 3 + sum(row_width(v.meta["type"]) for v in kept),
    )


def _fetched(calls: Sequence[fx.Node], column: fx.Node) -> list[fx.Node]:
    """The values that calls read through a column, once each."""
    return list(dict.fromkeys(
        call.args[1][o.value] for call in calls for o in call.args[0].operands
        if o.column is not None and call.args[2][o.column] is column
    ))  # fmt: skip


def _returned(calls: Sequence[fx.Node], column: fx.Node, wire: torch.dtype | None) -> int:
    """Bytes of the folds to one row that a column names."""
    return sum(
        row_width(r.type, wire) for call in calls for r in call.args[0].results
        if r.kind == "reduce" and call.args[2][r.column] is column
    )  # fmt: skip


def _is_whole(calls: Sequence[fx.Node], far: fx.Node, space: str, reading: Reading) -> bool:
    """Whether the rows of all peers travel at once; decided for the edges at home."""
    row = sum(row_width(v.meta["type"], reading.wire) for v in _fetched(calls, far))
    return reading.whole(far, space, row + _returned(calls, far, reading.wire))


def _fetch_bytes(
    calls: Sequence[fx.Node], column: fx.Node, space: str, whole: bool, reading: Reading,
    at_hand: frozenset[fx.Node] = frozenset(),
) -> int:  # fmt: skip
    """Bytes that travel for what calls read of one row, but for values at hand."""
    found = [[v for v in _fetched((call,), column) if v not in at_hand] for call in calls]
    if whole:
        wanted = [v for each in found for v in each]
        found = [[*find_frontier(wanted, again(calls, column, space, reading.products), reading.wire).cut]]
    return sum(row_width(v.meta["type"], reading.wire) for each in found for v in each)


def again(calls: Iterable[fx.Node], column: fx.Node, space: str, products: bool) -> Again:
    """Which values may be computed for the rows of others, given the calls that read them through a column."""
    extremes = [call for call in calls if tells_extremes(call.args[0])]
    return Again(space, products, exact_values(_fetched(extremes, column), space))


def _targets(edges: EdgeProgram, values: list[fx.Node], spaces: Spaces) -> tuple[dict[int, str | None], bool]:
    """The space whose rows each used column names, None for a replicated dimension; whether some are of a reach.

    Rows of a reach are at hand: a column that names no others reaches no other part.
    """
    ends = [(o.column, o.axis, values[o.value].meta["type"]) for o in edges.operands]
    ends += [(r.column, r.axis, r.type) for r in edges.results if r.kind == "reduce"]
    found: dict[int, str | None] = {}
    at_hand = False
    for column, axis, type_ in ends:
        if column is None or axis is None:
            continue
        space = _space(type_, axis)
        if space is not None and spaces[space].kind == "reach":
            at_hand, space = True, None
        found[column] = space or found.get(column)
    return dict(sorted(found.items())), at_hand


def _space(type_: ValueType, axis: int) -> str | None:
    dim = type_.dims[axis]
    return dim.space if isinstance(dim, Rows) else None


def _home_only(
    edges: EdgeProgram,
    values: list[fx.Node],
    columns: list[fx.Node],
    far: list[int],
    targets: Mapping[int, str | None],
    entries: Mapping[fx.Node, Input],
) -> str:
    """Why edges can only run where they are at home; "" where they need not."""
    if len(far) > 1:
        return "reads rows of other parts through two columns"
    if sum(1 for c, space in targets.items() if c != far[0] and space is not None) > 1:
        return "its edges have more than two ends"
    for column in targets:
        if not _is_structural(columns[column], entries):
            return f"its column %{columns[column].name} is made by the step"
    for operand in edges.operands:
        if operand.column is None and operand.axis is not None:
            value = values[operand.value]
            if not _is_structural(value, entries):
                return f"reads the edge tensor %{value.name}, which each step makes anew"
    if any(r.kind == "store" for r in edges.results):
        return "its edge rows are read elsewhere"
    if _compares_products(edges):
        return "a maximum's derivative finds its winners by equality, and products of other blocks round otherwise"
    return ""


def _compares_products(edges: EdgeProgram) -> bool:
    """Whether matrix products of edges enter an extreme, or the comparison that finds what it is made of."""
    extremes = any(r.fold in ("amax", "amin") for r in edges.results)
    targets = {n.target for n in edges.body.nodes}
    return bool(targets & PRODUCTS) and (extremes or aten.eq.Tensor in targets)


def _is_structural(value: fx.Node, entries: Mapping[fx.Node, Input]) -> bool:
    """Whether a value is known once the graph is: it moves to another part once a graph, not once a step."""
    entry = entries.get(value)
    if entry is None:
        return False
    return entry.kind == "bound" or (entry.kind == "arg" and not value.meta["type"].dtype.is_floating_point)
