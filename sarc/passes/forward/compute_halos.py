"""compute-halos: what other parts would send is computed from rows of data that are fetched once.

A value that is gathered through a column with rows of other parts, and is made row by row from data (a linear layer, a
dropout whose masks are keyed by row, an activation), is made on the rows that a part *reaches* through the column: the
data of its halo is fetched, the rest computed a second time. The gather is local then, and so is its derivative: a
contraction over the reach is the part's share, completed as ever.

Before:
    program step
    space N = nodes
    space E = edges on edges
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %src: i64[E] = input bound src
    %z: f32[N, 2] = aten.mm(%x, %w)   # model.py:8
    %zj: f32[E, 2] = sarc.gather(%z, %src, 0)   # model.py:9
    return result 0 = %zj
    return result 1 = %z
After:
    program step
    space N = nodes
    space E = edges on edges
    space R_src = reach(N, %src)
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %src: i64[E] = input bound src
    %fetch: (f32[R_src, 4]) = fetch([%x], %src)   # model.py:9
    %getitem: f32[R_src, 4] = getitem(%fetch, 0)   # model.py:9
    %mm_default: f32[R_src, 2] = aten.mm(%getitem, %w)   # model.py:8
    %own_rows_default: f32[N, 2] = sarc.own_rows(%mm_default, 0, |N|)   # model.py:8
    %gather_default: f32[E, 2] = sarc.gather(%mm_default, %src, 0)   # model.py:9
    return result 0 = %gather_default
    return result 1 = %own_rows_default
Needs a step program, the inputs that need gradients, the columns that reach other parts, and what is worth it; gives
one whose fetches are of data.
It does nothing to gathers of values that parameters have mixed over neighbours, or of data itself: the same object
comes back when there is no other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import sympy
import torch.fx as fx

from sarc.ir.binding_times import CONSTANT, DATA, STEP, binding_times
from sarc.ir.collective import fetch, with_space
from sarc.ir.dialect import GATHER, OWN_ROWS, REDUCE, SELECT_ROWS
from sarc.ir.ops import contracted, infer, shape_operands
from sarc.ir.program import Input, Program, map_sizes, remove_dead
from sarc.ir.space import Rows, Size, Spaces, ValueType
from sarc.passes.base import tidy


@dataclass(frozen=True)
class Halo:
    """What a part can compute of the rows that it reaches through one column.

    Attributes:
        column: the column.
        parent: the space whose rows it names.
        gathers: calls that read such values through the column.
        leaves: values of data to fetch.
        cone: calls between the leaves and what is gathered, in order.
    """

    column: fx.Node
    parent: str
    gathers: tuple[fx.Node, ...]
    leaves: tuple[fx.Node, ...]
    cone: tuple[fx.Node, ...]


class ComputeHalos:
    """Rewrites a step program.

    Args:
        wrt: inputs that need gradients.
        columns: names of the columns that reach other parts.
        worth: whether a halo shall be computed.
    """

    name = "compute-halos"

    def __init__(
        self, wrt: frozenset[Input], columns: Iterable[str], worth: Callable[[Halo], bool] = lambda halo: True
    ):
        self.wrt, self.columns, self.worth = wrt, frozenset(columns), worth

    def run(self, program: Program) -> Program:
        halos = [h for h in find_halos(program, self.wrt, self.columns) if self.worth(h)]
        return _Rewrite(program, halos).run() if halos else program


def find_halos(program: Program, wrt: frozenset[Input], columns: frozenset[str]) -> list[Halo]:
    """What can be computed through each column, in order."""
    times = binding_times(program, wrt)
    sources: dict[fx.Node, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.target is GATHER and times[node] == STEP and node.args[1].name in columns:
            sources.setdefault(node.args[1], []).append(node)
    found = []
    for column, gathers in sources.items():
        good: list[fx.Node] = []
        leaves: dict[fx.Node, None] = {}
        cone: set[fx.Node] = set()
        parent = ""
        for gather in gathers:
            dim = gather.args[0].meta["type"].dims[gather.args[2]]
            if not isinstance(dim, Rows) or program.spaces[dim.space].kind != "nodes" or parent not in ("", dim.space):
                continue
            made = _cone(gather.args[0], dim.space, times)
            if made is None:
                continue
            parent = dim.space
            good.append(gather)
            leaves.update(dict.fromkeys(made[0]))
            cone |= made[1]
        if leaves:
            ordered = tuple(n for n in program.graph.nodes if n in cone)
            placed = tuple(n for n in program.graph.nodes if n in leaves)
            found.append(Halo(column, parent, tuple(good), placed, ordered))
    return found


def _cone(value: fx.Node, space: str, times: dict[fx.Node, int]) -> tuple[list[fx.Node], set[fx.Node]] | None:
    """The data that a value is made from row by row, and the calls in between; None where it is made otherwise."""
    leaves: list[fx.Node] = []
    cone: set[fx.Node] = set()
    stack, seen = [value], set()
    while stack:
        node = stack.pop()
        if node in seen or not _has_rows(node, space):
            continue
        seen.add(node)
        if times[node] <= DATA and times[node] != CONSTANT:
            if not isinstance(node.meta["type"], ValueType) or not _plain_rows(node.meta["type"], space):
                return None
            leaves.append(node)
        elif _is_rowwise(node, space):
            cone.add(node)
            stack.extend(node.all_input_nodes)
        else:
            return None
    return leaves, cone


def _types(node: fx.Node) -> tuple[ValueType, ...]:
    types = node.meta["type"]
    return types if isinstance(types, tuple) else (types,)


def _has_rows(node: fx.Node, space: str) -> bool:
    return any(space in t.spaces for t in _types(node))


def _plain_rows(type_: ValueType, space: str) -> bool:
    return type_.spaces == (space,) and all(d.plain for d in type_.dims if isinstance(d, Rows))


def _is_rowwise(node: fx.Node, space: str) -> bool:
    """Whether each row of the result is made from the same row of the operands, and from replicated values."""
    if node.op != "call_function" or node.target in (GATHER, REDUCE, SELECT_ROWS, OWN_ROWS, fetch):
        return False
    if any(t.spaces != (space,) for t in _types(node)):
        return False
    if isinstance(node.meta["type"], ValueType) and contracted(node, node.meta["type"]):
        return False
    return all(t.spaces in ((), (space,)) for n in node.all_input_nodes for t in _types(n))


class _Rewrite:
    """One program being rewritten."""

    def __init__(self, program: Program, halos: list[Halo]):
        self.program, self.halos = program, halos
        self.spaces: Spaces = program.spaces.copy()
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        # By halo: its values on the reach.
        self.reached: list[dict[fx.Node, fx.Node]] = [{} for _ in halos]

    def run(self) -> Program:
        in_cone = {n: k for k, h in reversed(list(enumerate(self.halos))) for n in h.cone}
        gathers = {g: k for k, h in enumerate(self.halos) for g in h.gathers}
        placeholders = self.program.placeholders
        for node in self.program.graph.nodes:
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self.env.__getitem__))
                continue
            for k, halo in enumerate(self.halos):
                if node in halo.cone:
                    self._reach(k, node)
            if node in gathers:
                k = gathers[node]
                self.env[node] = self._call(node, (self.reached[k][node.args[0]], *self._args(node)[1:]), {})
            elif node in in_cone:
                if _is_read_outside(node, self.halos):
                    self.env[node] = self._owned(node, in_cone[node])
            else:
                self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
                self.env[node].meta = dict(node.meta)
            if node.op != "placeholder":
                self._fetch_leaves([node])
            elif node is placeholders[-1]:
                self._fetch_leaves(placeholders)
        tidy(self.graph, self.spaces)
        remove_dead(self.graph)
        program = self.program
        return Program(self.graph, self.spaces, program.inputs, program.outputs, program.stage, program.constants)

    def _fetch_leaves(self, nodes: list[fx.Node]) -> None:
        """Fetch those of `nodes` that are leaves, those of one column in one message."""
        for k, halo in enumerate(self.halos):
            leaves = [n for n in nodes if n in halo.leaves]
            if not leaves:
                continue
            reach = self.spaces.reach(halo.parent, halo.column.name).name
            call = self.graph.call_function(fetch, ([self.env[n] for n in leaves], self.env[halo.column]))
            loc = halo.gathers[0].meta.get("loc", "")
            types = tuple(with_space(n.meta["type"], halo.parent, reach) for n in leaves)
            call.meta = {"type": types, "loc": loc}
            for place, (leaf, type_) in enumerate(zip(leaves, types, strict=True)):
                made = self.graph.call_function(operator.getitem, (call, place))
                made.meta = {"type": type_, "loc": loc}
                self.reached[k][leaf] = made

    def _reach(self, k: int, node: fx.Node) -> None:
        """A call of a cone on the rows of the reach."""
        halo = self.halos[k]
        reach = self.spaces.reach(halo.parent, halo.column.name).name
        args, kwargs = fx.map_arg(
            (node.args, dict(node.kwargs)), lambda n: self.reached[k][n] if n in self.reached[k] else self.env[n]
        )
        names, shapes = shape_operands(node.target)
        one, other = sympy.Symbol(halo.parent), sympy.Symbol(reach)

        def resized(name: str, value):
            """Lengths are those of the reach; a number of rows in a formula stays that of the whole graph."""
            if name not in shapes:
                return value
            return map_sizes(value, lambda size: Size(size.expr.subs(one, other)))

        args = tuple(resized(name, value) for name, value in zip(names, args, strict=False)) if names else args
        kwargs = {name: resized(name, value) for name, value in kwargs.items()}
        self.reached[k][node] = self._call(node, args, kwargs)

    def _args(self, node: fx.Node) -> tuple:
        return fx.map_arg(node.args, lambda n: self.env.get(n, n))

    def _owned(self, node: fx.Node, k: int) -> fx.Node:
        """The owned rows of a value of a reach, for readers outside."""
        type_ = node.meta["type"]
        axis = type_.axis_of(self.halos[k].parent)
        size = Size(self.spaces.sizes[self.halos[k].parent])
        return self._call(node, (self.reached[k][node], axis, size), {}, OWN_ROWS)

    def _call(self, node: fx.Node, args: tuple, kwargs: dict, target=None) -> fx.Node:
        made = self.graph.call_function(target or node.target, args, kwargs)
        made.meta["loc"] = node.meta.get("loc", "")
        if made.target is operator.getitem:
            made.meta["type"] = args[0].meta["type"][args[1]]
        else:
            made.meta["type"] = infer(made, self.spaces)
        return made


def _is_read_outside(node: fx.Node, halos: list[Halo]) -> bool:
    """Whether a value of a cone is read by anything but the cones and the gathers that are rewritten."""
    inside = {n for h in halos for n in (*h.cone, *h.gathers)}
    for user in node.users:
        if user not in inside:
            return True
    return False
