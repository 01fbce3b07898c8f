"""C++ emitter: an EdgeProgram as OpenMP loops over rows, blocks of their edges, and features.

Rows are split between threads by edges, in chunks of a fixed number of edges, so results do not depend on the number of
threads. Folds to the row stay in local arrays until the row ends. What a body computes when is decided in `body.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.fx as fx

from sarc.codegen.body import Body, features, width
from sarc.codegen.cpp_source import Source
from sarc.codegen.divide import Scratch, Stage, body_of
from sarc.codegen.expression import C_TYPES, STORED_WIDE, literal, stored_type
from sarc.codegen.loops import Loop, indent, loop_over_edges, spell
from sarc.codegen.lower import Lowering
from sarc.codegen.pack import find_packs, places
from sarc.codegen.prelude import PRELUDE, TO_THE_BIT
from sarc.codegen.registers import in_registers
from sarc.codegen.value import BLOCK, Value, linear, nest
from sarc.codegen.vectors import MARK, whole
from sarc.codegen.views import Index
from sarc.ir.dialect import start_value
from sarc.ir.edge_program import fold_to_rows

# Wide rows are prefetched so many bytes ahead, between the given numbers of rows; narrow ones so many rows.
AHEAD_BYTES, AHEAD_LEAST, AHEAD_MOST = 8192, 8, 32
AHEAD_NARROW = 32
LINE = 64


def emit(stage: Stage) -> Source:
    """The kernel of a stage: all its results are folds to its column, contractions, stores, or values of its rows.

    Raises:
        NoKernel: an operator of the body has no scalar form.
    """
    return _Kernel(body_of(stage), stage.scratch).run()


class _Kernel(Lowering):
    """One kernel: the lowered body between its loops and folds."""

    def __init__(self, body: Body, scratch: Scratch):
        super().__init__(body)
        self.order, self.results, self.scratch = body.order, body.results, scratch
        self.load: list[str] = []
        self.edge_pointers: dict[str, str] = {}
        self.prefetched: set[int] = set()
        self.packs = find_packs(body)
        self.packed = places(self.packs)

    def run(self) -> Source:
        text = (TO_THE_BIT if self.body.compares() else "") + PRELUDE + _UNIT.format(
            about=", ".join(filter(None, [f"{self.program.name} over {self.program.space}", self.program.loc])),
            loop=indent(self._chunk()),
            arguments=indent(self._arguments(), 1),
        )
        return Source("sarc_launch", text, self.order, self.results, self.packs, bool(self.pointers))

    # --- operands

    def _leaf(self, node: fx.Node) -> Value:
        k = self.body.placeholders.index(node)
        operand, size = self.program.operands[k], width(node)
        self.compute_type(operand.type.dtype)
        if operand.axis is None:
            return self.memory(f"x{k}", node)
        kind = _read_type(operand.type.dtype)
        if node in self.body.in_row:
            line = f"const {kind}*{self._apart(k)} x{k}_at = x{k} + int64_t(target) * {size};"
            self.row.setdefault(0, []).insert(0, line)
            return self.memory(f"x{k}_at", node)
        where = f"c{operand.column}[k]" if operand.column is not None else self.scratch.row_of(k)
        if self.body.is_wide(node):
            pointer = f"x{k}_at"
            self.edge_pointers[pointer] = f"const {kind}*{self._apart(k)} {pointer} = x{k} + int64_t({where}) * {size};"
            if where != "k" and (operand.column is not None or self.order is not None) and k not in self.prefetched:
                self.prefetched.add(k)
                nbytes = size * operand.type.dtype.itemsize
                rows = min(max(AHEAD_BYTES // nbytes, AHEAD_LEAST), AHEAD_MOST)
                ahead = f"(const char*)(x{k} + int64_t({where.replace('[k]', f'[k + {rows}]')}) * {size})"
                self.edge_pointers[f"{pointer} ahead"] = (
                    f"for (int b = 0; b < {nbytes}; b += {LINE}) __builtin_prefetch({ahead} + b);"
                )
            return self.memory(pointer, node)
        table, first = f"x{k}", 0
        if k in self.packed:
            pack, first = self.packed[k]
            table, size = f"pack{pack}", self.packs[pack].width
        pointer = f"{table}_at"
        line = f"const {kind}*{self._apart(k)} {pointer} = {table} + int64_t({where}) * {size};"
        if line not in self.load:
            self.load.append(line)
            if where != "k" and (operand.column is not None or self.order is not None):
                ahead = where.replace("[k]", f"[k + {AHEAD_NARROW}]")
                self.load.append(f"__builtin_prefetch({table} + int64_t({ahead}) * {size});")
        array = self.new_array(node)
        source = self.memory(pointer, node)
        assert array.flat is not None and source.flat is not None
        into = self._folded_as_loaded(node)
        for i in range(width(node)):
            read = source.flat(str(first + i))
            self.load.append(f"{into}[{i}] += {read};" if into else f"{array.flat(str(i))} = {read};")
        return array

    def _apart(self, k: int) -> str:
        """The qualifier of an operand's pointer: no result is written into its table, unless it takes its place."""
        over = {self.program.results[r].over for r in self.results}
        written = self.scratch.in_place if k in self.scratch.entries else self.program.operands[k].value in over
        return "" if written else " __restrict"

    def _written_apart(self, k: int) -> str:
        """The qualifier of a result's pointer."""
        shared = self.scratch.in_place and -1 - k in self.scratch.entries
        return "" if shared or self.program.results[k].over is not None else " __restrict"

    def _folded_as_loaded(self, node: fx.Node) -> str:
        """The accumulator of a narrow operand that is only summed, or ""."""
        sums = [acc for root, acc, fold in self._folds(0) if root is node and fold == "sum"]
        return sums[0] if self.body.uses[node] == 1 and sums else ""

    def _arguments(self) -> list[str]:
        """Declarations that unpack the launcher's pointers, in the order in which `CppKernel` packs them."""
        names = [
            ("int64_t", "bounds"), ("int64_t", "starts"), ("int32_t", "targets"), ("int32_t", "slots"),
            ("int32_t", "edges"), ("int32_t", "positions"), ("int64_t", "keys"),
        ]  # fmt: skip
        columns = sorted(self.program.columns_used("gather") | self.program.columns_used("reduce"))
        names += [("int32_t", f"c{c}") for c in columns]
        stored = [_read_type(o.type.dtype) if o.type.dtype in C_TYPES else "char" for o in self.program.operands]
        names += [(kind, f"x{k}") for k, kind in enumerate(stored)]
        names += [(stored[p.operands[0][0]], f"pack{i}") for i, p in enumerate(self.packs)]
        apart = {f"x{k}": self._apart(k) for k in range(len(self.program.operands))}
        lines = [
            f"const {t}*{apart.get(n, ' __restrict')} {n} = (const {t}*)p[{at}]; (void){n};"
            for at, (t, n) in enumerate(names)
        ]
        at = len(names)
        for k in self.results:
            result = self.program.results[k]
            kind = C_TYPES[result.type.dtype] if result.kind == "contract" else stored_type(result.type.dtype)
            lines.append(f"{kind}*{self._written_apart(k)} y{k} = ({kind}*)p[{at}];")
            lines.append(f"{kind}* __restrict part{k} = ({kind}*)p[{at + 1}]; (void)part{k};")
            at += 2
        lines.append("const int64_t chunks = n[0], seed = n[1], step = n[2], fresh = n[4];")
        lines.append("(void)seed; (void)step; (void)fresh;")
        return lines

    # --- folds

    def _folds(self, sweep: int) -> list[tuple[fx.Node, str, str]]:
        """(value, accumulator, fold) of everything folded in a sweep: results and the row's own folds."""
        found = []
        for k in self.results:
            root, result = self.body.roots[k], self.program.results[k]
            if result.kind in ("reduce", "contract") and self.body.passes[root] == sweep:
                found.append((root, f"a{k}", result.fold if result.kind == "reduce" else "sum"))
        for node in self.body.nodes:
            if node.target is fold_to_rows and self.body.passes[node] == sweep + 1:
                found.append((node.args[0], self._fold_name(node), node.args[3]))
        return found

    def _fold_name(self, node: fx.Node) -> str:
        return f"f{self.body.nodes.index(node)}"

    def _fold(self, root: fx.Node, acc: str, fold: str) -> list[str | Loop]:
        """Statements that fold an edge value of a block (narrow) or of one edge (wide)."""
        value, op = self.value(root), {"sum": "sum", "amax": "max", "amin": "min"}[fold]
        if root in self.body.in_row or self.body.is_wide(root):
            form = "{0} += {1};" if op == "sum" else f"{{0}} = sarc_{op}({{0}}, {{1}});"
            update = lambda at: form.format(f"{acc}[{linear(at, value.dims)}]", value.element(at))  # noqa: E731
            loop = nest(value.dims, update, self._in_register(acc, form, value) if self.vector else None)
            return ["for (int q = 0; q < count; ++q) {", loop, "}"] if root in self.body.in_row else [loop]
        if root.op == "placeholder" and self._folded_as_loaded(root):
            return []
        name = self.names.get(root, "")
        if not name:  # a view of an array, or an expression
            name = self._copy(root, value)
        return [self.layout.fold(op, name, width(root), acc)]

    def _in_register(self, acc: str, form: str, value: Value) -> Callable[[Index], str]:
        """The statement that folds a vector into an accumulator in registers."""

        def update(at: Index) -> str:
            place, last = linear(at, value.dims).replace(MARK, ""), [d for d in features(value.dims) if d != 1][-1]
            return form.format(f"{acc}_in[({place}) / {last} * vectors + v]", whole(value.element(at)))

        return update

    def _copy(self, root: fx.Node, value: Value) -> str:
        array = self.new_array(root)
        self.code += self.layout.loops(value.dims, lambda at: f"{array.element(at)} = {value.element(at)};")
        self.values[root] = array
        return self.names[root]

    def _stores(self, phase: int, sweep: int) -> list[str | Loop]:
        """Statements that store edge rows: of a block (narrow) or of one edge (wide)."""
        lines: list[str | Loop] = []
        for k in self.results:
            root, result = self.body.roots[k], self.program.results[k]
            if result.kind != "store" or self.body.passes[root] != sweep or self.body.fold_phase(root) != phase:
                continue
            one = self._put(k, self.scratch.row_of(-1 - k))
            lines += one if phase % 2 else ["for (int q = 0; q < count; ++q) {", "const int64_t k = k0 + q;", *one, "}"]
        return lines

    def _put(self, k: int, where: str) -> list[str | Loop]:
        """Statements that write a value as row `where` of a result."""
        value, type_ = self.value(self.body.roots[k]), self.program.results[k].type
        stored = f"sarc_to<{stored_type(type_.dtype)}>({{}})" if type_.dtype in STORED_WIDE else "{}"
        form = f"out[{{}}] = {stored};"
        loop = nest(value.dims, lambda at: form.format(linear(at, value.dims), value.element(at)))
        row = f"int64_t({where}) * {width(self.body.roots[k])}"
        return [f"{{ {stored_type(type_.dtype)}*{self._written_apart(k)} out = y{k} + {row};", loop, "}"]

    # --- loops

    def _sweep(self, sweep: int) -> list[str]:
        """The blocks of a row, once."""
        body = self.body
        edge_nodes = [n for n in body.nodes if n not in body.in_row]
        folds = self._folds(sweep)
        stored = [body.roots[k] for k in self.results if self.program.results[k].kind == "store"]
        if not folds and not any(body.passes[n] == sweep for n in edge_nodes + stored):
            return []
        last = max([body.phases[n] for n in edge_nodes] + [body.fold_phase(r) for r, _, _ in folds] + [0]) + 1
        blocks: list[str] = []
        for phase in range(last + 1):
            for earlier in range(sweep):
                blocks += self._again(earlier, phase)
            mine = [n for n in edge_nodes if body.passes[n] == sweep and body.phases[n] == phase]
            now = [f for f in folds if body.fold_phase(f[0]) == phase]
            if phase % 2:
                blocks += self._wide_loop([n for n in mine if body.sinks(n)], now, phase, sweep)
            else:
                narrow = [n for n in mine if not body.is_wide(n) and not body.sinks(n)]
                blocks += self._narrow_part(narrow, now, phase, sweep)
        return blocks

    def _narrow_part(self, nodes: list[fx.Node], folds: list, phase: int, sweep: int) -> list[str]:
        self.load, self.code = [], []
        for node in nodes:
            self.value(node)
        made, load = spell(self.code), self.load
        self._replays[sweep, phase] = loop_over_edges(load) + made
        self.code = []
        for fold in folds:
            self.code += self._fold(*fold)
        self.code += self._stores(phase, sweep)
        return loop_over_edges(load) + made + spell(self.code)

    def _wide_loop(self, sinks: list[fx.Node], folds: list, phase: int, sweep: int) -> list[str]:
        """One visit of a block's edges: wide values, what narrow values they give, and what they fold into."""
        self._wide_sinks[sweep, phase] = sinks
        self.code, self.edge_pointers = [], {}
        self.edge_values.clear()
        for node in sinks:
            self.values.pop(node, None)
            self.value(node)
        for fold in folds:
            self.code += self._fold(*fold)
        self.code += self._stores(phase, sweep)
        if not self.code:
            return []
        accumulators = [(acc, width(root)) for root, acc, _ in folds]
        vectors = in_registers(self.code, accumulators, self.vector)
        edge = [*self.edge_pointers.values(), *(vectors.edge if vectors else spell(self.code))]
        return [*(vectors.before if vectors else ()), *loop_over_edges(edge), *(vectors.after if vectors else ())]

    def _again(self, sweep: int, phase: int) -> list[str]:
        """What an earlier sweep computed, again: only where the row has several blocks."""
        if phase % 2:
            sinks = self._wide_sinks.get((sweep, phase), [])
            lines = self._wide_loop(sinks, [], phase, -1) if sinks else []
        else:
            lines = self._replays.get((sweep, phase), [])
        return ["if (many) {", *lines, "}"] if lines else []

    def _chunk(self) -> list[str]:
        self._replays: dict[tuple[int, int], list[str]] = {}
        self._wide_sinks: dict[tuple[int, int], list[fx.Node]] = {}
        body = self.body
        own = [n for n in body.nodes if n.target is fold_to_rows]
        for node in own:
            self.values[node] = self.array_of(self._fold_name(node), node.meta["type"].dims)
        sweeps = max([body.passes[n] for n in body.nodes] + [0]) + 1
        begin, end = [], []
        chunk_begin, chunk_end = [], []
        for k in self.results:
            result = self.program.results[k]
            kind, size = C_TYPES[result.type.dtype], max(math.prod(features(result.type.dims)), 1)
            flat = f"for (int i = 0; i < {size}; ++i)"
            short = result.type.dtype in STORED_WIDE
            load = "sarc_load({})" if short else "{}"
            store = f"sarc_to<{stored_type(result.type.dtype)}>({{}})" if short else "{}"
            if result.kind == "reduce":
                start = literal(start_value(result.fold, result.type.dtype), result.type.dtype)
                chunk_begin.append(f"alignas(64) {kind} a{k}[{size}];")
                where = f"slot < 0 ? y{k} + int64_t(target) * {size} : part{k} + int64_t(slot) * {size}"
                begin.append(f"{stored_type(result.type.dtype)}*{self._written_apart(k)} a{k}_to = {where};")
                begin.append(f"if (fresh || slot >= 0) {flat} a{k}[i] = {start};")
                begin.append(f"else {flat} a{k}[i] = {load.format(f'a{k}_to[i]')};")
                end.append(f"{flat} a{k}_to[i] = {store.format(f'a{k}[i]')};")
            elif result.kind == "contract":
                chunk_begin.append(f"alignas(64) {kind} a{k}[{size}] = {{}};")
                chunk_end.append(f"{flat} y{k}[chunk * {size} + i] = a{k}[i];")
        for node in own:
            type_, name = node.meta["type"], self._fold_name(node)
            size, kind = max(width(node), 1), C_TYPES[type_.dtype]
            chunk_begin.append(f"alignas(64) {kind} {name}[{size}];")
            start = literal(start_value(node.args[3], type_.dtype), type_.dtype)
            begin.append(f"for (int i = 0; i < {size}; ++i) {name}[i] = {start};")
        swept = []
        for sweep in range(sweeps):
            blocks = self._sweep(sweep)
            if blocks:
                blocks = [
                    f"for (int64_t k0 = first; k0 < last; k0 += {BLOCK}) {{",
                    f"const int count = last - k0 < {BLOCK} ? int(last - k0) : {BLOCK}, padded = {self.layout.padded};",
                    "(void)padded;",
                    *blocks,
                    "}",
                ]
            swept.append(blocks)
        end = self._row_results() + end
        rows: list[str] = []
        for sweep in range(sweeps):
            rows += [*self.row.get(sweep, []), *swept[sweep]]
        edges = ["(void)edges; (void)positions; (void)keys;"]
        if self.order is None:
            body_lines = ["const int64_t first = bounds[chunk], last = bounds[chunk + 1];", *rows]
        else:
            body_lines = [
                "for (int64_t r = bounds[chunk]; r < bounds[chunk + 1]; ++r) {",
                "const int32_t target = targets[r], slot = slots[r];",
                "const int64_t first = starts[r], last = starts[r + 1];",
                "const bool many = last - first > 64; (void)many; (void)slot;",
                *begin,
                *rows,
                *end,
                "}",
            ]
        return [*edges, *chunk_begin, *self.declared, *body_lines, *chunk_end]

    def _row_results(self) -> list[str]:
        """Statements that write the values of a row that are results."""
        lines: list[str] = []
        for k in self.results:
            if self.program.results[k].kind != "rows":
                continue
            lines += spell(self._put(k, "target"))
        return lines


def _read_type(dtype: torch.dtype) -> str:
    """The C++ type that a table's elements are read as: GCC makes no vectors of reads of `bool`."""
    return "uint8_t" if dtype == torch.bool else stored_type(dtype)


_UNIT = """
// {about}
extern "C" void sarc_launch(void** p, const int64_t* n) {{
{arguments}
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(n[3]))
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {{
{loop}
  }}
}}
"""
