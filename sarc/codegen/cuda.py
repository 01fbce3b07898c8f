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
from functools import partial

import torch.fx as fx

from sarc.codegen.body import NARROW, Body, features, width
from sarc.codegen.cuda_folds import MEET, Folds
from sarc.codegen.cuda_lanes import WARP, Task
from sarc.codegen.cuda_source import CudaSource, Shape
from sarc.codegen.cuda_values import FEATURE_FOLDS
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


def emit_cuda(
    program: EdgeProgram, order: int | None, results: tuple[int, ...], scratch: frozenset[int] = frozenset()
) -> CudaSource:
    """The kernel of some results of a program, in the order of one column (see `sarc.codegen.cpp.emit`).

    Raises:
        NoKernel: an operator of the body has no scalar form, or the folds of a row do not fit shared memory.
    """
    return _Kernel(Body(program, order, results), scratch).run()


class _Kernel(Folds):
    """One kernel: the body between its loops and folds."""

    def __init__(self, body: Body, scratch: frozenset[int]):
        super().__init__(body, scratch)
        self.order = body.order
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
            "sarc_launch", kernel, self.order, self.results, self.draws, exact, self.packs, threads, long, short,
            max(widths, default=1),
        )  # fmt: skip

    # --- sizes

    def _sizes(self) -> tuple[int, Shape, Shape | None]:
        """Threads of a block, and the shape of long and short rows' visits: what shared memory holds.

        Where a row's values are too many, those that can be computed anew wherever they are read are not kept.
        """
        while (found := self._fitting()) is None:
            spare = [n for n in self.row_arrays if n.target is not fold_to_rows and not self.is_cooperative(n)]
            if not spare:
                raise NoKernel("the folds of a row do not fit the shared memory of a block of threads")
            widest = max(spare, key=self.array_size)
            self.row_arrays.remove(widest)
            del self.stored[widest]
        return found

    def _fitting(self) -> tuple[int, Shape, Shape | None] | None:
        lanes = self.lanes or WARP
        for most in (COMFORTABLE_BYTES, SHARED_BYTES):
            for threads in (128, 64, 32):
                for edges in (32, 16, 8):
                    if self._shared_bytes(threads, lanes, edges) <= most:
                        fits = self._shared_bytes(threads, SHORT_GROUP, SHORT_BLOCK, hub=False) <= most
                        few = self.lanes is None and self.order is not None and fits
                        short = Shape(SHORT_GROUP, SHORT_BLOCK) if few else None
                        return threads, Shape(lanes, edges), short
        return None

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
        folds = [(C_TYPES[self.body.roots[k].meta["type"].dtype], name, self.size_of(k)) for k, name in self.reduced()]
        folds += [(C_TYPES[n.meta["type"].dtype], self.stored[n], self.array_size(n)) for n in self.own]
        lines += [f"{kind} {name}[{size}];" for kind, name, size in folds] or ["char nothing;"]
        return [*lines, "};"]

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
        for i, pack in enumerate(self.packs):
            kind = stored_type(self.program.operands[pack.operands[0][0]].type.dtype)
            found.append((f"const {kind}*", f"pack{i}"))
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
            self.accumulator(self.body.roots[k], f"a{k}", "sum")
        if self.order is None:
            self.add("const int64_t first = worker * each, last = first + each < count ? first + each : count;")
            self._row_values(0)
            self._sweep(0)
        else:
            self.add("const int64_t stop = (worker + 1) * each < count ? (worker + 1) * each : count;")
            with self.block("for (int64_t at = worker * each; at < stop; ++at)"):
                self._visit(sweeps)
        for k in contracted:
            self.write_share(k)

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
        for k, name in self.reduced():
            self.accumulator(self.body.roots[k], name, self.program.results[k].fold)
        for node in self.own:
            self.accumulator(node.args[0], self.fold_name(node), node.args[3])
        for sweep in range(sweeps):
            self._row_values(sweep)
            self._sweep(sweep)
            self.finish_folds(sweep)
        for k in self.results:
            if self.program.results[k].kind == "rows":
                with self.block("if (!HUB || group == 0)"):
                    self.spread([self.put_task(k, "target")])
        if self._merged_sizes():
            self.add("if constexpr (HUB) __syncthreads();")
        if self.stored:
            self.add(MEET)

    def _row_values(self, sweep: int) -> None:
        """What is computed once a row, as soon as the folds of the sweeps before are there."""
        for node in self.row_arrays:
            if node.target is fold_to_rows or self.body.passes[node] != sweep:
                continue
            with self.block():
                self.spread([self.fold_task(node) if self.is_cooperative(node) else self.shared_task(node)])
            self.add(MEET)
            self.mark(node)

    # --- sweeps

    def _sweep(self, sweep: int) -> None:
        """The blocks of a row, once; of an earlier sweep's values, those that only a row of one block still has."""
        body = self.body
        folds = self.folds_of(sweep)
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
            if self.edge_arrays and self.scope.lines[-1] != MEET:
                self.add(MEET)

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
                tasks += [self.put_task(k, "k" if -1 - k in self.scratch else "edges[k]") for k in stores]
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
