"""Folds over edges, what each of them computes of an edge, and which of them share a traversal."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
import torch.fx as fx

from sarc.ir.dialect import GATHER, REDUCE, ROW_IDS, SELECT_ROWS
from sarc.ir.frontier import row_width
from sarc.ir.ops import contracted
from sarc.ir.program import Program
from sarc.ir.space import Rows, Spaces, ValueType

aten = torch.ops.aten

_WHOLE_ROWS = {ROW_IDS, SELECT_ROWS}
# Of folds that may share a traversal: edge space, number of folds before them, names of the columns.
_Key = tuple[str, int, frozenset[str]]


@dataclass(frozen=True)
class Fold:
    """A value to compute in an edge program: `node` is the reduce, contraction or stored value."""

    node: fx.Node
    kind: str
    space: str


def find_folds(program: Program) -> list[Fold]:
    """Every fold of the program, in order."""
    folds = []
    returned = set(program.returned)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        space = body_space(node, program.spaces)
        if node.target is REDUCE and _goes_to_nodes(node, program.spaces):
            folds.append(Fold(node, "reduce", node.args[1].meta["type"].dims[0].space))
        elif space is None and _contracts_edges(node, program.spaces):
            folds.append(Fold(node, "contract", _edge_spaces(node.all_input_nodes[0], program.spaces, node)[0]))
        elif space is not None and _is_read_outside(node, space, program, returned):
            folds.append(Fold(node, "store", space))
    return folds


def gathers_rows(node: fx.Node) -> bool:
    """Whether a call gathers rows, not entries of an axis without any."""
    return node.target is GATHER and isinstance(node.args[0].meta["type"].dims[node.args[2]], Rows)


def _single(node: fx.Node) -> ValueType | None:
    found = node.meta["type"]
    return found if isinstance(found, ValueType) else None


def _edge_spaces(node: fx.Node, spaces: Spaces, of: fx.Node | None = None) -> list[str]:
    names = []
    for n in [node] if of is None else of.all_input_nodes:
        types = n.meta["type"] if isinstance(n.meta["type"], tuple) else (n.meta["type"],)
        names += [s for t in types for s in t.spaces if spaces[s].on_edges]
    return list(dict.fromkeys(names))


def _is_aligned(column: fx.Node) -> bool:
    """Whether the column names rows that its own rows were selected from: they have the same owner."""
    return bool(column.meta.get("aligned"))


def body_space(node: fx.Node, spaces: Spaces) -> str | None:
    """The space whose rows this call computes inside an edge program, or None when it is no such call."""
    if node.op != "call_function" or node.target in _WHOLE_ROWS or _regroups_rows(node):
        return None
    if node.target is GATHER:
        x, column, axis = node.args
        dim = column.meta["type"].dims[0]
        source = x.meta["type"].dims[axis]
        if not isinstance(source, Rows):
            return dim.space if isinstance(dim, Rows) and spaces[dim.space].on_edges and dim.plain else None
        if spaces[source.space].on_edges or _is_aligned(column):
            return None
        return dim.space
    if node.target is REDUCE:
        return None
    out = _edge_spaces(node, spaces)
    if not out:
        return None
    return out[0]


def _regroups_rows(node: fx.Node) -> bool:
    """Whether a cat or slice works along the rows: it needs whole row sets, not blocks of them."""
    if node.target not in (aten.cat.default, aten.slice.Tensor):
        return False
    axis = node.args[1] if len(node.args) > 1 else 0
    dims = node.meta["type"].dims
    return isinstance(dims[axis % len(dims)], Rows)


def _goes_to_nodes(node: fx.Node, spaces: Spaces) -> bool:
    column, axis = node.args[1:3]
    source, target = column.meta["type"].dims[0], node.meta["type"].dims[axis]
    if not isinstance(target, Rows) or not isinstance(source, Rows) or _is_aligned(column):
        return False
    return not spaces[target.space].on_edges


def _contracts_edges(node: fx.Node, spaces: Spaces) -> bool:
    """Whether edges are contracted: summed, in a weight gradient of a per-edge layer, folded to replicated rows."""
    found = _single(node)
    if found is None or node.target is operator.getitem:
        return False
    return bool(_edge_spaces(node, spaces, node)) and contracted(node, found)


def _is_read_outside(node: fx.Node, space: str, program: Program, returned: set[fx.Node]) -> bool:
    """Whether a body value must exist as a tensor: it is returned, or read by a call that is no body call or fold."""
    if _single(node) is None:
        return False
    if node in returned:
        return True
    for user in node.users:
        if user.op == "output":
            return True
        if user.target is GATHER and user.args[0] is node:
            return True
        if user.target is REDUCE and user.args[0] is node:
            if not _goes_to_nodes(user, program.spaces) and isinstance(user.meta["type"].dims[user.args[2]], Rows):
                return True
            continue
        if body_space(user, program.spaces) == space or _contracts_edges(user, program.spaces):
            continue
        return True
    return not program.spaces[space].on_edges


def group_folds(program: Program, folds: list[Fold]) -> list[list[Fold]]:
    """Folds that share a traversal: one space, one depth (so none depends on another), one set of columns."""
    by_node = {f.node: f for f in folds}
    depth: dict[fx.Node, int] = {}
    groups: dict[_Key, list[Fold]] = {}
    for node in program.graph.nodes:
        depth[node] = max((depth[n] for n in node.all_input_nodes), default=0)
        fold = by_node.get(node)
        if fold is not None:
            columns = frozenset(c.name for c in _columns_of(fold, program, set(by_node)))
            groups.setdefault((fold.space, depth[node], columns), []).append(fold)
            depth[node] += 1
    groups = _postpone(groups, program, set(by_node))
    return [part for group in groups.values() for part in _apart(group, program, set(by_node))]


def _postpone(groups: dict[_Key, list[Fold]], program: Program, folds: set[fx.Node]) -> dict[_Key, list[Fold]]:
    """The groups, where a fold that no other one waits for is made with the later one that it shares most rows with.

    Without this the gradient of gathered rows, which needs no sums of the backward pass, would be made with them, and
    the gradients of the scores would gather the same rows again.
    """
    gathered = {f.node: _gathered(f, program, folds) for group in groups.values() for f in group}
    deadlines = _deadlines(groups, program)
    found: dict[_Key, list[Fold]] = {key: [] for key in groups}
    for key, group in groups.items():
        space, depth, columns = key
        for fold in group:
            others = {
                k: set().union(*(gathered[f.node] for f in groups[k] if f is not fold))
                for k in groups
                if k[0] == space and k[2] == columns and depth <= k[1] < deadlines[fold.node]
            }
            shared = {k: sum(size for _, size in gathered[fold.node] & others[k]) for k in others}
            found[max(shared, key=lambda k: (shared[k], -k[1]))].append(fold)
    place = {node: k for k, node in enumerate(program.graph.nodes)}
    return {key: sorted(group, key=lambda f: place[f.node]) for key, group in found.items() if group}


def _deadlines(groups: dict[_Key, list[Fold]], program: Program) -> dict[fx.Node, float]:
    """Of each fold, the least depth of the folds that need it."""
    depths = {f.node: key[1] for key, group in groups.items() for f in group}
    found: dict[fx.Node, float] = {}
    for node in reversed(program.graph.nodes):
        found[node] = min((depths.get(user, found[user]) for user in node.users), default=math.inf)
    return found


def _gathered(fold: Fold, program: Program, folds: set[fx.Node]) -> set[tuple[fx.Node, int]]:
    """The gathers of rows that a fold needs, with the bytes of one row."""
    return {
        (node, row_width(node.meta["type"])) for node in region_of(fold, program, folds) if gathers_rows(node)
    }


def _apart(group: list[Fold], program: Program, folds: set[fx.Node]) -> list[list[Fold]]:
    """A group as it is; where folds of the forward pass are made again, only those together that share values.

    Folds of different layers are wanted at different times.
    """
    if not any("again" in f.node.meta for f in group):
        return [group]
    parts: list[tuple[set[fx.Node], list[Fold]]] = []
    for fold in group:
        region = set(region_of(fold, program, folds))
        joined = [fold]
        for other in [p for p in parts if p[0] & region]:
            parts.remove(other)
            region |= other[0]
            joined = other[1] + joined
        parts.append((region, joined))
    return [members for _, members in parts]


def region_of(fold: Fold, program: Program, folds: set[fx.Node]) -> list[fx.Node]:
    """The body calls that a fold needs, in graph order (a store's or contraction's own node included)."""
    found: set[fx.Node] = set()
    stack = [fold.node.args[0]] if fold.kind == "reduce" else [fold.node]
    while stack:
        node = stack.pop()
        if node in found or node.op != "call_function":
            continue
        if node is not fold.node:
            if node in folds and _is_finished(node, program):
                continue
            if not _in_body(node, fold.space, program.spaces):
                continue
        found.add(node)
        if gathers_rows(node):
            continue
        stack.extend(node.all_input_nodes)
    return [n for n in program.graph.nodes if n in found]


def _is_finished(node: fx.Node, program: Program) -> bool:
    """Whether a fold's value is read as a tensor: those of reduces and contractions are, stores are computed again."""
    return body_space(node, program.spaces) is None


def _in_body(node: fx.Node, space: str, spaces: Spaces) -> bool:
    if body_space(node, spaces) == space:
        return True
    # Constants without rows are cheap enough to repeat inside the body.
    return node.target is aten.full.default and node.meta["type"].dims == ()


def _columns_of(fold: Fold, program: Program, folds: set[fx.Node]) -> list[fx.Node]:
    columns = [fold.node.args[1]] if fold.kind == "reduce" else []
    for node in region_of(fold, program, folds):
        if gathers_rows(node):
            columns.append(node.args[1])
    return list(dict.fromkeys(columns))


def leaves_of(region: list[fx.Node]) -> list[fx.Node]:
    inside = set(region)
    found = []
    for node in region:
        if gathers_rows(node):
            continue
        found += [n for n in node.all_input_nodes if n not in inside]
    return list(dict.fromkeys(found))
