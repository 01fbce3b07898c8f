"""Lowering: the values of an edge program's body as scalar C++ expressions and small local arrays.

A value is a reader: C++ for its element at an index of its features. Row-wise operators are read through (inlined);
a value that several readers need, or a wider one, is computed once into a local array, once a row where it depends on
the row alone, else once an edge.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.fx as fx

from sarc.codegen.expression import C_TYPES, literal, scalar
from sarc.codegen.views import Index, NoKernel, index_map
from sarc.ir.call import named_arguments, op_name
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.space import Rows, Size, ValueType

aten = torch.ops.aten


@dataclass
class Value:
    """How one body value is read: C++ for the element at an index (one entry a dimension; the row's is unused)."""

    element: Callable[[Index], str]
    dims: tuple
    row_only: bool
    cheap: bool = True


class Lowering:
    """The body of a program, for one traversal order and some of its results.

    Attributes:
        values: reader of each body value.
        row, edge: statements of a row's start and of each edge, so far.
    """

    def __init__(self, program: EdgeProgram, order: int | None, results: tuple[int, ...]):
        self.program, self.order, self.results = program, order, results
        self.values: dict[fx.Node, Value] = {}
        self.row: list[str] = []
        self.edge: list[str] = []
        self.temps = 0
        self.body = list(program.body.nodes)
        self.returned = next(n for n in reversed(self.body) if n.op == "output").args[0]
        self.needed = self._needed()
        self.uses = self._uses()

    def lower(self) -> None:
        """Lower every value that the results need.

        Raises:
            NoKernel: an operator has no scalar form.
        """
        inner = [n for n in self.body if n.op == "placeholder"]
        for k, node in enumerate(inner):
            self.values[node] = self._leaf(k, node)
        for node in self.body:
            if node.op == "call_function" and node in self.needed:
                self.values[node] = self._lower(node)

    def _roots(self) -> list[fx.Node]:
        """The values that the results fold; a contraction's operand in place of the contraction."""
        kinds = [self.program.results[k].kind for k in self.results]
        nodes = [self.returned[k] for k in self.results]
        return [n.args[0] if kind == "contract" else n for n, kind in zip(nodes, kinds, strict=True)]

    def _needed(self) -> set[fx.Node]:
        stack = self._roots()
        found: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return found

    def _uses(self) -> Counter[fx.Node]:
        return Counter([*(operand for node in self.needed for operand in node.all_input_nodes), *self._roots()])

    # --- dimensions

    def row_axis(self, dims: tuple) -> int | None:
        for axis, dim in enumerate(dims):
            if isinstance(dim, Rows):
                if not dim.plain or dim.space != self.program.space:
                    raise NoKernel(f"rows {dim} inside {self.program}")
                return axis
        return None

    def features(self, dims: tuple) -> list[int]:
        return [d for d in dims if not isinstance(d, Rows)]

    def linear(self, index: Index, dims: tuple) -> str:
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

    def _leaf(self, k: int, node: fx.Node) -> Value:
        operand = self.program.operands[k]
        dims = operand.type.dims
        if operand.type.dtype not in C_TYPES:
            raise NoKernel(f"operands of {operand.type.dtype}")
        self.row_axis(dims)
        size = math.prod(self.features(dims))
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
                code.append(f"const {kind}* __restrict {base} = x{k} + int64_t({where}) * {size};")
        return Value(lambda index: f"{base}[{self.linear(index, dims)}]", dims, row_only)

    # --- calls

    def _lower(self, node: fx.Node) -> Value:
        type_ = node.meta["type"]
        if not isinstance(type_, ValueType) or type_.dtype not in C_TYPES:
            raise NoKernel(f"{op_name(node.target)} of {type_}")
        self.row_axis(type_.dims)
        rule = _LOWERINGS.get(node.target)
        value = rule(self, node) if rule else self._pointwise(node)
        if not value.cheap and self._wants_array(node, value):
            return self._array(node, value)
        return value

    def _wants_array(self, node: fx.Node, value: Value) -> bool:
        """Whether a value is computed once into a local array: read twice, by a wider reader, or once a row."""
        if self.uses[node] > 1:
            return True
        size = math.prod(self.features(value.dims))
        readers = self._readers(node)
        if any(math.prod(self.features(r.meta["type"].dims)) > size for r in readers):
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

    def _array(self, node: fx.Node, value: Value) -> Value:
        name, dims = f"t{self.temps}", value.dims
        self.temps += 1
        kind = C_TYPES[node.meta["type"].dtype]
        code = self.row if value.row_only else self.edge
        size = math.prod(self.features(dims))
        loc = f"  // {node.meta['loc']}" if node.meta.get("loc") else ""
        code.append(f"{kind} {name}[{max(size, 1)}];{loc}")
        code.extend(self.nest(dims, lambda index: f"{name}[{self.linear(index, dims)}] = {value.element(index)};"))
        return Value(lambda index: f"{name}[{self.linear(index, dims)}]", dims, value.row_only)

    def nest(self, dims: tuple, body: Callable[[Index], str], prefix: str = "i") -> list[str]:
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
        """Reader of an operand broadcast to the dimensions `out`, as `compute`; and whether it is row-only."""
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

    def _pointwise(self, node: fx.Node) -> Value:
        type_: ValueType = node.meta["type"]
        name = node.target.overloadpacket.__name__ if hasattr(node.target, "overloadpacket") else ""
        given = named_arguments(node)
        tensors = [a for a in given.values() if isinstance(a, fx.Node)]
        computed = [t for t in tensors if t.meta["type"].dtype.is_floating_point and t.op != "placeholder"]
        if name in ("eq", "ne") and computed:
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
            return str(scalar(node.target, [read(index) for read, _ in readers], numbers, type_.dtype, compute))

        return Value(element, type_.dims, all(r for _, r in readers), cheap=False)

    def _full(self, node: fx.Node) -> Value:
        type_ = node.meta["type"]
        if not isinstance(node.args[1], (int, float, bool)):
            raise NoKernel("full of a size")
        text = literal(node.args[1], type_.dtype)
        return Value(lambda index: text, type_.dims, True)

    def _view(self, node: fx.Node) -> Value:
        source, dims = self.values[node.args[0]], node.meta["type"].dims
        inner = source.dims
        if self.row_axis(dims) not in (None, 0) or self.row_axis(inner) not in (None, 0):
            raise NoKernel("reshape with rows on an inner axis")
        if self.features(dims) == self.features(inner):
            keep = [axis for axis, d in enumerate(dims) if not isinstance(d, Rows)]
            back = [axis for axis, d in enumerate(inner) if not isinstance(d, Rows)]

            def same(index: Index) -> str:
                at = ["0"] * len(inner)
                for a, b in zip(keep, back, strict=True):
                    at[b] = index[a]
                return source.element(at)

            return Value(same, dims, source.row_only, source.cheap)

        def element(index: Index) -> str:
            linear = self.linear(index, dims)
            at, stride = ["0"] * len(inner), 1
            wide = [axis for axis, d in enumerate(inner) if not isinstance(d, Rows) and d != 1]
            for axis in reversed(wide):
                text = f"({linear})" if stride == 1 else f"(({linear}) / {stride})"
                at[axis] = text if axis == wide[0] else f"({text} % {inner[axis]})"
                stride *= inner[axis]
            return source.element(at)

        return Value(element, dims, source.row_only, source.cheap)

    def _remap(self, node: fx.Node) -> Value:
        source = self.values[node.args[0]]
        back = index_map(node, source.dims)
        return Value(lambda index: source.element(back(index)), node.meta["type"].dims, source.row_only, source.cheap)

    def _sum(self, node: fx.Node) -> Value:
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
        size = max(math.prod(self.features(out)), 1)
        op = node.target.overloadpacket.__name__
        dtype = node.meta["type"].dtype
        start = literal({"sum": 0, "amax": -math.inf, "amin": math.inf}[op] if dtype.is_floating_point else 0, dtype)
        loc = f"  // {node.meta['loc']}" if node.meta.get("loc") else ""
        code.append(f"{kind} {name}[{size}];{loc}")
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
        lines.append(f"{name}[{self.linear(place, out)}] = sum;")
        lines += ["}"] * len(outer)
        code += ["{", *lines, "}"]
        return Value(lambda index: f"{name}[{self.linear(index, out)}]", out, source.row_only)

    def _cat(self, node: fx.Node) -> Value:
        out = node.meta["type"].dims
        axis = (node.args[1] if len(node.args) > 1 else 0) % len(out)
        parts = [self.values[n] for n in node.args[0]]
        row_only = all(p.row_only for p in parts)
        name, kind = f"t{self.temps}", C_TYPES[node.meta["type"].dtype]
        self.temps += 1
        code = self.row if row_only else self.edge
        code.append(f"{kind} {name}[{max(math.prod(self.features(out)), 1)}];")
        start = 0
        for part in parts:
            offset = start

            def write(index: Index, part=part, offset=offset) -> str:
                at = list(index)
                at[axis] = f"({index[axis]} + {offset})"
                return f"{name}[{self.linear(at, out)}] = {part.element(index)};"

            code.extend(self.nest(part.dims, write))
            start += part.dims[axis]
        return Value(lambda index: f"{name}[{self.linear(index, out)}]", out, row_only)

    def _uniform(self, node: fx.Node) -> Value:
        dims = node.meta["type"].dims
        if self.row_axis(dims) != 0:
            raise NoKernel("draws with rows on an inner axis")
        name, size = f"t{self.temps}", math.prod(self.features(dims))
        self.temps += 1
        self.edge.append(f"float {name}[{4 * ((size + 3) // 4)}];")
        self.edge.append(f"sarc_uniform(keys[e], {(size + 3) // 4}, {node.args[2]}, seed, step, {name});")
        return Value(lambda index: f"{name}[{self.linear(index, dims)}]", dims, False)

_VIEWS = {
    aten.view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims,
    aten.permute.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip
_LOWERINGS: dict[object, Callable[[Lowering, fx.Node], Value]] = {
    aten.full.default: Lowering._full,
    aten.view.default: Lowering._view,
    aten.reshape.default: Lowering._view,
    aten.expand.default: Lowering._remap,
    aten.unsqueeze.default: Lowering._remap,
    aten.squeeze.dims: Lowering._remap,
    aten.permute.default: Lowering._remap,
    aten.slice.Tensor: Lowering._remap,
    aten.select.int: Lowering._remap,
    aten.sum.dim_IntList: Lowering._sum,
    aten.amax.default: Lowering._sum,
    aten.amin.default: Lowering._sum,
    aten.cat.default: Lowering._cat,
    UNIFORM: Lowering._uniform,
}
