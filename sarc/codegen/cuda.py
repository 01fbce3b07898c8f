"""CUDA emitter: an EdgeProgram as a kernel in which groups of lanes visit rows, blocks of their edges, and features.

A group of G lanes, at most a warp, visits a row. Its edges come in blocks of EB: narrow values are computed an edge a
lane, wide ones edge by edge with the lanes over features. Folds stay in registers until the row ends. Rows come ordered
by their lengths: a long row is visited by all groups of a thread block, which merge their folds in order, and where no
value of an edge is wide, short rows are visited by small groups. No two groups write to one place, so results do not
depend on timing. What a body computes when is decided in `body.py`, as for C++.
"""

from __future__ import annotations

import math

import torch.fx as fx

from sarc.codegen.body import features, width
from sarc.codegen.cuda_folds import MEET
from sarc.codegen.cuda_lanes import WARP
from sarc.codegen.cuda_online import OnlineSweeps
from sarc.codegen.cuda_source import CudaSource, Shape
from sarc.codegen.divide import Stage, body_of
from sarc.codegen.expression import C_TYPES, stored_type
from sarc.codegen.loops import indent
from sarc.codegen.views import NoKernel
from sarc.ir.edge_program import fold_to_rows

SHARED_BYTES = 48 << 10  # of a block, without asking for more
COMFORTABLE_BYTES = 16 << 10  # leaves room for a dozen blocks on a multiprocessor
SHORT_GROUP, SHORT_BLOCK = 4, 8
NUMBERS = ("hubs", "rows_long", "rows_short", "hubs_each", "long_each", "short_each", "seed", "step", "fresh", "device")
"""What a launcher reads from its int64 argument, in order."""


def emit_cuda(stage: Stage) -> CudaSource:
    """The kernel of a stage (see `sarc.codegen.cpp.emit`).

    Raises:
        NoKernel: an operator of the body has no scalar form, or the folds of a row do not fit shared memory.
    """
    return _Kernel(body_of(stage), stage.scratch).run()


class _Kernel(OnlineSweeps):
    """One kernel: its sizes, declarations and launches, and the sweeps of a row between them."""

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
        one += sum(size * itemsize for size, itemsize in self.shift_sizes())
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
        for shift, name in self.shift_arrays():
            lines.append(f"{C_TYPES[shift.meta['type'].dtype]} {name}[{self.array_size(shift)}];")
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
            self.row_values(0)
            self.sweep(0)
        else:
            self.add("const int64_t stop = (worker + 1) * each < count ? (worker + 1) * each : count;")
            with self.block("for (int64_t at = worker * each; at < stop; ++at)"):
                self._visit(sweeps)
        for k in contracted:
            self.write_share(k)

    def _visit(self, sweeps: int) -> None:
        """One row."""
        # The groups of a hub have shifted what they keep of their blocks by maxima of their own.
        many = "HUB || last - first > EB" if self.online else "last - first > (HUB ? GROUPS : 1) * EB"
        self.add(
            "const int32_t r = rows[begin + at], target = targets[r], slot = slots[r];",
            "const int64_t first = starts[r], last = starts[r + 1];",
            f"const bool many = {many}, start = fresh || slot >= 0;",
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
        self.sweeps(sweeps)
        for k in self.results:
            if self.program.results[k].kind == "rows":
                with self.block("if (!HUB || group == 0)"):
                    self.spread([self.put_task(k, "target")])
        if self._merged_sizes():
            self.add("if constexpr (HUB) __syncthreads();")
        if self.stored:
            self.add(MEET)


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

// 128 registers a thread; hubs, which are few and hold more, may have 255.
template <int G, int EB, bool HUB>
__global__ void __launch_bounds__(THREADS, (HUB ? 256 : 512) / THREADS) sarc_rows(
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
