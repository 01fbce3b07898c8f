"""CUDA emitter: an EdgeProgram as a kernel in which groups of lanes visit rows, blocks of their edges, and features.

A group of G lanes, at most a warp, visits a row. Its edges come in blocks of EB: narrow values are computed an edge a
lane, wide ones edge by edge with the lanes over features. Folds stay in registers until the row ends. Rows come ordered
by their lengths: a long row is visited by all groups of a thread block, which merge their folds in order, and where no
value of an edge is wide, short rows are visited by small groups. No two groups write to one place, so results do not
depend on timing. What a body computes when is decided in `body.py`, as for C++.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch.fx as fx

from sarc.codegen.body import NARROW, Body, features, width
from sarc.codegen.cuda_lanes import WARP, Lanes, Task
from sarc.codegen.cuda_prelude import FUNCTIONS, RUNTIME
from sarc.codegen.cuda_values import COMBINE, FEATURE_FOLDS, neutral
from sarc.codegen.expression import C_TYPES, stored_type
from sarc.codegen.loops import indent
from sarc.codegen.value import linear
from sarc.codegen.views import Index, NoKernel
from sarc.ir.edge_program import EdgeProgram, fold_to_rows

SHARED_BYTES = 48 << 10  # of a block, without asking for more
COMFORTABLE_BYTES = 16 << 10  # leaves room for a dozen blocks on a multiprocessor
SHORT_GROUP, SHORT_BLOCK = 4, 8
NUMBERS = ("hubs", "rows_long", "rows_short", "hubs_each", "long_each", "short_each", "seed", "step", "fresh", "device")
"""What a launcher reads from its int64 argument, in order."""


@dataclass(frozen=True)
class Shape:
    """How a kind of rows is visited: lanes of a group, and edges of a block."""

    lanes: int
    edges: int


@dataclass(frozen=True)
class CudaSource:
    """One kernel: a traversal of a block of edges.

    Attributes:
        name: symbol of the launcher.
        kernel: the kernel and its launcher, for any target.
        order: index of the column that groups the edges, or None for edge order.
        results: indices of the program's results that this kernel makes.
        draws: whether it reads row keys.
        exact: whether products and sums must not be contracted.
        threads: of a block.
        long, short: how long and short rows are visited; `short` is None where all rows but hubs are long ones.
        widest: features of its widest value of an edge.
    """

    name: str
    kernel: str
    order: int | None
    results: tuple[int, ...]
    draws: bool
    exact: bool
    threads: int
    long: Shape
    short: Shape | None
    widest: int

    @property
    def has_hubs(self) -> bool:
        """Whether several groups of a block may visit one row."""
        return self.order is not None and self.threads > self.long.lanes

    @property
    def text(self) -> str:
        """The translation unit for nvcc."""
        return RUNTIME + FUNCTIONS + self.kernel


def emit_cuda(
    program: EdgeProgram, order: int | None, results: tuple[int, ...], scratch: frozenset[int] = frozenset()
) -> CudaSource:
    """The kernel of some results of a program, in the order of one column (see `sarc.codegen.cpp.emit`).

    Raises:
        NoKernel: an operator of the body has no scalar form, or the folds of a row do not fit shared memory.
    """
    return _Kernel(Body(program, order, results), scratch).run()


class _Kernel(Lanes):
    """One kernel: the body between its loops and folds."""

    def __init__(self, body: Body, scratch: frozenset[int]):
        super().__init__(body, scratch)
        self.order, self.results = body.order, body.results
        self.own = [n for n in body.nodes if n.target is fold_to_rows]
        self.edge_arrays = [n for n in self.stored if n not in body.in_row]
        self.row_arrays = [n for n in self.stored if n in body.in_row]

    def run(self) -> CudaSource:
        exact = self.body.compares()
        threads, long, short = self._sizes()
        with self.apart() as lines:
            self._row()
        widths = [width(n) for n in self.body.nodes if n not in self.body.in_row]
        about = ", ".join(filter(None, [f"{self.program.name} over {self.program.space}", self.program.loc]))
        kernel = _UNIT.format(
            about=about,
            threads=threads,
            shared=indent(self._shared(), 0),
            parameters=",\n    ".join(f"{kind} {name}" for kind, name in self._parameters()),
            body=indent(lines, 1),
            arguments=indent(self._unpack(), 1),
            launches=indent(self._launches(threads, long, short), 1),
        )
        return CudaSource(
            "sarc_launch", kernel, self.order, self.results, self.draws, exact, threads, long, short,
            max(widths, default=1),
        )  # fmt: skip

    # --- sizes

    def _sizes(self) -> tuple[int, Shape, Shape | None]:
        """Threads of a block, and the shape of long and short rows' visits: what shared memory holds."""
        lanes = self.lanes or WARP
        for most in (COMFORTABLE_BYTES, SHARED_BYTES):
            for threads in (128, 64, 32):
                for edges in (32, 16, 8):
                    if self._shared_bytes(threads, lanes, edges) <= most:
                        fits = self._shared_bytes(threads, SHORT_GROUP, SHORT_BLOCK, hub=False) <= most
                        few = self.lanes is None and self.order is not None and fits
                        short = Shape(SHORT_GROUP, SHORT_BLOCK) if few else None
                        return threads, Shape(lanes, edges), short
        raise NoKernel("the values of a row do not fit the shared memory of a block of threads")

    def _shared_bytes(self, threads: int, lanes: int, edges: int, hub: bool = True) -> int:
        nbytes = {n: self.array_size(n) * max(n.meta["type"].dtype.itemsize, 4) for n in self.stored}
        one = sum(nbytes[n] * (1 if n in self.body.in_row else edges + 1) for n in nbytes)
        merged = sum(size * 8 if dtype_size == 8 else size * 4 for size, dtype_size in self._merged_sizes())
        groups = threads // lanes
        return groups * one + (merged * (groups + 1) if hub and self.order is not None and groups > 1 else 0)

    def _merged_sizes(self) -> list[tuple[int, int]]:
        reduced = [self.program.results[k].type for k in self.results if self.program.results[k].kind == "reduce"]
        types = [*reduced, *(n.meta["type"] for n in self.own)]
        return [(max(math.prod(features(t.dims)), 1), t.dtype.itemsize) for t in types]

    # --- declarations

    def _shared(self) -> list[str]:
        """What a group keeps in shared memory, and what the groups of a hub's block tell each other."""

        def field(node: fx.Node, length: str) -> str:
            loc = f"  // {node.meta['loc']}" if node.meta.get("loc") else ""
            return f"{C_TYPES[node.meta['type'].dtype]} {self.stored[node]}[{length}];{loc}"

        lines = ["template <int EB> struct Group {"]
        lines += [field(n, f"{self.array_size(n)} * (EB + 1)") for n in self.edge_arrays]
        lines += [field(n, str(self.array_size(n))) for n in self.row_arrays]
        lines += [] if self.stored else ["char nothing;"]
        lines += ["};", "struct Folds {"]
        folds = [(C_TYPES[self.body.roots[k].meta["type"].dtype], name, self._size(k)) for k, name in self._reduced()]
        folds += [(C_TYPES[n.meta["type"].dtype], self.stored[n], self.array_size(n)) for n in self.own]
        lines += [f"{kind} {name}[{size}];" for kind, name, size in folds] or ["char nothing;"]
        return [*lines, "};"]

    def _reduced(self) -> list[tuple[int, str]]:
        return [(k, f"a{k}") for k in self.results if self.program.results[k].kind == "reduce"]

    def _size(self, k: int) -> int:
        return max(width(self.body.roots[k]), 1)

    def _tables(self) -> list[tuple[str, str]]:
        """(C++ type, name) of each array in memory, in the order in which `CudaKernel` passes them."""
        found = [
            ("const int32_t*", "rows"), ("const int64_t*", "starts"), ("const int32_t*", "targets"),
            ("const int32_t*", "slots"), ("const int32_t*", "edges"), ("const int32_t*", "positions"),
            ("const int64_t*", "keys"),
        ]  # fmt: skip
        columns = sorted(self.program.columns_used("gather") | self.program.columns_used("reduce"))
        found += [("const int32_t*", f"c{c}") for c in columns]
        for k, operand in enumerate(self.program.operands):
            kind = stored_type(operand.type.dtype) if operand.type.dtype in C_TYPES else "char"
            found.append((f"const {kind}*", f"x{k}"))
        for k in self.results:
            result = self.program.results[k]
            kind = C_TYPES[result.type.dtype] if result.kind == "contract" else stored_type(result.type.dtype)
            found += [(f"{kind}*", f"y{k}"), (f"{kind}*", f"part{k}")]
        return found

    def _parameters(self) -> list[tuple[str, str]]:
        tables = [(f"{kind} __restrict__", name) for kind, name in self._tables()]
        numbers = ("seed", "step", "fresh", "begin", "count", "each", "share")
        return tables + [("const int64_t", name) for name in numbers]

    def _unpack(self) -> list[str]:
        lines = [f"const int64_t {name} = n[{at}];" for at, name in enumerate(NUMBERS)]
        lines += ["if (const int status = sarc_use_device(device)) return status;"]
        return lines + [f"auto {name} = ({kind})p[{at}];" for at, (kind, name) in enumerate(self._tables())]

    def _launches(self, threads: int, long: Shape, short: Shape | None) -> list[str]:
        """Hubs, long rows, short rows; the number of a share goes on from one to the next."""
        names = ", ".join(name for _, name in self._tables())
        lines = ["int64_t share = 0;"]

        def launch(shape: Shape, hub: bool, begin: str, count: str, each: str) -> None:
            groups = "1" if hub else f"(THREADS / {shape.lanes})"
            kernel = f"(sarc_rows<{shape.lanes}, {shape.edges}, {'true' if hub else 'false'}>)"
            lines.extend([
                f"if ({count} > 0) {{",
                f"const int64_t blocks = sarc_blocks({count}, {each} * {groups});",
                f"SARC_LAUNCH({kernel}, blocks, THREADS, stream, {names},",
                f"    seed, step, fresh, {begin}, {count}, {each}, share);",
                f"share += blocks * (THREADS / {shape.lanes});",
                "}",
            ])  # fmt: skip

        if self.order is not None and threads > long.lanes:
            launch(long, True, "int64_t(0)", "hubs", "hubs_each")
        launch(long, False, "hubs", "rows_long", "long_each")
        if short is not None:
            launch(short, False, "hubs + rows_long", "rows_short", "short_each")
        return [*lines, "return sarc_status();"]

    # --- the kernel

    def _row(self) -> None:
        """The body of the kernel: a group's rows, one after another, or its stretch of edges."""
        sweeps = max([self.body.passes[n] for n in self.body.nodes] + [0]) + 1
        contracted = [k for k in self.results if self.program.results[k].kind == "contract"]
        self.add(*_HEAD)
        for k in contracted:
            self._accumulator(self.body.roots[k], f"a{k}", "sum")
        if self.order is None:
            self.add("const int64_t first = worker * each, last = first + each < count ? first + each : count;")
            self._row_values(0)
            self._sweep(0)
        else:
            self.add("const int64_t stop = (worker + 1) * each < count ? (worker + 1) * each : count;")
            with self.block("for (int64_t at = worker * each; at < stop; ++at)"):
                self._visit(sweeps)
        for k in contracted:
            self._write_share(k)

    def _visit(self, sweeps: int) -> None:
        """One row."""
        self.add(
            "const int32_t r = rows[begin + at], target = targets[r], slot = slots[r];",
            "const int64_t first = starts[r], last = starts[r + 1];",
            "const bool many = last - first > (HUB ? GROUPS : 1) * EB, start = fresh || slot >= 0;",
            "(void)many; (void)start; (void)target;",
        )
        for k, operand in enumerate(self.program.operands):
            node = self.body.placeholders[k]
            if operand.axis is not None and node in self.body.in_row and node in self.body.nodes:
                kind = stored_type(operand.type.dtype)
                self.add(f"const {kind}* __restrict__ x{k}_at = x{k} + int64_t(target) * {width(node)};")
        for k, name in self._reduced():
            self._accumulator(self.body.roots[k], name, self.program.results[k].fold)
        for node in self.own:
            self._accumulator(node.args[0], self._fold_name(node), node.args[3])
        for sweep in range(sweeps):
            self._row_values(sweep)
            self._sweep(sweep)
            self._finish(sweep)
        for k in self.results:
            if self.program.results[k].kind == "rows":
                with self.block("if (!HUB || group == 0)"):
                    self.spread([self._put_task(k, "target")])
        if self._merged_sizes():
            self.add("if constexpr (HUB) __syncthreads();")
        if self.stored:
            self.add(_MEET)

    def _row_values(self, sweep: int) -> None:
        """What is computed once a row, as soon as the folds of the sweeps before are there."""
        for node in self.row_arrays:
            if node.target is fold_to_rows or self.body.passes[node] != sweep:
                continue
            with self.block():
                self.spread([self.fold_task(node) if self.is_cooperative(node) else self.shared_task(node)])
            self.add(_MEET)
            self.mark(node)

    # --- sweeps

    def _sweep(self, sweep: int) -> None:
        """The blocks of a row, once; of an earlier sweep's values, those that only a row of one block still has."""
        body = self.body
        folds = self._folds(sweep)
        stores = [
            k for k in self.results
            if self.program.results[k].kind == "store" and body.passes[body.roots[k]] == sweep
        ]  # fmt: skip
        ends = [root for root, _, _ in folds] + [body.roots[k] for k in stores]
        if not ends:
            return
        again = self._needed(ends)
        arrays = [n for n in self.edge_arrays if body.passes[n] == sweep or n in again]
        last = max([body.phases[n] for n in arrays] + [body.fold_phase(r) for r in ends])
        step = "(HUB ? GROUPS : 1) * EB"
        with self.block(f"for (int64_t k0 = first + (HUB ? group * EB : 0); k0 < last; k0 += {step})"):
            self.add("const int here = last - k0 < EB ? int(last - k0) : EB;")
            for phase in range(last + 1):
                now = [n for n in arrays if body.phases[n] == phase]
                with self.block("if (many)"):
                    self._phase([n for n in now if body.passes[n] != sweep], [], [])
                self._phase(
                    [n for n in now if body.passes[n] == sweep],
                    [f for f in folds if body.fold_phase(f[0]) == phase],
                    [k for k in stores if body.fold_phase(body.roots[k]) == phase],
                )
            if self.edge_arrays and self.scope.lines[-1] != _MEET:
                self.add(_MEET)

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

    def _phase(self, nodes: list[fx.Node], folds: list[tuple[fx.Node, str, str]], stores: list[int]) -> None:
        """A block's values of one phase: those an edge a lane, then those with the lanes over features."""
        body = self.body
        narrow = [n for n in nodes if not body.sinks(n)]
        self._over_edges(
            narrow, [f for f in folds if width(f[0]) <= NARROW], [k for k in stores if width(body.roots[k]) <= NARROW]
        )
        if narrow:
            self.add(_MEET)
        sinks = [n for n in nodes if body.sinks(n)]
        self._edge_by_edge(
            sinks, [f for f in folds if width(f[0]) > NARROW], [k for k in stores if width(body.roots[k]) > NARROW]
        )

    def _over_edges(self, nodes: list[fx.Node], folds: list, stores: list[int]) -> None:
        """Narrow values of a block, an edge a lane; what is folded and stored of them."""
        self.unmark(nodes)
        work: list[tuple[tuple, Callable[[Index], None]]] = []
        work += [(n.meta["type"].dims, partial(self._fill, n)) for n in nodes]
        work += [(r.meta["type"].dims, partial(self._fold_entry, r, name, fold)) for r, name, fold in folds]
        work += [(self.body.roots[k].meta["type"].dims, partial(self._store_entry, k)) for k in stores]
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
                tasks += [self._fold_task(*f) for f in folds]
                tasks += [self._put_task(k, "k" if -1 - k in self.scratch else "edges[k]") for k in stores]
                self.spread(tasks)
            self.add("const int64_t k = k0 + q;", "(void)k;", *lines)
        for node in sinks:
            self.mark(node)
        if sinks:
            self.add(_MEET)

    def _sink_task(self, node: fx.Node) -> Task:
        if node.target in FEATURE_FOLDS and self.body.is_wide(node.args[0]):
            return self.fold_task(node)
        return self.shared_task(node, vector=1)

    # --- folds

    def _folds(self, sweep: int) -> list[tuple[fx.Node, str, str]]:
        """(value, accumulator, fold) of everything folded in a sweep: results and the row's own folds."""
        found = []
        for k in self.results:
            root, result = self.body.roots[k], self.program.results[k]
            if result.kind in ("reduce", "contract") and self.body.passes[root] == sweep:
                found.append((root, f"a{k}", result.fold if result.kind == "reduce" else "sum"))
        for node in self.own:
            if self.body.passes[node] == sweep + 1:
                found.append((node.args[0], self._fold_name(node), node.args[3]))
        return found

    def _fold_name(self, node: fx.Node) -> str:
        return f"{self.stored[node]}_fold"

    def _accumulator(self, root: fx.Node, name: str, fold: str) -> None:
        """Registers of a fold: a wide one's features over the lanes, a narrow one whole in each lane."""
        type_ = root.meta["type"]
        length = self.entries(root) if width(root) > NARROW else str(max(width(root), 1))
        start = neutral(fold, type_.dtype)
        self.add(f"{C_TYPES[type_.dtype]} {name}[{length}];")
        self.add(f"SARC_UNROLL for (int i = 0; i < {length}; ++i) {name}[i] = {start};")

    def _fold_entry(self, root: fx.Node, name: str, fold: str, at: Index) -> None:
        entry, place = self.value(root).element(at), f"{name}[{linear(at, root.meta['type'].dims)}]"
        self.add(f"{place} = {COMBINE[fold].format(place, entry)};")

    def _fold_task(self, root: fx.Node, name: str, fold: str) -> Task:
        value, dims = self.value(root), root.meta["type"].dims
        vector = self.vector_of(dims)
        place = f"{name}[j * {vector} + v]"

        def one(at: Index) -> None:
            entry = value.element(at)
            self.add(f"{place} = {COMBINE[fold].format(place, entry)};")

        return Task(dims, vector, one)

    # --- what is written

    def _store_entry(self, k: int, at: Index) -> None:
        root, where = self.body.roots[k], "k" if -1 - k in self.scratch else "edges[k]"
        entry, offset = self.value(root).element(at), linear(at, root.meta["type"].dims)
        self.add(f"sarc_put(y{k}[int64_t({where}) * {self._size(k)} + {offset}], {entry});")

    def _put_task(self, k: int, where: str) -> Task:
        """The features of a value as row `where` of a result."""
        root = self.body.roots[k]
        value, dims, kind = self.value(root), root.meta["type"].dims, stored_type(self.program.results[k].type.dtype)
        vector = self.vector_of(dims)

        def one(at: Index) -> None:
            entry = value.element(at)
            self.add(f"sarc_put(y{k}_strip.at[v], {entry});")

        put = f"sarc_write<{vector}>(y{k} + int64_t({where}) * {self._size(k)} + f0, y{k}_strip);"
        return Task(dims, vector, one, inside=(f"sarc_strip<{kind}, {vector}> y{k}_strip;",), written=(put,))

    def _finish(self, sweep: int) -> None:
        """Folds of a sweep that ends: results to memory, the row's own to where its values are read."""
        results = [(k, n) for k, n in self._reduced() if self.body.passes[self.body.roots[k]] == sweep]
        own = [n for n in self.own if self.body.passes[n] == sweep + 1]
        if not results and not own:
            return
        everything = [(self.body.roots[k], n, self.program.results[k].fold) for k, n in results]
        everything += [(n.args[0], self._fold_name(n), n.args[3]) for n in own]
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
            self._deposit(node.args[0], self._fold_name(node), f"s.{self.stored[node]}")
        self.add("}")
        for node in own:
            self.mark(node)
        if own:
            self.add(_MEET)

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
        kind, size = stored_type(self.program.results[k].type.dtype), self._size(k)
        where = f"slot < 0 ? y{k} + int64_t(target) * {size} : part{k} + int64_t(slot) * {size}"
        return [f"{kind}* __restrict__ y{k}_at = {where};"]

    def _merge(self, k: int, name: str) -> None:
        """A hub's result from the folds of the groups, in their order."""
        fold, kind = self.program.results[k].fold, C_TYPES[self.program.results[k].type.dtype]
        with self.block(f"for (int i = threadIdx.x; i < {self._size(k)}; i += THREADS)"):
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
                old, size = f"sarc_load(y{k}_at[i])", self._size(k)
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

    def _write_share(self, k: int) -> None:
        """A group's share of a contraction."""
        root, size, name = self.body.roots[k], self._size(k), f"a{k}"
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


def _all(each: Sequence[Callable[[Index], None]], at: Index) -> None:
    for one in each:
        one(at)


_MEET = "sarc_meet(mask);"
_HEAD = (
    "constexpr int GROUPS = THREADS / G, PITCH = EB + 1;  // features of an edge lie in different banks",
    "__shared__ Group<EB> all[GROUPS];",
    "__shared__ Folds merged[HUB ? GROUPS + 1 : 1];",
    "const int lane = threadIdx.x % G, group = threadIdx.x / G;",
    "const unsigned mask = sarc_group_mask<G>();",
    "Group<EB>& s = all[group];",
    "const int64_t worker = HUB ? int64_t(blockIdx.x) : int64_t(blockIdx.x) * GROUPS + group;",
    "(void)merged; (void)s; (void)mask; (void)lane;",
)

_UNIT = """
// {about}
namespace {{

constexpr int THREADS = {threads};

{shared}

template <int G, int EB, bool HUB>
__global__ void __launch_bounds__(THREADS, 512 / THREADS) sarc_rows(
    {parameters}) {{
{body}
}}

int64_t sarc_blocks(int64_t count, int64_t each) {{ return (count + each - 1) / each; }}

}}  // namespace

extern "C" int sarc_launch(void** p, const int64_t* n, void* stream) {{
{arguments}
{launches}
}}
"""
