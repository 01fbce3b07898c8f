"""C++ emitter: an EdgeProgram as OpenMP loops over rows and their edges.

A kernel visits the edges of a block grouped by one column (its rows). Values that depend on the row alone are computed
once a row, folds to the row stay in local arrays until the row ends, everything else is computed edge by edge in loops
over constant feature sizes that the compiler vectorises. Rows are split between threads by edges, in chunks of a fixed
number of edges, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sarc.codegen.expression import C_TYPES
from sarc.codegen.lower import Lowering, Value
from sarc.codegen.views import Index, NoKernel
from sarc.ir.call import op_name
from sarc.ir.edge_program import EdgeProgram

aten = torch.ops.aten


@dataclass(frozen=True)
class Source:
    """One kernel: a traversal of a block.

    Attributes:
        name: symbol of the launcher.
        text: the translation unit.
        order: index of the column that groups the edges, or None for edge order.
        results: indices of the program's results that this kernel makes.
    """

    name: str
    text: str
    order: int | None
    results: tuple[int, ...]


def emit(program: EdgeProgram) -> list[Source]:
    """The kernels of a program: one for each column it folds through (one in edge order when it folds to none).

    Raises:
        NoKernel: an operator of the body has no scalar form.
    """
    columns = list(dict.fromkeys(r.column for r in program.results if r.kind == "reduce"))
    orders: list[int | None] = list(columns) or [None]
    rest = [k for k, r in enumerate(program.results) if r.kind != "reduce"]
    sources = []
    for number, order in enumerate(orders):
        mine = [k for k, r in enumerate(program.results) if r.kind == "reduce" and r.column == order]
        sources.append(_Kernel(program, order, tuple(mine + (rest if number == 0 else []))).run())
    return sources


class _Kernel(Lowering):
    """One kernel: the lowered body between its loops and folds."""

    def run(self) -> Source:
        self.lower()
        folds, begin, end = self._folds()
        text = _UNIT.format(
            about=", ".join([f"{self.program.name} over {self.program.space}", *filter(None, [self.program.loc])]),
            arguments="\n".join(self._arguments()),
            loop=self._loop(folds, begin, end),
        )
        return Source("sarc_launch", text, self.order, self.results)

    def _folds(self) -> tuple[list[str], list[str], list[str]]:
        """Statements of each edge, of each row's (or chunk's) start, and of its end."""
        edge: list[str] = []
        begin: list[str] = []
        end: list[str] = []
        for k in self.results:
            result, node = self.program.results[k], self.returned[k]
            if result.kind == "contract":
                if node.target is not aten.sum.dim_IntList:
                    raise NoKernel(f"contraction by {op_name(node.target)}")
                source = self.values[node.args[0]]
                axes = [a % len(source.dims) for a in node.args[1]]
                if axes != [self.row_axis(source.dims)]:
                    raise NoKernel("contraction of rows and features")
                value = source
            else:
                value = self.values[node]
            kind, size = C_TYPES[node.meta["type"].dtype], max(math.prod(self.features(value.dims)), 1)
            if result.kind == "store":
                edge += [f"{{ {kind}* __restrict out = y{k} + int64_t(e) * {size};"]
                edge += [*self._statement(value, "out", "{0} = {1};"), "}"]
                continue
            combine = {"sum": "{0} += {1};", "amax": "{0} = sarc_max({0}, {1});", "amin": "{0} = sarc_min({0}, {1});"}
            update = combine[result.fold if result.kind == "reduce" else "sum"]
            acc = f"a{k}"
            edge += self._statement(value, acc, update)
            flat = f"for (int i = 0; i < {size}; ++i)"
            if result.kind == "reduce":
                begin += [f"{kind} {acc}[{size}];", f"{kind}* __restrict {acc}_to = y{k} + int64_t(target) * {size};"]
                begin += [f"{flat} {acc}[i] = {acc}_to[i];"]
                end += [f"{flat} {acc}_to[i] = {acc}[i];"]
            else:
                begin += [f"//chunk {kind} {acc}[{size}] = {{}};"]
                end += [f"//chunk {flat} y{k}[chunk * {size} + i] = {acc}[i];"]
        return edge, begin, end

    def _statement(self, value: Value, array: str, form: str) -> list[str]:
        """Loops over a value's features around one statement; `form` takes the array's element and the value's."""

        def body(index: Index) -> str:
            return form.format(f"{array}[{self.linear(index, value.dims)}]", value.element(index))

        return self.nest(value.dims, body)

    def _arguments(self) -> list[str]:
        """Declarations that unpack the launcher's pointers, in the order in which `CppKernel` packs them."""
        lines = [
            "const int64_t* __restrict bounds = (const int64_t*)p[0];",
            "const int64_t* __restrict starts = (const int64_t*)p[1];",
            "const int32_t* __restrict targets = (const int32_t*)p[2];",
            "const int32_t* __restrict edges = (const int32_t*)p[3];",
            "const int64_t* __restrict keys = (const int64_t*)p[4];",
            "const int64_t chunks = n[0], seed = n[1], step = n[2];",
            "(void)starts; (void)targets; (void)edges; (void)keys; (void)seed; (void)step;",
        ]
        at = 5
        columns = sorted(self.program.columns_used("gather") | self.program.columns_used("reduce"))
        for c in columns:
            lines.append(f"const int32_t* __restrict c{c} = (const int32_t*)p[{at}]; (void)c{c};")
            at += 1
        for k, operand in enumerate(self.program.operands):
            kind = C_TYPES.get(operand.type.dtype, "char")
            lines.append(f"const {kind}* __restrict x{k} = (const {kind}*)p[{at}]; (void)x{k};")
            at += 1
        for k in self.results:
            kind = C_TYPES[self.program.results[k].type.dtype]
            lines.append(f"{kind}* __restrict y{k} = ({kind}*)p[{at}];")
            at += 1
        return lines

    def _loop(self, folds: list[str], begin: list[str], end: list[str]) -> str:
        chunk_begin = [b.removeprefix("//chunk ") for b in begin if b.startswith("//chunk ")]
        chunk_end = [b.removeprefix("//chunk ") for b in end if b.startswith("//chunk ")]
        begin = [b for b in begin if not b.startswith("//chunk ")]
        end = [b for b in end if not b.startswith("//chunk ")]
        columns = sorted(self.program.columns_used("gather"))
        read = [f"const int32_t j{c} = c{c}[k]; (void)j{c};" for c in columns if c != self.order]
        per_edge = ["const int32_t e = edges[k]; (void)e;", *read, *self.edge, *folds]
        if self.order is None:
            body = ["for (int64_t k = bounds[chunk]; k < bounds[chunk + 1]; ++k) {", *self.row, *per_edge, "}"]
        else:
            body = [
                "for (int64_t r = bounds[chunk]; r < bounds[chunk + 1]; ++r) {",
                "const int32_t target = targets[r];",
                *begin,
                *self.row,
                "for (int64_t k = starts[r]; k < starts[r + 1]; ++k) {",
                *per_edge,
                "}",
                *end,
                "}",
            ]
        return _indent([*chunk_begin, *body, *chunk_end])


def _indent(lines: list[str], depth: int = 2) -> str:
    """Lines indented by their braces."""
    out = []
    for line in lines:
        text = line.strip()
        if text.startswith("}"):
            depth -= 1
        if text.startswith("#"):
            out.append(text)
        else:
            extra = (len(line) - len(line.lstrip())) // 2
            out.append("  " * (depth + extra) + text)
        depth += text.count("{") - text.count("}") + (1 if text.startswith("}") else 0)
    return "\n".join(out)


_UNIT = """// {about}
#include <cmath>
#include <cstdint>
#include <limits>

// Like torch: a NaN operand gives NaN.
template <class T> static inline T sarc_max(T a, T b) {{ return (a > b || a != a) ? a : b; }}
template <class T> static inline T sarc_min(T a, T b) {{ return (a < b || a != a) ? a : b; }}

// Philox4x32-10 (Salmon et al., SC 2011): four uniform draws a block, keyed by (seed, step, op, row key, block).
static inline void sarc_uniform(int64_t key, int blocks, uint32_t op, int64_t seed, int64_t step, float* out) {{
  for (int b = 0; b < blocks; ++b) {{
    uint32_t c0 = b, c1 = uint32_t(key), c3 = uint32_t(step);
    uint32_t c2 = (uint32_t(key >> 32) & 0xFFFFu) << 16 | (op & 0xFFFFu);
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
    for (int round = 0; round < 10; ++round) {{
      const uint64_t p0 = uint64_t(c0) * 0xD2511F53u, p1 = uint64_t(c2) * 0xCD9E8D57u;
      c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
      c1 = uint32_t(p1);
      c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
      c3 = uint32_t(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }}
    out[4 * b] = (c0 >> 8) * (1.0f / 16777216.0f);
    out[4 * b + 1] = (c1 >> 8) * (1.0f / 16777216.0f);
    out[4 * b + 2] = (c2 >> 8) * (1.0f / 16777216.0f);
    out[4 * b + 3] = (c3 >> 8) * (1.0f / 16777216.0f);
  }}
}}

extern "C" void sarc_launch(void** p, const int64_t* n) {{
  {arguments}
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(n[3]))
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {{
{loop}
  }}
}}
"""
