"""fuse-edge-programs: connected regions over edges become EdgePrograms.

A region starts at gathers from nodes and at edge tensors, runs row-wise, and ends in folds: reduces to nodes,
contractions over the edges, and stores of edge rows that something else reads. Folds over one space that do not depend
on each other and use the same columns share a traversal.

Before:
    program forward
    space N = nodes
    space E = edges on edges
    %z: f32[N, 4] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %m: f32[E, 4] = sarc.gather(%z, %src, 0)   # model.py:8
    %out: f32[N, 4] = sarc.reduce(%m, %dst, 0, |N|, 'sum')   # model.py:9
    return result 0 = %out
After:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:9
      %m: f32[E, 4] = gather $0 by #0 axis 0   # model.py:8
      reduce sum by #1 axis 0 %m: f32[N, 4]
    %z: f32[N, 4] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N, 4]) = edge_call(@edges0, [%z], [%src, %dst])   # model.py:9
    %getitem: f32[N, 4] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %getitem
Needs a forward or backward program; gives one in which every value over edges is inside an edge program or stored.
It does nothing to a program without folds over edges: the same object comes back.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import sympy
import torch
import torch.fx as fx

from sarc.ir.dialect import GATHER, REDUCE, ROW_IDS, SELECT_ROWS
from sarc.ir.edge_program import EdgeProgram, Operand, Result, contract_kind, edge_call
from sarc.ir.ops import contracted
from sarc.ir.program import Program, map_sizes, remove_dead
from sarc.ir.space import Rows, Size, Spaces, ValueType

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


class FuseEdgePrograms:
    """Rewrites a typed program so that everything over edges happens in `edge_call`s and in local row operations."""

    name = "fuse-edge-programs"

    def run(self, program: Program) -> Program:
        folds = find_folds(program)
        return fuse(program, folds) if folds else program


def find_folds(program: Program) -> list[Fold]:
    """Every fold of the program, in order."""
    folds = []
    returned = set(program.returned)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        space = _body_space(node, program.spaces)
        if node.target is REDUCE and _goes_to_nodes(node, program.spaces):
            folds.append(Fold(node, "reduce", node.args[1].meta["type"].dims[0].space))
        elif space is None and _contracts_edges(node, program.spaces):
            folds.append(Fold(node, "contract", _edge_spaces(node.all_input_nodes[0], program.spaces, node)[0]))
        elif space is not None and _is_read_outside(node, space, program, returned):
            folds.append(Fold(node, "store", space))
    return folds


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


def _body_space(node: fx.Node, spaces: Spaces) -> str | None:
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
        if _body_space(user, program.spaces) == space or _contracts_edges(user, program.spaces):
            continue
        return True
    return not program.spaces[space].on_edges


def fuse(program: Program, folds: list[Fold]) -> Program:
    """Replace `folds` and the regions that feed them by edge programs."""
    groups = _group(program, folds)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    fold_nodes = {f.node for f in folds}
    group_of = {f.node: k for k, group in enumerate(groups) for f in group}

    def emit(node: fx.Node) -> fx.Node:
        """Emit `node` and what it needs, depth first: groups are placed when their first result is needed."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in env:
                stack.pop()
                continue
            if top in fold_nodes:
                needs = _group_inputs(groups[group_of[top]], program, fold_nodes)
            else:
                needs = top.all_input_nodes
            missing = [n for n in needs if n not in env]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if top in fold_nodes:
                _emit_group(graph, env, group_of[top], groups[group_of[top]], program, fold_nodes)
            else:
                env[top] = graph.node_copy(top, env.__getitem__)
                env[top].meta = dict(top.meta)
        return env[node]

    for node in program.placeholders:
        env[node] = graph.node_copy(node)
        env[node].meta = dict(node.meta)
    for node in program.graph.nodes:
        if node in fold_nodes or (node.op == "call_function" and _stays(node, program, fold_nodes)):
            emit(node)
    graph.output([emit(n) for n in program.returned])
    remove_dead(graph)
    return Program(graph, program.spaces.copy(), program.inputs, program.outputs, program.stage, program.constants)


def _stays(node: fx.Node, program: Program, folds: set[fx.Node]) -> bool:
    """Whether a call is emitted for itself: everything that is no body call."""
    return _body_space(node, program.spaces) is None


def _group(program: Program, folds: list[Fold]) -> list[list[Fold]]:
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
        (node, math.prod(d for d in node.meta["type"].dims if isinstance(d, int)) * node.meta["type"].dtype.itemsize)
        for node in _region(fold, program, folds)
        if node.target is GATHER and isinstance(node.args[0].meta["type"].dims[node.args[2]], Rows)
    }


def _apart(group: list[Fold], program: Program, folds: set[fx.Node]) -> list[list[Fold]]:
    """A group as it is; where folds of the forward pass are made again, only those together that share values.

    Folds of different layers are wanted at different times.
    """
    if not any("again" in f.node.meta for f in group):
        return [group]
    parts: list[tuple[set[fx.Node], list[Fold]]] = []
    for fold in group:
        region = set(_region(fold, program, folds))
        joined = [fold]
        for other in [p for p in parts if p[0] & region]:
            parts.remove(other)
            region |= other[0]
            joined = other[1] + joined
        parts.append((region, joined))
    return [members for _, members in parts]


def _region(fold: Fold, program: Program, folds: set[fx.Node]) -> list[fx.Node]:
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
        if node.target is GATHER and isinstance(node.args[0].meta["type"].dims[node.args[2]], Rows):
            continue
        stack.extend(node.all_input_nodes)
    return [n for n in program.graph.nodes if n in found]


def _is_finished(node: fx.Node, program: Program) -> bool:
    """Whether a fold's value is read as a tensor: those of reduces and contractions are, stores are computed again."""
    return _body_space(node, program.spaces) is None


def _in_body(node: fx.Node, space: str, spaces: Spaces) -> bool:
    if _body_space(node, spaces) == space:
        return True
    # Constants without rows are cheap enough to repeat inside the body.
    return node.target is aten.full.default and node.meta["type"].dims == ()


def _columns_of(fold: Fold, program: Program, folds: set[fx.Node]) -> list[fx.Node]:
    columns = [fold.node.args[1]] if fold.kind == "reduce" else []
    for node in _region(fold, program, folds):
        if node.target is GATHER and isinstance(node.args[0].meta["type"].dims[node.args[2]], Rows):
            columns.append(node.args[1])
    return list(dict.fromkeys(columns))


def _leaves(region: list[fx.Node]) -> list[fx.Node]:
    inside = set(region)
    found = []
    for node in region:
        if node.target is GATHER and isinstance(node.args[0].meta["type"].dims[node.args[2]], Rows):
            continue
        found += [n for n in node.all_input_nodes if n not in inside]
    return list(dict.fromkeys(found))


def _group_inputs(group: list[Fold], program: Program, folds: set[fx.Node]) -> list[fx.Node]:
    needs: list[fx.Node] = []
    for fold in group:
        region = _region(fold, program, folds)
        needs += _leaves(region)
        for node in region:
            if node.target is GATHER and isinstance(node.args[0].meta["type"].dims[node.args[2]], Rows):
                needs += [node.args[0], node.args[1]]
        if fold.kind == "reduce":
            needs.append(fold.node.args[1])
            if fold.node.args[0] not in set(region):
                needs.append(fold.node.args[0])
    return list(dict.fromkeys(needs))


def _in_blocks(size: Size, space: str, spaces: Spaces) -> Size:
    """`size` with the rows of `space` as one symbol: a block of a concat has a length, but no parts."""
    factor = sympy.cancel(size.expr / spaces.sizes[space])
    return Size(factor * sympy.Symbol(space)) if factor.is_Integer else size


def _emit_group(graph, env, number: int, group: list[Fold], program: Program, folds: set[fx.Node]) -> None:
    body = fx.Graph()
    values: list[fx.Node] = []
    columns: list[fx.Node] = []
    operands: list[Operand] = []
    inner: dict[fx.Node, fx.Node] = {}
    space = group[0].space
    regions = [_region(f, program, folds) for f in group]
    wanted = {n for region in regions for n in region}
    ordered = [n for n in program.graph.nodes if n in wanted]

    def place(items: list[fx.Node], node: fx.Node) -> int:
        if node not in items:
            items.append(node)
        return items.index(node)

    def add_operand(key: fx.Node, value: fx.Node, column: fx.Node | None, axis: int | None) -> None:
        made = body.placeholder(key.name)
        made.meta = {"type": key.meta["type"], "loc": key.meta.get("loc", "")}
        inner[key] = made
        at = None if column is None else place(columns, column)
        operands.append(Operand(place(values, value), at, axis, key.meta["type"]))

    for node in ordered:
        if node.target is GATHER and isinstance(node.args[0].meta["type"].dims[node.args[2]], Rows):
            add_operand(node, node.args[0], node.args[1], node.args[2])
    direct = [f.node.args[0] for f in group if f.kind == "reduce"]
    for leaf in dict.fromkeys([*_leaves(ordered), *(n for n in direct if n not in wanted)]):
        type_ = leaf.meta["type"]
        add_operand(leaf, leaf, None, type_.axis_of(space) if space in type_.spaces else None)
    for node in ordered:
        if node not in inner:
            inner[node] = body.node_copy(node, inner.__getitem__)
            inner[node].meta = dict(node.meta)
            inner[node].args = map_sizes(inner[node].args, lambda size: _in_blocks(size, space, program.spaces))
    results, returned = [], []
    for fold in group:
        node, type_ = fold.node, fold.node.meta["type"]
        if fold.kind == "reduce":
            rows, column, axis, _, kind = node.args
            results.append(Result("reduce", kind, place(columns, column), axis, type_))
            returned.append(inner[rows])
        elif fold.kind == "contract":
            results.append(Result("contract", contract_kind(node), None, None, type_))
            returned.append(inner[node])
        else:
            results.append(Result("store", "", None, type_.axis_of(space), type_))
            returned.append(inner[node])
    body.output(returned)
    loc = next((f.node.meta.get("loc", "") for f in group if f.node.meta.get("loc")), "")
    program_ = EdgeProgram(f"edges{number}", space, tuple(operands), tuple(results), body, loc)
    call = graph.call_function(edge_call, (program_, [env[v] for v in values], [env[c] for c in columns]))
    call.meta = {"type": tuple(r.type for r in results), "loc": loc}
    for k, fold in enumerate(group):
        env[fold.node] = graph.call_function(operator.getitem, (call, k))
        env[fold.node].meta = {"type": fold.node.meta["type"], "loc": fold.node.meta.get("loc", "")}
