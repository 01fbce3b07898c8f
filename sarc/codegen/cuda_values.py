"""Values of an edge program's body in CUDA: named scalars of one lane, and arrays in shared memory.

A lane computes one entry of a value at a time, and names it: an entry that several readers of a block need is computed
once. Nothing wide is kept: what an entry is made of is read where it is needed, at any place. In shared memory are
what lanes tell each other: narrow values of a block's edges, and what is computed once a row.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.fx as fx

from sarc.codegen.body import NARROW, Body, features, width
from sarc.codegen.cuda_tables import Tables
from sarc.codegen.divide import Scratch
from sarc.codegen.expression import C_TYPES, literal
from sarc.codegen.operators import RULES, pointwise
from sarc.codegen.value import VIEWS, Value, linear
from sarc.codegen.views import Index, NoKernel
from sarc.ir.dialect import UNIFORM, start_value
from sarc.ir.edge_program import fold_to_rows, take_rows
from sarc.ir.space import Rows

aten = torch.ops.aten

COMBINE = {"sum": "{0} + {1}", "amax": "sarc_max({0}, {1})", "amin": "sarc_min({0}, {1})"}
FEATURE_FOLDS = {aten.sum.dim_IntList, aten.amax.default, aten.amin.default}


def neutral(fold: str, dtype: torch.dtype) -> str:
    """What a fold starts from, as C++."""
    return literal(start_value(fold, dtype), dtype)


class Values(Tables):
    """The readers of a body's values, for code that is written block by block.

    Attributes:
        stored: names of the shared arrays, by value.
        ready: values whose arrays are filled where the code stands.
        draws: whether row keys are read.
    """

    def __init__(self, body: Body, scratch: Scratch):
        super().__init__(body, scratch)
        _wait_for_readers(body)
        self.ready: set[fx.Node] = set()
        self.draws = False
        self._readers: dict[fx.Node, Value] = {}
        self._number = 0
        self.stored = {n: f"{self._plain_name(n)}_{i}" for i, n in enumerate(body.nodes) if self._is_stored(n)}

    # --- what is in shared memory

    def _is_stored(self, node: fx.Node) -> bool:
        body = self.body
        if node.target is fold_to_rows:
            return True
        if node.op == "placeholder" and node in body.in_row:
            return False
        if node in body.in_row:
            return node.target not in VIEWS | {take_rows, aten.full.default} and self._is_stored_of_row(node)
        if body.is_wide(node):
            return False
        if body.sinks(node):
            return True
        return node.target not in VIEWS and any(self._meets_elsewhere(node, r) for r in self._read_by(node))

    def _is_stored_of_row(self, node: fx.Node) -> bool:
        readers = self._read_by(node)
        of_edges = any(r not in self.body.in_row or r.target is fold_to_rows for r in readers)
        if node in self.body.roots.values():
            of_edges |= any(self.program.results[k].kind != "rows" for k, n in self.body.roots.items() if n is node)
        return of_edges or self.is_cooperative(node) or any(width(r) > width(node) for r in readers)

    def is_cooperative(self, node: fx.Node) -> bool:
        """Whether lanes fold the features of a wide value of the row together."""
        folds = node.target in FEATURE_FOLDS and node in self.body.in_row
        return folds and width(node) <= NARROW < width(node.args[0])

    def _read_by(self, node: fx.Node) -> list[fx.Node]:
        """What computes with a value, through views of it; the views as well."""
        found: list[fx.Node] = []
        for reader in self.body.readers(node):
            found.append(reader)
            if reader.target in VIEWS or reader.target is take_rows:
                found += self._read_by(reader)
        return found

    def _meets_elsewhere(self, node: fx.Node, reader: fx.Node) -> bool:
        """Whether a reader of a narrow edge value runs in another sweep over the block."""
        body = self.body
        if reader.target is fold_to_rows:
            return body.passes[node] != body.passes[reader] - 1 or body.fold_phase(reader.args[0]) != body.phases[node]
        return (
            body.is_wide(reader) or body.sinks(reader) or body.passes[reader] != body.passes[node]
            or body.phases[reader] != body.phases[node]
        )  # fmt: skip

    def array_size(self, node: fx.Node) -> int:
        return max(math.prod(features(node.meta["type"].dims)), 1)

    def mark(self, node: fx.Node) -> None:
        """From here on a value is read from its array."""
        self.ready.add(node)
        self._readers.clear()

    def unmark(self, nodes: Sequence[fx.Node]) -> None:
        self.ready.difference_update(nodes)
        self._readers.clear()

    def slot(self, node: fx.Node, offset: str) -> str:
        """The entry of a stored value at an offset among its features."""
        name = self.stored[node]
        if node in self.body.in_row:
            return f"s.{name}[{offset}]"
        place = f"({offset}) * PITCH + q" if " " in offset else "q" if offset == "0" else f"{offset} * PITCH + q"
        return f"s.{name}[{place}]"

    # --- reading

    def value(self, node: fx.Node) -> Value:
        """The reader of a value, from its array where that is filled."""
        if node not in self._readers:
            self._readers[node] = self._array(node) if node in self.ready else self.computed(node)
        return self._readers[node]

    def in_lanes(self, node: fx.Node) -> Value:
        """The reader for a value of many edges: a lane has one, and reads it as any other."""
        return self.value(node)

    def computed(self, node: fx.Node) -> Value:
        """The reader that computes a value, or loads it from memory."""
        type_ = node.meta["type"]
        self.compute_type(type_.dtype)
        if node.op == "placeholder":
            return self._memory(node)
        if node.target is take_rows:
            source = self.value(node.args[0])
            return Value(source.element, type_.dims, True, source.flat)
        own = {aten.cat.default: self._cat, aten.slice_backward.default: self._slice_backward, UNIFORM: self._uniform}
        if node.target in FEATURE_FOLDS:
            return self._fold_features(node)
        if node.target in own:
            return own[node.target](node)
        if node.target in VIEWS or node.target is aten.full.default:
            return RULES[node.target](self, node)  # type: ignore[arg-type]
        return self._once(node, pointwise(self, node))  # type: ignore[arg-type]

    def compute_type(self, dtype: torch.dtype) -> str:
        if dtype not in C_TYPES:
            raise NoKernel(f"values of {dtype}")
        return C_TYPES[dtype]

    def _array(self, node: fx.Node) -> Value:
        dims = node.meta["type"].dims
        read = lambda i: self.slot(node, i)  # noqa: E731
        # An entry that was computed in this block of code still has its name.
        entry = lambda at: self.scope.find((node, _place(at, dims))) or read(linear(at, dims))  # noqa: E731
        return Value(entry, dims, True, read)

    def _once(self, node: fx.Node, value: Value) -> Value:
        """A reader that computes each entry once a block of code."""
        return Value(lambda at: self._named(node, at, lambda: value.element(at)), value.dims)

    def _named(self, node: fx.Node, at: Index | str, text: Callable[[], str]) -> str:
        key = (node, at if isinstance(at, str) else _place(at, node.meta["type"].dims))
        found = self.scope.find(key)
        if found is None:
            right = text()
            found = self.new_name(node)
            self.scope.names[key] = found
            self.add(f"const {self.compute_type(node.meta['type'].dtype)} {found} = {right};")
        return found

    def new_name(self, node: fx.Node) -> str:
        self._number += 1
        return f"{self._plain_name(node)}_{self._number}"

    @staticmethod
    def _plain_name(node: fx.Node) -> str:
        """A readable name; with its number it is no word of C++ and no name of the unit."""
        name = "".join(c if c.isalnum() else "_" for c in node.name).strip("_") or "value"
        return f"v_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name

    # --- memory

    def _memory(self, node: fx.Node) -> Value:
        k = self.body.placeholders.index(node)
        dims = node.meta["type"].dims

        def read(offset: str) -> str:
            return self._named(node, f"at {offset}", lambda: self.load(node, k, offset))

        return Value(lambda at: read(linear(at, dims)), dims, True, read)

    # --- operators that are no expression of one entry

    def _uniform(self, node: fx.Node) -> Value:
        dims, op = node.meta["type"].dims, node.args[2]
        if any(isinstance(d, Rows) for d in dims[1:]) or not any(isinstance(d, Rows) for d in dims):
            raise NoKernel("draws with rows on an inner axis, or none")
        if node in self.body.in_row:
            raise NoKernel("draws of a row")
        self.draws = True
        draw = lambda at: f"sarc_uniform(keys[k], {linear(at, dims)}, {op}, seed, step)"  # noqa: E731
        return self._once(node, Value(draw, dims, cheap=False))

    def _chosen(
        self, node: fx.Node, choices: Callable[[Index], list[tuple[str, Callable[[], str]]]], start: str
    ) -> Value:
        """A value whose entries come from where a condition says: only that is read."""
        kind = self.compute_type(node.meta["type"].dtype)

        def element(at: Index) -> str:
            key = (node, _place(at, node.meta["type"].dims))
            found = self.scope.find(key)
            if found is None:
                found = self.new_name(node)
                self.add(f"{kind} {found} = {start};")
                for condition, text in choices(at):
                    with self.block(f"if ({condition})"):
                        self.add(f"{found} = {text()};")
                self.scope.names[key] = found
            return found

        return Value(element, node.meta["type"].dims)

    def _cat(self, node: fx.Node) -> Value:
        dims = node.meta["type"].dims
        axis = (node.args[1] if len(node.args) > 1 else 0) % len(dims)
        parts = [self.value(n) for n in node.args[0]]
        if isinstance(dims[axis], Rows):
            raise NoKernel("rows of several sets side by side")

        def choices(at: Index) -> list[tuple[str, Callable[[], str]]]:
            found: list[tuple[str, Callable[[], str]]] = []
            start = 0
            for part in parts:
                end = start + part.dims[axis]
                inner = list(at)
                inner[axis] = "0" if part.dims[axis] == 1 else f"({at[axis]} - {start})" if start else at[axis]
                found.append((f"{at[axis]} >= {start} && {at[axis]} < {end}", partial(part.element, inner)))
                start = end
            return found

        return self._chosen(node, choices, literal(0, node.meta["type"].dtype))

    def _slice_backward(self, node: fx.Node) -> Value:
        """A value between zeros: the derivative of a slice of features."""
        source, type_ = self.value(node.args[0]), node.meta["type"]
        _, _, axis, first, last, step = node.args
        axis %= len(type_.dims)
        size = type_.dims[axis]
        if isinstance(size, Rows) or step != 1:
            raise NoKernel("derivative of a slice of rows, or of one with a step")
        start, end, _ = slice(first, last).indices(size)

        def choices(at: Index) -> list[tuple[str, Callable[[], str]]]:
            inner = list(at)
            inner[axis] = "0" if source.dims[axis] == 1 else f"({at[axis]} - {start})"
            return [(f"{at[axis]} >= {start} && {at[axis]} < {end}", lambda: source.element(inner))]

        return self._chosen(node, choices, literal(0, type_.dtype))

    def _fold_features(self, node: fx.Node) -> Value:
        """A fold over features by one lane, entry after entry."""
        source, reduced, fold = self.fold_parts(node)
        kind, dims = self.compute_type(node.meta["type"].dtype), source.dims
        keep = len(node.meta["type"].dims) == len(dims)

        def element(at: Index) -> str:
            key = (node, _place(at, node.meta["type"].dims))
            found = self.scope.find(key)
            if found is None:
                found = self.new_name(node)
                self.add(f"{kind} {found} = {neutral(fold, node.meta['type'].dtype)};")
                given, inner = iter(at), ["0"] * len(dims)
                for axis in range(len(dims)):
                    if keep or axis not in reduced:
                        inner[axis] = next(given)
                over = {axis: f"{found}_i{axis}" for axis in sorted(reduced) if dims[axis] != 1}
                for axis in reduced:
                    inner[axis] = over.get(axis, "0")
                self.loops(
                    [(over[axis], dims[axis]) for axis in over],
                    lambda: self.add(f"{found} = {COMBINE[fold].format(found, source.element(inner))};"),
                )
                self.scope.names[key] = found
            return found

        return Value(element, node.meta["type"].dims)

    def fold_parts(self, node: fx.Node) -> tuple[Value, set[int], str]:
        """What a fold over features folds, over which axes, and how."""
        source = self.value(node.args[0])
        which = node.args[1] if len(node.args) > 1 else None
        axes = range(len(source.dims)) if which in (None, []) else [which] if isinstance(which, int) else which
        reduced = {d % len(source.dims) for d in axes}
        if any(isinstance(source.dims[a], Rows) for a in reduced):
            raise NoKernel("contraction inside the body")
        name = node.target.overloadpacket.__name__
        return source, reduced, name

    # --- loops

    def loops(self, over: Sequence[tuple[str, int]], body: Callable[[], None]) -> None:
        """Nested loops, unrolled where they are short, around a body."""
        if not over:
            with self.block():
                body()
            return
        (name, length), *rest = over
        unroll = "SARC_UNROLL " if length <= 16 else ""
        with self.block(f"{unroll}for (int {name} = 0; {name} < {length}; ++{name})"):
            if rest:
                self.loops(rest, body)
            else:
                body()

    def over_features(self, dims: tuple, body: Callable[[Index], None]) -> None:
        """Loops of one lane over all features of `dims`."""
        at = [f"i{axis}" if not isinstance(d, Rows) and d != 1 else "0" for axis, d in enumerate(dims)]
        self.loops([(name, dims[axis]) for axis, name in enumerate(at) if name != "0"], lambda: body(at))


def _place(at: Index, dims: tuple) -> tuple[str, ...]:
    """An index, on the axes that have several entries."""
    return tuple(i for i, d in zip(at, dims, strict=True) if d != 1 and not isinstance(d, Rows))


def _wait_for_readers(body: Body) -> None:
    """Values of edges are computed in the first sweep that reads them, rather than in the first that could."""
    for node in reversed(body.nodes):
        if node in body.in_row:
            continue
        sweeps = [body.passes[r] - 1 if r.target is fold_to_rows else body.passes[r] for r in body.readers(node)]
        if node in body.roots.values():
            sweeps.append(body.passes[node])
        body.passes[node] = max(body.passes[node], min(sweeps, default=0))
