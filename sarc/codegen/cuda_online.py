"""Online softmax in CUDA: a maximum and the sums of exponentials shifted by it, in one sweep over a row's blocks.

A block's scores are computed, and the group agrees on the maximum so far. Where it has grown, sums so far are scaled;
then the block's exponentials join them. The groups of a hub agree on the maximum of all before they merge their sums.
Which sweeps may become one is decided in `online.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.fx as fx

from sarc.codegen.body import NARROW, Body, features, width
from sarc.codegen.cuda_folds import MEET
from sarc.codegen.cuda_lanes import Task
from sarc.codegen.cuda_sweeps import Sweeps
from sarc.codegen.cuda_values import neutral
from sarc.codegen.divide import Scratch
from sarc.codegen.expression import C_TYPES
from sarc.codegen.online import Online, find_online
from sarc.codegen.operators import RULES
from sarc.codegen.value import VIEWS, Value, linear
from sarc.codegen.views import Index

Place = Callable[[Index], str]


class OnlineSweeps(Sweeps):
    """Sweeps of a row, in pairs where that can be.

    Attributes:
        online: the pairs, by their first sweeps.
    """

    def __init__(self, body: Body, scratch: Scratch):
        super().__init__(body, scratch)
        self.online = find_online(body)
        shifts = [shift for pair in self.online.values() for shift in pair.shifts]
        self._names = {shift: f"{self._plain_name(shift)}_{k}" for k, shift in enumerate(shifts)}
        self._running: set[fx.Node] = set()  # shifts that are read as they are so far

    def shift_arrays(self) -> list[tuple[fx.Node, str]]:
        """The shared arrays of a group: shifts, and what sums are multiplied by when they grow."""
        return [(shift, f"{name}_{what}") for shift, name in self._names.items() for what in ("shift", "scale")]

    def sweeps(self, number: int) -> None:
        """All sweeps of a row; its folds are finished as soon as they can be."""
        sweep = 0
        while sweep < number:
            self.row_values(sweep)
            if sweep in self.online:
                self._both(self.online[sweep])
                sweep += 1
            else:
                self.sweep(sweep)
            self.finish_folds(sweep)
            sweep += 1

    def _both(self, pair: Online) -> None:
        """The blocks of a row, once for two sweeps, whose second one's folds are left as they are for this group."""
        first, second = pair.sweep, pair.sweep + 1
        folds, stores = self.folds_of(first), self.stores_of(first)
        folds_then, stores_then = self.folds_of(second), self.stores_of(second)
        arrays = self.arrays_of((first, second), folds + folds_then, stores + stores_then)
        self._start(pair)
        with self.over_blocks():
            self.phases(first, [n for n in arrays if self.body.passes[n] <= first], folds, stores)
            self._agree(pair)
            self._grow(pair, "sarc_rescale({}, {})")
            self._running = set(pair.shifts)
            self._readers.clear()
            self.phases(second, [n for n in arrays if self.body.passes[n] == second], folds_then, stores_then)
            self._running = set()
            self._readers.clear()
        self.finish_folds(first)
        self.row_values(second)
        self._grow(pair, "sarc_last_rescale({}, {}, first < last)")

    def _start(self, pair: Online) -> None:
        """Shifts of no block yet."""
        for shift in pair.shifts:
            to, nothing = self._slot(shift, "shift"), neutral("amax", shift.meta["type"].dtype)

            def each(at: Index, to: Place = to, nothing: str = nothing) -> None:
                self.add(f"{to(at)} = {nothing};")

            self._over(shift, each)
        self.add(MEET)

    def _agree(self, pair: Online) -> None:
        """The maxima so far, of all lanes of the group, where readers of the row's maxima find them."""
        for top in pair.tops:
            name, every = self.fold_name(top), f"SARC_UNROLL for (int i = 0; i < {self.array_size(top)}; ++i)"
            self.add(f"{every} {name}[i] = sarc_amax_lanes<G>({name}[i], mask);")
            with self.block("if (lane == 0)"):
                self.add(f"{every} s.{self.stored[top]}[i] = {name}[i];")
            self.mark(top)
        self.add(MEET)

    def _grow(self, pair: Online, scale: str) -> None:
        """The shifts follow the maxima, and the sums so far are scaled."""
        for shift in pair.shifts:
            now, old, by = self.value(shift.args[0]), self._slot(shift, "shift"), self._slot(shift, "scale")
            kind = C_TYPES[shift.meta["type"].dtype]

            def each(at: Index, now: Value = now, old: Place = old, by: Place = by, kind: str = kind) -> None:
                self.add(f"const {kind} now = {now.element(at)};")
                self.add(f"{by(at)} = {scale.format(old(at), 'now')};", f"{old(at)} = now;")

            self._over(shift, each)
        self.add(MEET)
        for node in pair.folds:
            self._scale(pair, node)

    def _scale(self, pair: Online, node: fx.Node) -> None:
        """A group's share of one of the row's sums, times what its exponentials grow by."""
        root, name = node.args[0], self.fold_name(node)
        factor, dims = self._factor(pair, root), root.meta["type"].dims
        vector = self.vector_of(dims)

        def narrow(at: Index) -> None:
            self.add(f"{name}[{linear(at, dims)}] *= {factor.element(at)};")

        def wide(at: Index) -> None:
            self.add(f"{name}[j * {vector} + v] *= {factor.element(at)};")

        if width(root) <= NARROW:
            self.over_features(dims, narrow)
        else:
            self.spread([Task(dims, vector, wide)])

    def _over(self, shift: fx.Node, each: Callable[[Index], None]) -> None:
        """A statement for each entry of a shift, an entry a lane."""
        with self.block():
            self.spread([Task(shift.meta["type"].dims, 1, each)])

    def _slot(self, shift: fx.Node, what: str) -> Place:
        dims = shift.meta["type"].dims
        return lambda at: f"s.{self._names[shift]}_{what}[{linear(at, dims)}]"

    def _factor(self, pair: Online, node: fx.Node) -> Value:
        """By what an entry of a value grows with the shift of the exponential in it."""
        dims = node.meta["type"].dims
        if node in pair.exponentials:
            shift = pair.exponentials[node]
            return _broadcast(self._slot(shift, "scale"), shift.meta["type"].dims, dims)
        (source,) = [n for n in node.all_input_nodes if n in pair.scaled]
        inner = self._factor(pair, source)
        if node.target not in VIEWS:
            return _broadcast(inner.element, inner.dims, dims)
        self._readers[source] = inner
        try:
            return RULES[node.target](self, node)  # type: ignore[arg-type]
        finally:
            self._readers.clear()

    def computed(self, node: fx.Node) -> Value:
        if node not in self._running:
            return super().computed(node)
        slot = self._slot(node, "shift")
        return Value(lambda at: f"sarc_shift({slot(at)})", node.meta["type"].dims)

    def shift_sizes(self) -> list[tuple[int, int]]:
        """Entries and bytes an entry of the arrays of a group."""
        arrays = [shift.meta["type"] for shift, _ in self.shift_arrays()]
        return [(max(math.prod(features(t.dims)), 1), max(t.dtype.itemsize, 4)) for t in arrays]


def _broadcast(element: Place, dims: tuple, out: tuple) -> Value:
    shift = len(out) - len(dims)
    return Value(lambda at: element(["0" if d == 1 else at[axis + shift] for axis, d in enumerate(dims)]), out)
