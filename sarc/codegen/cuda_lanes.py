"""Lanes: the features of wide values spread over the lanes of a group, in strips of neighbours.

Lane l of G holds, of strip j, the features (j G + l) V to (j G + l) V + V - 1: a group reads V G neighbours at a time,
up to 128 bits a lane. Loops over one shape of features are one loop, whatever they compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.fx as fx

from sarc.codegen.body import Body, features, width
from sarc.codegen.cuda_tables import LANE_BYTES
from sarc.codegen.cuda_values import COMBINE, Values, neutral
from sarc.codegen.divide import Scratch
from sarc.codegen.expression import C_TYPES
from sarc.codegen.value import linear
from sarc.codegen.views import Index
from sarc.ir.space import Rows

WARP = 32


@dataclass(frozen=True)
class Task:
    """Work of a loop over features.

    Attributes:
        dims: whose features.
        vector: V, neighbouring features of a lane.
        each: writes the statements of one feature.
        before, after: statements around the loop.
        strip, closed: statements at the start and the end of a strip, of every lane.
        inside, written: statements at the start and the end of a strip, of the lanes that hold features.
    """

    dims: tuple
    vector: int
    each: Callable[[Index], None]
    before: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class Lanes(Values):
    """Loops over the features of wide values.

    Attributes:
        most: largest V: elements of the widest type of the kernel in 128 bits.
        lanes: G where the kernel has wide values of edges; None where G follows the lengths of rows.
    """

    def __init__(self, body: Body, scratch: Scratch):
        super().__init__(body, scratch)
        self.most = self._most_neighbours()
        self.lanes = self._group()

    def _most_neighbours(self) -> int:
        types = [o.type for o in self.program.operands] + [self.program.results[k].type for k in self.body.results]
        wide = [t.dtype.itemsize for t in types if t.dtype.is_floating_point and math.prod(features(t.dims)) > 1]
        return max(1, min(8, LANE_BYTES // max(wide, default=4)))

    def _group(self) -> int | None:
        """The fewest lanes, a power of two, that hold the widest value of an edge in one strip; a warp at most."""
        wide = [n for n in self.body.nodes if self.body.is_wide(n)]
        if not wide:
            return None
        most = max(-(-width(n) // self.vector_of(n.meta["type"].dims)) for n in wide)
        return min(WARP, 1 << (most - 1).bit_length())

    def vector_of(self, dims: tuple) -> int:
        """Largest V that divides the innermost axis: neighbours are of one place on the axes before."""
        inner = next((d for d in reversed(dims) if not isinstance(d, Rows) and d != 1), 1)
        vector = self.most
        while inner % vector:
            vector //= 2
        return vector

    def strips(self, dims: tuple, vector: int) -> str:
        """Number of strips, as C++."""
        size = max(math.prod(features(dims)), 1)
        if self.lanes is None:
            return f"(({size} + G * {vector} - 1) / (G * {vector}))"
        return str(-(-size // (self.lanes * vector)))

    def entries(self, node: fx.Node) -> str:
        """Length of the array in which a lane holds its features of a value, as C++."""
        dims = node.meta["type"].dims
        return f"{self.strips(dims, self.vector_of(dims))} * {self.vector_of(dims)}"

    # --- the loop

    def spread(self, tasks: Sequence[Task]) -> None:
        """The loops of some tasks, in order; neighbours over the same features share one."""
        at = 0
        while at < len(tasks):
            end = at + 1
            while end < len(tasks) and (tasks[end].dims, tasks[end].vector) == (tasks[at].dims, tasks[at].vector):
                end += 1
            self._loop(tasks[at:end])
            at = end

    def _loop(self, tasks: Sequence[Task]) -> None:
        dims, vector = tasks[0].dims, tasks[0].vector
        size = max(math.prod(features(dims)), 1)
        for task in tasks:
            self.add(*task.before)
        with self.block(f"SARC_UNROLL for (int j = 0; j < {self.strips(dims, vector)}; ++j)"):
            self.add("const int f0 = " + ("j * G + lane" if vector == 1 else f"(j * G + lane) * {vector}") + ";")
            for task in tasks:
                self.add(*task.strip)
            whole = self.lanes is not None and size % (self.lanes * vector) == 0
            with self.block("" if whole else f"if (f0 < {size})", "strip"):
                for task in tasks:
                    self.add(*task.inside)
                at, inner = self._places(dims, size)
                with self.block(f"SARC_UNROLL for (int v = 0; v < {vector}; ++v)"):
                    self.add(*inner)
                    self.canonical, self.vector, self.span = linear(at, dims), vector, size
                    for task in tasks:
                        task.each(at)
                    self.canonical = ""
                for task in tasks:
                    self.add(*task.written)
            for task in tasks:
                self.add(*task.closed)
        for task in tasks:
            self.add(*task.after)

    def _places(self, dims: tuple, size: int) -> tuple[Index, list[str]]:
        """The index of a lane's feature; statements for the strip are added, those for a feature are given back."""
        wide = [(axis, d) for axis, d in enumerate(dims) if not isinstance(d, Rows) and d != 1]
        at = ["0"] * len(dims)
        if not wide:
            return at, []
        for axis, _ in wide:
            at[axis] = f"i{axis}"
        stride = size
        for axis, d in wide[:-1]:
            stride //= d
            quotient = f"f0 / {stride}"
            self.add(f"const int i{axis} = {quotient if axis == wide[0][0] else f'{quotient} % {d}'};")
        last, length = wide[-1]
        start = "f0" if len(wide) == 1 else f"f0 % {length}"
        return at, [f"const int i{last} = {start} + v;"]

    # --- folds over features, by all lanes of a group

    def fold_task(self, node: fx.Node) -> Task:
        """The fold of a wide value's features to a narrow one; the sum goes to the value's shared array."""
        source, reduced, fold = self.fold_parts(node)
        dims, out = source.dims, node.meta["type"].dims
        dtype, size = node.meta["type"].dtype, max(math.prod(features(out)), 1)
        kind, start, vector = C_TYPES[dtype], neutral(fold, dtype), self.vector_of(dims)
        part = self.new_name(node)
        wide = [(axis, d) for axis, d in enumerate(dims) if not isinstance(d, Rows) and d != 1]
        kept = [axis for axis, _ in wide if axis not in reduced]
        inner = math.prod(d for axis, d in wide if axis in reduced)
        leading = kept == [axis for axis, _ in wide][: len(kept)]
        over = f"sarc_{fold}_lanes<{{}}>({{}}, mask)"

        def one(at: Index) -> None:
            self.add(f"{part} = {COMBINE[fold].format(part, source.element(at))};")

        if size == 1:
            put = f"if (lane == 0) {self.slot(node, '0')} = {part};"
            after = (f"{part} = {over.format('G', part)};", put)
            return Task(dims, vector, one, before=(f"{kind} {part} = {start};",), after=after)
        lanes = self.lanes or 0
        segment = inner // vector
        if leading and lanes and segment & (segment - 1) == 0 and segment <= lanes and inner % vector == 0:
            # A result's features lie on neighbouring lanes of one strip.
            held = f"lane % {segment} == 0 && f0 < {math.prod(features(dims))}"
            closed = (
                f"{part} = {over.format(segment, part)};",
                f"if ({held}) {self.slot(node, f'(f0 / {inner})')} = {part};",
            )
            return Task(dims, vector, one, strip=(f"{kind} {part} = {start};",), closed=closed)
        keep = len(out) == len(dims)

        def several(at: Index) -> None:
            place = ["0" if axis in reduced else at[axis] for axis in range(len(dims)) if keep or axis not in reduced]
            if leading and lanes and inner % (lanes * vector) == 0:  # a strip belongs to one result
                cell = f"{part}[j * {lanes * vector} / {inner}]"
                self.add(f"{cell} = {COMBINE[fold].format(cell, source.element(at))};")
                return
            entry = source.element(at)
            self.add(f"const int {part}_at = {linear(place, out)};")
            with self.block(f"SARC_UNROLL for (int r = 0; r < {size}; ++r)"):
                cell = f"{part}[r]"
                self.add(f"{cell} = r == {part}_at ? {COMBINE[fold].format(cell, entry)} : {cell};")

        before = (f"{kind} {part}[{size}];", f"SARC_UNROLL for (int r = 0; r < {size}; ++r) {part}[r] = {start};")
        put = f"if (lane == 0) {self.slot(node, 'r')} = {part}[r];"
        done: tuple[str, ...] = (
            f"SARC_UNROLL for (int r = 0; r < {size}; ++r) {{",
            f"{part}[r] = {over.format('G', f'{part}[r]')};",
            put,
            "}",
        )
        return Task(dims, vector, several, before=before, after=done)

    def shared_task(self, node: fx.Node, vector: int | None = None) -> Task:
        """The computation of a stored value, a feature a lane."""
        value, dims = self.computed(node), node.meta["type"].dims

        def each(at: Index) -> None:
            entry = value.element(at)
            self.add(f"{self.slot(node, linear(at, dims))} = {entry};")

        return Task(dims, self.vector_of(dims) if vector is None else vector, each)
