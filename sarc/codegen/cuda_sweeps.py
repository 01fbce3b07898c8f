"""Sweeps of a CUDA kernel: a row's values, and the blocks of its edges, phase by phase.

What a body computes in which sweep and phase is decided in `body.py`, as for C++. Narrow values of a block are computed
an edge a lane, wide ones edge by edge with the lanes over features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch.fx as fx

from sarc.codegen.body import NARROW, Body, width
from sarc.codegen.cuda_folds import MEET, Folds
from sarc.codegen.cuda_lanes import Task
from sarc.codegen.cuda_values import FEATURE_FOLDS
from sarc.codegen.divide import Scratch
from sarc.codegen.value import linear
from sarc.codegen.views import Index
from sarc.ir.edge_program import fold_to_rows

Fold = tuple[fx.Node, str, str]  # value, accumulator, kind


class Sweeps(Folds):
    """The visits of a row's edges.

    Attributes:
        order: the column whose rows are visited.
        edge_arrays, row_arrays: values in shared memory, of a block's edges and of the row.
    """

    def __init__(self, body: Body, scratch: Scratch):
        super().__init__(body, scratch)
        self.order = body.order
        self.edge_arrays = [n for n in self.stored if n not in body.in_row]
        self.row_arrays = [n for n in self.stored if n in body.in_row]

    def row_values(self, sweep: int) -> None:
        """What is computed once a row, as soon as the folds of the sweeps before are there."""
        for node in self.row_arrays:
            if node.target is fold_to_rows or self.body.passes[node] != sweep:
                continue
            with self.block():
                self.spread([self.fold_task(node) if self.is_cooperative(node) else self.shared_task(node)])
            self.add(MEET)
            self.mark(node)

    def sweep(self, sweep: int) -> None:
        """The blocks of a row, once; of an earlier sweep's values, those that only a row of one block still has."""
        folds, stores = self.folds_of(sweep), self.stores_of(sweep)
        arrays = self.arrays_of((sweep,), folds, stores)
        if folds or stores:
            with self.over_blocks():
                self.phases(sweep, arrays, folds, stores)

    def stores_of(self, sweep: int) -> list[int]:
        """The edge rows that a sweep stores."""
        stored = [k for k in self.results if self.program.results[k].kind == "store"]
        return [k for k in stored if self.body.passes[self.body.roots[k]] == sweep]

    def arrays_of(self, sweeps: tuple[int, ...], folds: list[Fold], stores: list[int]) -> list[fx.Node]:
        """Shared arrays that sweeps fill: their own, and what they read of earlier ones."""
        again = self._needed([root for root, _, _ in folds] + [self.body.roots[k] for k in stores])
        return [n for n in self.edge_arrays if self.body.passes[n] in sweeps or n in again]

    @contextmanager
    def over_blocks(self) -> Iterator[None]:
        """A loop over the blocks of a row that a group visits."""
        step = "(HUB ? GROUPS : 1) * EB"
        with self.block(f"for (int64_t k0 = first + (HUB ? group * EB : 0); k0 < last; k0 += {step})"):
            self.add("const int here = last - k0 < EB ? int(last - k0) : EB;")
            yield
            if self.edge_arrays and self.scope.lines[-1] != MEET:
                self.add(MEET)

    def phases(self, sweep: int, arrays: Sequence[fx.Node], folds: list[Fold], stores: list[int]) -> None:
        """A block's phases: arrays of earlier sweeps where the row has several blocks, and what is new."""
        body = self.body
        ends = [root for root, _, _ in folds] + [body.roots[k] for k in stores]
        last = max([body.phases[n] for n in arrays] + [body.fold_phase(r) for r in ends], default=-1)
        for phase in range(last + 1):
            now = [n for n in arrays if body.phases[n] == phase]
            with self.block("if (many)"):
                self._phase([n for n in now if body.passes[n] != sweep], [], [])
            self._phase(
                [n for n in now if body.passes[n] == sweep],
                [f for f in folds if body.fold_phase(f[0]) == phase],
                [k for k in stores if body.fold_phase(body.roots[k]) == phase],
            )

    def _needed(self, ends: list[fx.Node]) -> set[fx.Node]:
        """Shared arrays of edges that values are made of."""
        found: set[fx.Node] = set()
        seen: set[fx.Node] = set()
        stack = list(ends)
        while stack:
            node = stack.pop()
            if node in seen or node in self.body.in_row:
                continue
            seen.add(node)
            if node in self.stored:
                found.add(node)
            stack.extend(node.all_input_nodes)
        return found

    def _phase(self, nodes: list[fx.Node], folds: list[Fold], stores: list[int]) -> None:
        """A block's values of one phase: those an edge a lane, then those with the lanes over features."""
        body = self.body
        narrow = [n for n in nodes if not body.sinks(n)]
        self._over_edges(
            narrow, [f for f in folds if width(f[0]) <= NARROW], [k for k in stores if width(body.roots[k]) <= NARROW]
        )
        if narrow:
            self.add(MEET)
        sinks = [n for n in nodes if body.sinks(n)]
        self._edge_by_edge(
            sinks, [f for f in folds if width(f[0]) > NARROW], [k for k in stores if width(body.roots[k]) > NARROW]
        )

    def _over_edges(self, nodes: list[fx.Node], folds: list, stores: list[int]) -> None:
        """Narrow values of a block, an edge a lane; what is folded and stored of them."""
        self.unmark(nodes)
        work: list[tuple[tuple, Callable[[Index], None]]] = []
        work += [(n.meta["type"].dims, partial(self._fill, n)) for n in nodes]
        work += [(r.meta["type"].dims, partial(self.fold_entry, r, name, fold)) for r, name, fold in folds]
        work += [(self.body.roots[k].meta["type"].dims, partial(self.store_entry, k)) for k in stores]
        with self.block("for (int q = lane; q < here; q += G)", "edge"):
            with self.behind_pointers() as lines:
                for dims, group in itertools.groupby(work, key=lambda each: each[0]):
                    self.over_features(dims, partial(_all, [one for _, one in group]))
            if lines:
                self.add("const int64_t k = k0 + q;", "(void)k;", *lines)

    def _fill(self, node: fx.Node, at: Index) -> None:
        entry = self.computed(node).element(at)
        self.mark(node)
        self.add(f"{self.slot(node, linear(at, node.meta['type'].dims))} = {entry};")

    def _edge_by_edge(self, sinks: list[fx.Node], folds: list, stores: list[int]) -> None:
        """Wide values of a block: the lanes over the features of one edge after another."""
        if not (sinks or folds or stores):
            return
        self.unmark(sinks)
        with self.block("SARC_UNROLL_EDGES for (int q = 0; q < here; ++q)", "edge"):
            with self.behind_pointers() as lines:
                tasks = [self._sink_task(n) for n in sinks]
                tasks += [self.accumulate_task(*f) for f in folds]
                tasks += [self.put_task(k, self.scratch.row_of(-1 - k)) for k in stores]
                self.spread(tasks)
            self.add("const int64_t k = k0 + q;", "(void)k;", *lines)
        for node in sinks:
            self.mark(node)
        if sinks:
            self.add(MEET)

    def _sink_task(self, node: fx.Node) -> Task:
        if node.target in FEATURE_FOLDS and self.body.is_wide(node.args[0]):
            return self.fold_task(node)
        return self.shared_task(node, vector=1)


def _all(each: Sequence[Callable[[Index], None]], at: Index) -> None:
    for one in each:
        one(at)
