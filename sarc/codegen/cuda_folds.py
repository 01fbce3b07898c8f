"""Folds of a CUDA kernel: registers while a row is visited, merged between the groups of a hub, and written.

A wide fold's features lie over the lanes of a group, a narrow one is whole in each lane.
"""

from __future__ import annotations

import torch.fx as fx

from sarc.codegen.body import NARROW, Body, width
from sarc.codegen.cuda_lanes import Lanes, Task
from sarc.codegen.cuda_values import COMBINE, neutral
from sarc.codegen.divide import Scratch
from sarc.codegen.expression import C_TYPES, stored_type
from sarc.codegen.value import linear
from sarc.codegen.views import Index
from sarc.ir.edge_program import fold_to_rows

MEET = "sarc_meet(mask);"


class Folds(Lanes):
    """What a kernel folds and writes.

    Args:
        body: what is computed when.
        scratch: operands and results that stages leave each other (see `sarc.codegen.divide`).
    """

    def __init__(self, body: Body, scratch: Scratch):
        super().__init__(body, scratch)
        self.results = body.results
        self.own = [n for n in body.nodes if n.target is fold_to_rows]

    # --- folds

    def folds_of(self, sweep: int) -> list[tuple[fx.Node, str, str]]:
        """(value, accumulator, fold) of everything folded in a sweep: results and the row's own folds."""
        found = []
        for k in self.results:
            root, result = self.body.roots[k], self.program.results[k]
            if result.kind in ("reduce", "contract") and self.body.passes[root] == sweep:
                found.append((root, f"a{k}", result.fold if result.kind == "reduce" else "sum"))
        for node in self.own:
            if self.body.passes[node] == sweep + 1:
                found.append((node.args[0], self.fold_name(node), node.args[3]))
        return found

    def fold_name(self, node: fx.Node) -> str:
        return f"{self.stored[node]}_fold"

    def accumulator(self, root: fx.Node, name: str, fold: str) -> None:
        """Registers of a fold: a wide one's features over the lanes, a narrow one whole in each lane."""
        type_ = root.meta["type"]
        length = self.entries(root) if width(root) > NARROW else str(max(width(root), 1))
        start = neutral(fold, type_.dtype)
        self.add(f"{C_TYPES[type_.dtype]} {name}[{length}];")
        self.add(f"SARC_UNROLL for (int i = 0; i < {length}; ++i) {name}[i] = {start};")

    def fold_entry(self, root: fx.Node, name: str, fold: str, at: Index) -> None:
        entry, place = self.value(root).element(at), f"{name}[{linear(at, root.meta['type'].dims)}]"
        self.add(f"{place} = {COMBINE[fold].format(place, entry)};")

    def accumulate_task(self, root: fx.Node, name: str, fold: str) -> Task:
        value, dims = self.value(root), root.meta["type"].dims
        vector = self.vector_of(dims)
        place = f"{name}[j * {vector} + v]"

        def one(at: Index) -> None:
            entry = value.element(at)
            self.add(f"{place} = {COMBINE[fold].format(place, entry)};")

        return Task(dims, vector, one)

    # --- what is written

    def store_entry(self, k: int, at: Index) -> None:
        root, where = self.body.roots[k], self.scratch.row_of(-1 - k)
        entry, offset = self.value(root).element(at), linear(at, root.meta["type"].dims)
        self.add(f"sarc_put(y{k}[int64_t({where}) * {self.size_of(k)} + {offset}], {entry});")

    def put_task(self, k: int, where: str) -> Task:
        """The features of a value as row `where` of a result."""
        root = self.body.roots[k]
        value, dims, kind = self.value(root), root.meta["type"].dims, stored_type(self.program.results[k].type.dtype)
        vector = self.vector_of(dims)

        def one(at: Index) -> None:
            entry = value.element(at)
            self.add(f"sarc_put(y{k}_strip.at[v], {entry});")

        put = f"sarc_write<{vector}>(y{k} + int64_t({where}) * {self.size_of(k)} + f0, y{k}_strip);"
        return Task(dims, vector, one, inside=(f"sarc_strip<{kind}, {vector}> y{k}_strip;",), written=(put,))

    def finish_folds(self, sweep: int) -> None:
        """Folds of a sweep that ends: results to memory, the row's own to where its values are read."""
        results = [(k, n) for k, n in self.reduced() if self.body.passes[self.body.roots[k]] == sweep]
        own = [n for n in self.own if self.body.passes[n] == sweep + 1]
        if not results and not own:
            return
        everything = [(self.body.roots[k], n, self.program.results[k].fold) for k, n in results]
        everything += [(n.args[0], self.fold_name(n), n.args[3]) for n in own]
        for root, name, fold in everything:
            if width(root) <= NARROW:
                size = max(width(root), 1)
                self.add(
                    f"SARC_UNROLL for (int i = 0; i < {size}; ++i) {name}[i] = sarc_{fold}_lanes<G>({name}[i], mask);"
                )
        with self.block("if constexpr (HUB)"):
            for root, name, _ in everything:
                self._deposit(root, name, f"merged[group].{self._merged_name(name)}")
            self.add("__syncthreads();")
            for k, name in results:
                self._merge(k, name)
            for node in own:
                name, kind, size = self.stored[node], C_TYPES[node.meta["type"].dtype], self.array_size(node)
                with self.block(f"for (int i = threadIdx.x; i < {size}; i += THREADS)"):
                    self.add(f"{kind} x = merged[0].{name}[i];")
                    update = COMBINE[node.args[3]].format("x", f"merged[g].{name}[i]")
                    self.add(f"for (int g = 1; g < GROUPS; ++g) x = {update};", f"merged[GROUPS].{name}[i] = x;")
            if own:
                self.add("__syncthreads();")
            for node in own:
                name = self.stored[node]
                every = f"for (int i = lane; i < {self.array_size(node)}; i += G)"
                self.add(f"{every} s.{name}[i] = merged[GROUPS].{name}[i];")
        self.add("else {")
        for k, name in results:
            self._write(k, name)
        for node in own:
            self._deposit(node.args[0], self.fold_name(node), f"s.{self.stored[node]}")
        self.add("}")
        for node in own:
            self.mark(node)
        if own:
            self.add(MEET)

    @staticmethod
    def _merged_name(name: str) -> str:
        return name.removesuffix("_fold")

    def _deposit(self, root: fx.Node, name: str, to: str) -> None:
        """A fold from registers to shared memory."""
        if width(root) <= NARROW:
            size = max(width(root), 1)
            self.add("if (lane == 0) {", f"SARC_UNROLL for (int i = 0; i < {size}; ++i) {to}[i] = {name}[i];", "}")
            return
        dims = root.meta["type"].dims
        vector = self.vector_of(dims)
        each = lambda at: self.add(f"{to}[f0 + v] = {name}[j * {vector} + v];")  # noqa: E731
        self.spread([Task(dims, vector, each)])

    def _into(self, k: int) -> list[str]:
        """Where a row's result goes: its row, or the place of a piece of it."""
        kind, size = stored_type(self.program.results[k].type.dtype), self.size_of(k)
        where = f"slot < 0 ? y{k} + int64_t(target) * {size} : part{k} + int64_t(slot) * {size}"
        return [f"{kind}* __restrict__ y{k}_at = {where};"]

    def _merge(self, k: int, name: str) -> None:
        """A hub's result from the folds of the groups, in their order."""
        fold, kind = self.program.results[k].fold, C_TYPES[self.program.results[k].type.dtype]
        with self.block(f"for (int i = threadIdx.x; i < {self.size_of(k)}; i += THREADS)"):
            self.add(*self._into(k), f"{kind} x = merged[0].{name}[i];")
            self.add(f"for (int g = 1; g < GROUPS; ++g) x = {COMBINE[fold].format('x', f'merged[g].{name}[i]')};")
            self.add(f"sarc_put(y{k}_at[i], start ? x : {COMBINE[fold].format(f'sarc_load(y{k}_at[i])', 'x')});")

    def _write(self, k: int, name: str) -> None:
        """A row's result from registers."""
        fold, root = self.program.results[k].fold, self.body.roots[k]
        kind, old = stored_type(self.program.results[k].type.dtype), f"sarc_load(y{k}_strip.at[v])"
        with self.block():
            self.add(*self._into(k))
            if width(root) <= NARROW:
                old, size = f"sarc_load(y{k}_at[i])", self.size_of(k)
                update = f"start ? {name}[i] : {COMBINE[fold].format(old, f'{name}[i]')}"
                self.add("if (lane == 0) {")
                self.add(f"SARC_UNROLL for (int i = 0; i < {size}; ++i) sarc_put(y{k}_at[i], {update});", "}")
                return
            dims = root.meta["type"].dims
            vector = self.vector_of(dims)
            entry = f"{name}[j * {vector} + v]"
            update = f"start ? {entry} : {COMBINE[fold].format(old, entry)}"
            inside = (
                f"sarc_strip<{kind}, {vector}> y{k}_strip;",
                f"if (!start) y{k}_strip = sarc_read<{vector}>(y{k}_at + f0);",
            )
            written = (f"sarc_write<{vector}>(y{k}_at + f0, y{k}_strip);",)
            each = lambda at: self.add(f"sarc_put(y{k}_strip.at[v], {update});")  # noqa: E731
            self.spread([Task(dims, vector, each, inside=inside, written=written)])

    def write_share(self, k: int) -> None:
        """A group's share of a contraction."""
        root, size, name = self.body.roots[k], self.size_of(k), f"a{k}"
        where = f"y{k} + (share + int64_t(blockIdx.x) * GROUPS + group) * {size}"
        if width(root) <= NARROW:
            self.add(
                f"SARC_UNROLL for (int i = 0; i < {size}; ++i) {name}[i] = sarc_sum_lanes<G>({name}[i], mask);",
                "if (lane == 0) {",
                f"SARC_UNROLL for (int i = 0; i < {size}; ++i) ({where})[i] = {name}[i];",
                "}",
            )
            return
        dims = root.meta["type"].dims
        vector = self.vector_of(dims)
        each = lambda at: self.add(f"({where})[f0 + v] = {name}[j * {vector} + v];")  # noqa: E731
        self.spread([Task(dims, vector, each)])

    def reduced(self) -> list[tuple[int, str]]:
        return [(k, f"a{k}") for k in self.results if self.program.results[k].kind == "reduce"]

    def size_of(self, k: int) -> int:
        return max(width(self.body.roots[k]), 1)
