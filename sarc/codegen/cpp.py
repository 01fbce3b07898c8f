"""C++ emitter: an EdgeProgram as OpenMP loops over rows and their edges.

A kernel visits the edges of a block grouped by one column (its rows). Values that depend on the row alone are computed
once a row, folds to the row stay in local arrays until the row ends, everything else is computed edge by edge in loops
over constant feature sizes that the compiler vectorises. Rows are split between threads by edges, in chunks of a fixed
number of edges, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.fx as fx

from sarc.codegen.expression import C_TYPES, literal, scalar
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.call import named_arguments, op_name
from sarc.ir.space import Rows, Size, ValueType

aten = torch.ops.aten

Index = list[str]


class NoKernel(Exception):
    """The program has no scalar form; the message says which operator has none."""


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
        sources.append(_Emitter(program, order, tuple(mine + (rest if number == 0 else []))).run())
    return sources


@dataclass
class _Value:
    """How one body value is read: C++ for the element at an index (one entry a dimension; the row's is unused)."""

    element: Callable[[Index], str]
    dims: tuple
    row_only: bool
    cheap: bool = True


@dataclass
class _Code:
    lines: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        self.lines += lines


class _Emitter:
    def __init__(self, program: EdgeProgram, order: int | None, results: tuple[int, ...]):
        self.program, self.order, self.results = program, order, results
        self.values: dict[fx.Node, _Value] = {}
        self.row, self.edge = _Code(), _Code()
        self.temps = 0
        self.body = list(program.body.nodes)
        self.returned = next(n for n in reversed(self.body) if n.op == "output").args[0]
        self.needed = self._needed()
        self.uses = self._uses()

    def run(self) -> Source:
        inner = [n for n in self.body if n.op == "placeholder"]
        for k, node in enumerate(inner):
            self.values[node] = self._leaf(k, node)
        for node in self.body:
            if node.op == "call_function" and node in self.needed:
                self.values[node] = self._lower(node)
        folds, begin, end = self._folds()
        text = _UNIT.format(
            about=f"{self.program.name} over {self.program.space}" + (f", {self.program.loc}" if self.program.loc else ""),
            arguments="\n".join(self._arguments()),
            loop=self._loop(folds, begin, end),
        )
        return Source("sarc_launch", text, self.order, self.results)

    def _needed(self) -> set[fx.Node]:
        stack = []
        for k in self.results:
            node = self.returned[k]
            stack += [node.args[0]] if self.program.results[k].kind == "contract" else [node]
        found: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return found

    def _uses(self) -> dict[fx.Node, int]:
        count: dict[fx.Node, int] = {}
        for node in self.needed:
            for operand in node.all_input_nodes:
                count[operand] = count.get(operand, 0) + 1
        for k in self.results:
            node = self.returned[k]
            node = node.args[0] if self.program.results[k].kind == "contract" else node
            count[node] = count.get(node, 0) + 1
        return count

    # --- dimensions

    def _row_axis(self, dims: tuple) -> int | None:
        for axis, dim in enumerate(dims):
            if isinstance(dim, Rows):
                if not dim.plain or dim.space != self.program.space:
                    raise NoKernel(f"rows {dim} inside {self.program}")
                return axis
        return None

    def _features(self, dims: tuple) -> list[int]:
        return [d for d in dims if not isinstance(d, Rows)]

    def _linear(self, index: Index, dims: tuple) -> str:
        """Offset of an index among the features, row-major."""
        terms, stride = [], 1
        for at, dim in reversed(list(zip(index, dims, strict=True))):
            if isinstance(dim, Rows):
                continue
            if dim != 1 and at != "0":
                terms.append(at if stride == 1 else f"{at} * {stride}")
            stride *= dim
        return " + ".join(reversed(terms)) or "0"

    # --- leaves

    def _leaf(self, k: int, node: fx.Node) -> _Value:
        operand = self.program.operands[k]
        dims = operand.type.dims
        if operand.type.dtype not in C_TYPES:
            raise NoKernel(f"operands of {operand.type.dtype}")
        self._row_axis(dims)
        size = math.prod(self._features(dims))
        row_only = operand.axis is None or (operand.column is not None and operand.column == self.order)
        if operand.axis is None:
            base = f"x{k}"
        else:
            if operand.column is None:
                where = "e"
            elif operand.column == self.order:
                where = "target"
            else:
                where = f"j{operand.column}"
            base = f"x{k}_at"
            kind = C_TYPES[operand.type.dtype]
            code = self.row if row_only else self.edge
            if node in self.needed:
                code.add(f"const {kind}* __restrict {base} = x{k} + int64_t({where}) * {size};")
        return _Value(lambda index: f"{base}[{self._linear(index, dims)}]", dims, row_only)

    # --- calls

    def _lower(self, node: fx.Node) -> _Value:
        type_ = node.meta["type"]
        if not isinstance(type_, ValueType) or type_.dtype not in C_TYPES:
            raise NoKernel(f"{op_name(node.target)} of {type_}")
        self._row_axis(type_.dims)
        rule = _LOWERINGS.get(node.target)
        value = rule(self, node) if rule else self._pointwise(node)
        if not value.cheap and self._wants_array(node, value):
            return self._array(node, value)
        return value

    def _wants_array(self, node: fx.Node, value: _Value) -> bool:
        """Whether a value is computed once into a local array: read twice, by a wider reader, or once a row."""
        if self.uses.get(node, 0) > 1:
            return True
        size = math.prod(self._features(value.dims))
        readers = self._readers(node)
        if any(math.prod(self._features(r.meta["type"].dims)) > size for r in readers):
            return True
        if not value.row_only:
            return False
        return any(not self._is_row_only(r) for r in readers) or any(n is node for n in self.returned)

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """The calls that read a value, through views of it; the views count as well."""
        found: list[fx.Node] = []
        stack = [u for u in node.users if u in self.needed]
        while stack:
            user = stack.pop()
            if isinstance(user.meta.get("type"), ValueType):
                found.append(user)
            if user.target in _VIEWS:
                stack.extend(u for u in user.users if u in self.needed)
        return found

    def _is_row_only(self, node: fx.Node) -> bool:
        return node.op == "call_function" and all(
            self.values[n].row_only if n in self.values else False for n in node.all_input_nodes
        )

    def _array(self, node: fx.Node, value: _Value) -> _Value:
        name, dims = f"t{self.temps}", value.dims
        self.temps += 1
        kind = C_TYPES[node.meta["type"].dtype]
        code = self.row if value.row_only else self.edge
        size = math.prod(self._features(dims))
        loc = f"  // {node.meta['loc']}" if node.meta.get("loc") else ""
        code.add(f"{kind} {name}[{max(size, 1)}];{loc}")
        code.add(*self._nest(dims, lambda index: f"{name}[{self._linear(index, dims)}] = {value.element(index)};"))
        return _Value(lambda index: f"{name}[{self._linear(index, dims)}]", dims, value.row_only)

    def _nest(self, dims: tuple, body: Callable[[Index], str], prefix: str = "i") -> list[str]:
        """Loops over the features of `dims` around one statement."""
        index: Index = []
        lines: list[str] = []
        loops = [(axis, d) for axis, d in enumerate(dims) if not isinstance(d, Rows) and d != 1]
        names = {axis: f"{prefix}{axis}" for axis, _ in loops}
        for axis in range(len(dims)):
            index.append(names.get(axis, "0"))
        for depth, (axis, d) in enumerate(loops):
            if depth == len(loops) - 1:
                lines.append("  " * depth + "#pragma omp simd")
            lines.append("  " * depth + f"for (int {names[axis]} = 0; {names[axis]} < {d}; ++{names[axis]})")
        lines.append("  " * len(loops) + body(index))
        return lines

    def _operand(self, value, out: tuple, compute: torch.dtype) -> tuple[Callable[[Index], str], bool]:
        """Reader of an operand broadcast to the dimensions `out`, converted to `compute`; and whether it is row-only."""
        if not isinstance(value, fx.Node):
            if isinstance(value, Size):
                raise NoKernel("a number of rows inside an edge program")
            text = literal(value, compute)
            return (lambda index: text), True
        known, dims = self.values[value], self.values[value].dims
        shift = len(out) - len(dims)
        cast = value.meta["type"].dtype != compute

        def read(index: Index) -> str:
            text = known.element(["0" if d == 1 else index[axis + shift] for axis, d in enumerate(dims)])
            return f"{C_TYPES[compute]}({text})" if cast else text

        return read, known.row_only

    def _pointwise(self, node: fx.Node) -> _Value:
        type_: ValueType = node.meta["type"]
        name = node.target.overloadpacket.__name__ if hasattr(node.target, "overloadpacket") else ""
        given = named_arguments(node)
        tensors = [a for a in given.values() if isinstance(a, fx.Node)]
        if name in ("eq", "ne") and any(t.meta["type"].dtype.is_floating_point and t.op != "placeholder" for t in tensors):
            # Two kernels may round one expression differently: equality is kept to values that are only read.
            raise NoKernel("equality of computed numbers")
        compute = type_.dtype
        if tensors and (type_.dtype == torch.bool or name == "_to_copy"):
            compute = tensors[0].meta["type"].dtype
            for t in tensors[1:]:
                compute = torch.promote_types(compute, t.meta["type"].dtype)
        if compute not in C_TYPES:
            raise NoKernel(f"{op_name(node.target)} in {compute}")
        places = [a for key, a in given.items() if isinstance(a, fx.Node) or key in ("self", "other", "input")]
        readers = [self._operand(a, type_.dims, compute) for a in places]
        if name == "where":
            readers[0] = self._operand(places[0], type_.dims, torch.bool)
        numbers = {k: v for k, v in given.items() if not isinstance(v, fx.Node)}
        if any(isinstance(v, Size) for v in numbers.values()):
            raise NoKernel("a number of rows inside an edge program")
        probe = scalar(node.target, ["a"] * len(readers), numbers, type_.dtype, compute)
        if probe is None:
            raise NoKernel(op_name(node.target))

        def element(index: Index) -> str:
            return scalar(node.target, [read(index) for read, _ in readers], numbers, type_.dtype, compute)

        return _Value(element, type_.dims, all(r for _, r in readers), cheap=False)

    def _full(self, node: fx.Node) -> _Value:
        type_ = node.meta["type"]
        if not isinstance(node.args[1], (int, float, bool)):
            raise NoKernel("full of a size")
        text = literal(node.args[1], type_.dtype)
        return _Value(lambda index: text, type_.dims, True)

    def _view(self, node: fx.Node) -> _Value:
        source, dims = self.values[node.args[0]], node.meta["type"].dims
        inner = source.dims
        if self._row_axis(dims) not in (None, 0) or self._row_axis(inner) not in (None, 0):
            raise NoKernel("reshape with rows on an inner axis")
        if self._features(dims) == self._features(inner):
            keep = [axis for axis, d in enumerate(dims) if not isinstance(d, Rows)]
            back = [axis for axis, d in enumerate(inner) if not isinstance(d, Rows)]

            def same(index: Index) -> str:
                at = ["0"] * len(inner)
                for a, b in zip(keep, back, strict=True):
                    at[b] = index[a]
                return source.element(at)

            return _Value(same, dims, source.row_only, source.cheap)

        def element(index: Index) -> str:
            linear = self._linear(index, dims)
            at, stride = ["0"] * len(inner), 1
            wide = [axis for axis, d in enumerate(inner) if not isinstance(d, Rows) and d != 1]
            for axis in reversed(wide):
                text = f"({linear})" if stride == 1 else f"(({linear}) / {stride})"
                at[axis] = text if axis == wide[0] else f"({text} % {inner[axis]})"
                stride *= inner[axis]
            return source.element(at)

        return _Value(element, dims, source.row_only, source.cheap)

    def _remap(self, node: fx.Node, remap: Callable[[Index], Index]) -> _Value:
        source = self.values[node.args[0]]
        return _Value(
            lambda index: source.element(remap(index)), node.meta["type"].dims, source.row_only, source.cheap
        )

    def _expand(self, node: fx.Node) -> _Value:
        dims, out = self.values[node.args[0]].dims, node.meta["type"].dims
        shift = len(out) - len(dims)
        return self._remap(node, lambda index: ["0" if d == 1 else index[a + shift] for a, d in enumerate(dims)])

    def _unsqueeze(self, node: fx.Node) -> _Value:
        at = node.args[1] % len(node.meta["type"].dims)
        return self._remap(node, lambda index: index[:at] + index[at + 1 :])

    def _squeeze(self, node: fx.Node) -> _Value:
        dims = self.values[node.args[0]].dims
        drop = {d % len(dims) for d in node.args[1]}

        def remap(index: Index) -> Index:
            rest = iter(index)
            return ["0" if axis in drop and d == 1 else next(rest) for axis, d in enumerate(dims)]

        return self._remap(node, remap)

    def _permute(self, node: fx.Node) -> _Value:
        order = [a % len(node.args[1]) for a in node.args[1]]

        def remap(index: Index) -> Index:
            back = ["0"] * len(order)
            for place, axis in enumerate(order):
                back[axis] = index[place]
            return back

        return self._remap(node, remap)

    def _slice(self, node: fx.Node) -> _Value:
        axis, start = node.args[1], node.args[2] or 0
        step = node.args[4] if len(node.args) > 4 else 1
        if isinstance(start, Size) or isinstance(node.meta["type"].dims[axis], Rows):
            raise NoKernel("slice of rows")
        length = self.values[node.args[0]].dims[axis]
        start = start + length if start < 0 else start

        def remap(index: Index) -> Index:
            at = list(index)
            at[axis] = f"({index[axis]} * {step} + {start})"
            return at

        return self._remap(node, remap)

    def _select(self, node: fx.Node) -> _Value:
        axis, at = node.args[1], node.args[2]
        dims = self.values[node.args[0]].dims
        axis, at = axis % len(dims), at % dims[axis % len(dims)]
        return self._remap(node, lambda index: [*index[:axis], str(at), *index[axis:]])

    def _sum(self, node: fx.Node) -> _Value:
        """A sum (amax, amin) over features, into a local array."""
        source = self.values[node.args[0]]
        dims, out = source.dims, node.meta["type"].dims
        which = node.args[1] if len(node.args) > 1 else None
        which = range(len(dims)) if which in (None, []) else [which] if isinstance(which, int) else which
        reduced = {d % len(dims) for d in which}
        if any(isinstance(dims[a], Rows) for a in reduced):
            raise NoKernel("contraction inside the body")
        keep = len(out) == len(dims)
        name, kind = f"t{self.temps}", C_TYPES[node.meta["type"].dtype]
        self.temps += 1
        code = self.row if source.row_only else self.edge
        size = max(math.prod(self._features(out)), 1)
        op = node.target.overloadpacket.__name__
        start = {"sum": "0", "amax": f"-std::numeric_limits<{kind}>::infinity()", "amin": f"std::numeric_limits<{kind}>::infinity()"}[op]
        loc = f"  // {node.meta['loc']}" if node.meta.get("loc") else ""
        code.add(f"{kind} {name}[{size}];{loc}")
        kept = [axis for axis in range(len(dims)) if axis not in reduced]
        outer = [(f"i{axis}", dims[axis]) for axis in kept if not isinstance(dims[axis], Rows) and dims[axis] != 1]
        inner = [(f"k{axis}", dims[axis]) for axis in sorted(reduced) if dims[axis] != 1]
        at: Index = ["0"] * len(dims)
        for axis, d in enumerate(dims):
            if not isinstance(d, Rows) and d != 1:
                at[axis] = f"k{axis}" if axis in reduced else f"i{axis}"
        place = [("0" if axis in reduced else at[axis]) for axis in range(len(dims)) if keep or axis not in reduced]
        lines = []
        for var, d in outer:
            lines.append(f"for (int {var} = 0; {var} < {d}; ++{var}) {{")
        lines.append(f"{kind} sum = {start};")
        simd = "#pragma omp simd reduction(+ : sum)" if op == "sum" else ""
        for depth, (var, d) in enumerate(inner):
            if depth == len(inner) - 1 and simd and node.meta["type"].dtype.is_floating_point:
                lines.append(simd)
            lines.append(f"for (int {var} = 0; {var} < {d}; ++{var})")
        combine = {"sum": "sum += {0};", "amax": "sum = sarc_max(sum, {0});", "amin": "sum = sarc_min(sum, {0});"}[op]
        lines.append(combine.format(source.element(at)))
        lines.append(f"{name}[{self._linear(place, out)}] = sum;")
        lines += ["}"] * len(outer)
        code.add("{", *lines, "}")
        return _Value(lambda index: f"{name}[{self._linear(index, out)}]", out, source.row_only)

    def _cat(self, node: fx.Node) -> _Value:
        out = node.meta["type"].dims
        axis = (node.args[1] if len(node.args) > 1 else 0) % len(out)
        parts = [self.values[n] for n in node.args[0]]
        row_only = all(p.row_only for p in parts)
        name, kind = f"t{self.temps}", C_TYPES[node.meta["type"].dtype]
        self.temps += 1
        code = self.row if row_only else self.edge
        code.add(f"{kind} {name}[{max(math.prod(self._features(out)), 1)}];")
        start = 0
        for part in parts:
            offset = start

            def write(index: Index, part=part, offset=offset) -> str:
                at = list(index)
                at[axis] = f"({index[axis]} + {offset})"
                return f"{name}[{self._linear(at, out)}] = {part.element(index)};"

            code.add(*self._nest(part.dims, write))
            start += part.dims[axis]
        return _Value(lambda index: f"{name}[{self._linear(index, out)}]", out, row_only)

    def _uniform(self, node: fx.Node) -> _Value:
        dims = node.meta["type"].dims
        if self._row_axis(dims) != 0:
            raise NoKernel("draws with rows on an inner axis")
        name, size = f"t{self.temps}", math.prod(self._features(dims))
        self.temps += 1
        self.edge.add(f"float {name}[{4 * ((size + 3) // 4)}];")
        self.edge.add(f"sarc_uniform(keys[e], {(size + 3) // 4}, {node.args[2]}, seed, step, {name});")
        return _Value(lambda index: f"{name}[{self._linear(index, dims)}]", dims, False)

    # --- folds and the loop

    def _folds(self) -> tuple[list[str], list[str], list[str]]:
        """Statements of each edge, of each row's (or chunk's) start, and of its end."""
        edge, begin, end = [], [], []
        for k in self.results:
            result, node = self.program.results[k], self.returned[k]
            if result.kind == "contract":
                if node.target is not aten.sum.dim_IntList:
                    raise NoKernel(f"contraction by {op_name(node.target)}")
                source = self.values[node.args[0]]
                axes = [a % len(source.dims) for a in node.args[1]]
                if axes != [self._row_axis(source.dims)]:
                    raise NoKernel("contraction of rows and features")
                value = source
            else:
                value = self.values[node]
            kind, size = C_TYPES[node.meta["type"].dtype], max(math.prod(self._features(value.dims)), 1)
            if result.kind == "store":
                edge += [f"{{ {kind}* __restrict out = y{k} + int64_t(e) * {size};"]
                edge += self._nest(value.dims, lambda i, v=value: f"out[{self._linear(i, v.dims)}] = {v.element(i)};")
                edge += ["}"]
                continue
            combine = {"sum": "{0} += {1};", "amax": "{0} = sarc_max({0}, {1});", "amin": "{0} = sarc_min({0}, {1});"}
            update = combine[result.fold if result.kind == "reduce" else "sum"]
            acc = f"a{k}"
            edge += self._nest(
                value.dims,
                lambda i, v=value, acc=acc, update=update: update.format(
                    f"{acc}[{self._linear(i, v.dims)}]", v.element(i)
                ),
            )
            flat = f"for (int i = 0; i < {size}; ++i)"
            if result.kind == "reduce":
                begin += [f"{kind} {acc}[{size}];", f"{kind}* __restrict {acc}_to = y{k} + int64_t(target) * {size};"]
                begin += [f"{flat} {acc}[i] = {acc}_to[i];"]
                end += [f"{flat} {acc}_to[i] = {acc}[i];"]
            else:
                begin += [f"//chunk {kind} {acc}[{size}] = {{}};"]
                end += [f"//chunk {flat} y{k}[chunk * {size} + i] = {acc}[i];"]
        return edge, begin, end

    def _arguments(self) -> list[str]:
        """Declarations that unpack the launcher's pointers; `POINTERS` of the runtime gives their order."""
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
        per_edge = ["const int32_t e = edges[k]; (void)e;", *read, *self.edge.lines, *folds]
        if self.order is None:
            body = ["for (int64_t k = bounds[chunk]; k < bounds[chunk + 1]; ++k) {", *self.row.lines, *per_edge, "}"]
        else:
            body = [
                "for (int64_t r = bounds[chunk]; r < bounds[chunk + 1]; ++r) {",
                "const int32_t target = targets[r];",
                *begin,
                *self.row.lines,
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


_VIEWS = {
    aten.view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims,
    aten.permute.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip
_LOWERINGS: dict[object, Callable[[_Emitter, fx.Node], _Value]] = {
    aten.full.default: _Emitter._full,
    aten.view.default: _Emitter._view,
    aten.reshape.default: _Emitter._view,
    aten.expand.default: _Emitter._expand,
    aten.unsqueeze.default: _Emitter._unsqueeze,
    aten.squeeze.dims: _Emitter._squeeze,
    aten.permute.default: _Emitter._permute,
    aten.slice.Tensor: _Emitter._slice,
    aten.select.int: _Emitter._select,
    aten.sum.dim_IntList: _Emitter._sum,
    aten.amax.default: _Emitter._sum,
    aten.amin.default: _Emitter._sum,
    aten.cat.default: _Emitter._cat,
    UNIFORM: _Emitter._uniform,
}


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
    uint32_t c0 = b, c1 = uint32_t(key), c2 = (uint32_t(key >> 32) & 0xFFFFu) << 16 | (op & 0xFFFFu), c3 = uint32_t(step);
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
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {{
{loop}
  }}
}}
"""
