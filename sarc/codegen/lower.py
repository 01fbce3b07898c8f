"""Lowering: the values of an edge program's body as C++ expressions and small local arrays.

A value is a reader: C++ for its element at an index of its features. Row-wise operators are read through (inlined); a
value that several readers need, or one of another kind, is computed once into an array: a row's, a block's (narrow
values, one array entry an edge: `t[feature * 64 + q]`), or an edge's (wide values).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.fx as fx

from sarc.codegen.body import Body, features, width
from sarc.codegen.expression import C_TYPES, STORED_WIDE, literal, scalar
from sarc.codegen.loops import Loop
from sarc.codegen.views import Index, NoKernel, index_map
from sarc.ir.call import named_arguments, op_name
from sarc.ir.dialect import UNIFORM
from sarc.ir.edge_program import fold_to_rows, take_rows
from sarc.ir.space import Rows, Size, ValueType

aten = torch.ops.aten

BLOCK = 64


@dataclass
class Value:
    """How one body value is read.

    Attributes:
        element: C++ for the element at an index (one entry a dimension; the row's is unused).
        dims: its dimensions.
        cheap: whether reading it computes nothing.
        flat: C++ for the element at a row-major offset among its features, where memory holds it so.
    """

    element: Callable[[Index], str]
    dims: tuple
    cheap: bool = True
    flat: Callable[[str], str] | None = None


class Lowering:
    """The readers of a body's values, and the statements that fill their arrays.

    Attributes:
        declared: declarations of arrays, at the start of a chunk.
        row: statements of a row, by the pass before which they stand.
        code: where statements go that fill arrays of edge values: a list of the phase at hand.
    """

    def __init__(self, body: Body):
        self.body, self.program = body, body.program
        self.values: dict[fx.Node, Value] = {}
        self.names: dict[fx.Node, str] = {}
        self.edge_values: dict[fx.Node, Value] = {}
        self.declared: list[str] = []
        self.row: dict[int, list[str]] = {}
        self.code: list[str | Loop] = []
        self.pointers: dict[str, str] = {}

    # --- dimensions

    @staticmethod
    def linear(index: Index, dims: tuple) -> str:
        """Offset of an index among the features, row-major."""
        terms, stride = [], 1
        for at, dim in reversed(list(zip(index, dims, strict=True))):
            if isinstance(dim, Rows):
                continue
            if dim != 1 and at != "0":
                terms.append(at if stride == 1 else f"{at} * {stride}")
            stride *= dim
        return " + ".join(reversed(terms)) or "0"

    @staticmethod
    def nest(dims: tuple, body: Callable[[Index], str]) -> Loop:
        """Loops over the features of `dims` around one statement; the innermost is a vector loop."""
        index: Index = ["0" if isinstance(d, Rows) or d == 1 else f"i{axis}" for axis, d in enumerate(dims)]
        loops = tuple((axis, d) for axis, d in enumerate(dims) if index[axis] != "0")
        return Loop(loops[:-1], loops[-1:], (body(index),))

    # --- values

    def value(self, node: fx.Node) -> Value:
        """The reader of a value; what it needs is computed first, into `row` or `code`."""
        if node in self.values:
            return self.values[node]
        if node in self.edge_values:
            return self.edge_values[node]
        value = self._leaf(node) if node.op == "placeholder" else self._call(node)
        if node not in self.names and (self.body.sinks(node) or (not value.cheap and self._wants_array(node))):
            value = self._array(node, value)
        # Wide values are local to one edge of one phase: their readers are made anew in the next.
        (self.edge_values if self.body.is_wide(node) else self.values)[node] = value
        return value

    def _wants_array(self, node: fx.Node) -> bool:
        body = self.body
        if node in body.in_row:
            readers = body.readers(node)
            outside = any(r not in body.in_row or r.target in (take_rows, fold_to_rows) for r in readers)
            return body.uses[node] > 1 or outside or not readers or self._is_widened(node)
        if body.is_wide(node):
            return body.uses[node] > 1 or self._is_widened(node)
        if body.uses[node] > 1 or node in body.roots.values() or body.sinks(node) or self._is_widened(node):
            return True
        (reader,) = body.readers(node)
        same = body.passes[reader] == body.passes[node] and body.phases[reader] == body.phases[node]
        return not same or body.is_wide(reader) or reader.target in (fold_to_rows, aten.cat.default)

    def _is_widened(self, node: fx.Node) -> bool:
        """Whether some reader, through views, reads each element several times."""
        stack, size = list(self.body.readers(node)), width(node)
        while stack:
            reader = stack.pop()
            if isinstance(reader.meta.get("type"), ValueType) and width(reader) > size:
                return True
            if reader.target in VIEWS:
                stack.extend(self.body.readers(reader))
        return False

    def _array(self, node: fx.Node, value: Value) -> Value:
        """Compute a value into an array, and the reader of that."""
        array = self.new_array(node)
        fill = lambda at: f"{array.element(at)} = {value.element(at)};"  # noqa: E731
        self.emit(node, value.dims, fill)
        return array

    def emit(self, node: fx.Node, dims: tuple, fill: Callable[[Index], str]) -> None:
        """Add the loops that compute a value: over its features, and for narrow values over the block's edges."""
        if node in self.body.in_row:
            self.row.setdefault(self.body.passes[node], []).extend(self.nest(dims, fill).lines())
        elif self.body.is_wide(node) or self.body.sinks(node):
            self.code.append(self.nest(dims, fill))
        else:
            self.code += self.over_block(dims, fill)

    def over_block(self, dims: tuple, body: Callable[[Index], str]) -> list[str]:
        """Loops over the features, and the edges of a block: whole vectors, the entries past the end are not read."""
        loop = self.nest(dims, body)
        heads = [f"for (int i{axis} = 0; i{axis} < {d}; ++i{axis})" for axis, d in loop.outer + loop.inner]
        return [*heads, f"SARC_SIMD for (int q = 0; q < padded; ++q) {loop.body[0]}"]

    def new_array(self, node: fx.Node) -> Value:
        """An array for a value, declared where it lives."""
        dims, kind = node.meta["type"].dims, self.compute_type(node.meta["type"].dtype)
        name = self.names.setdefault(node, f"t{len(self.names)}")
        loc = f"  // {node.meta['loc']}" if node.meta.get("loc") else ""
        size = max(math.prod(features(dims)), 1)
        if node in self.body.in_row or self.body.is_wide(node):
            (self.declared if node in self.body.in_row else self.code).append(f"{kind} {name}[{size}];{loc}")
            return self.array_of(name, dims)
        line = f"alignas(64) {kind} {name}[{size} * {BLOCK}] = {{}};{loc}"
        if line not in self.declared:
            self.declared.append(line)

        def at_offset(i: str) -> str:
            return f"{name}[q]" if i == "0" else f"{name}[({i}) * {BLOCK} + q]"

        return Value(lambda at: at_offset(self.linear(at, dims)), dims, True, at_offset)

    def array_of(self, name: str, dims: tuple) -> Value:
        """The reader of an array that holds one row's features."""
        return Value(lambda at: f"{name}[{self.linear(at, dims)}]", dims, True, lambda i: f"{name}[{i}]")

    def compute_type(self, dtype: torch.dtype) -> str:
        if dtype not in C_TYPES:
            raise NoKernel(f"values of {dtype}")
        return C_TYPES[dtype]

    # --- leaves: filled in by the kernel, which knows where the rows are

    def _leaf(self, node: fx.Node) -> Value:
        raise NotImplementedError

    def memory(self, name: str, node: fx.Node) -> Value:
        """The reader of a row of a table that starts at the pointer `name`."""
        type_ = node.meta["type"]
        wrap = "sarc_load({})" if type_.dtype in STORED_WIDE else "{}"
        read = lambda i: wrap.format(f"{name}[{i}]")  # noqa: E731
        return Value(lambda at: read(self.linear(at, type_.dims)), type_.dims, True, read)

    # --- calls

    def _call(self, node: fx.Node) -> Value:
        type_ = node.meta["type"]
        self.compute_type(type_.dtype)
        if node.target is take_rows:
            source = self.value(node.args[0])
            return Value(source.element, type_.dims, True, source.flat)
        rule = _RULES.get(node.target)
        return rule(self, node) if rule else self._pointwise(node)

    def _operand(self, given: object, out: tuple, compute: torch.dtype) -> Callable[[Index], str]:
        """Reader of an operand broadcast to the dimensions `out`, as `compute`."""
        if not isinstance(given, fx.Node):
            if isinstance(given, Size):
                raise NoKernel("a number of rows inside an edge program")
            text = literal(given, compute)
            return lambda index: text
        known, dims = self.value(given), self.value(given).dims
        shift = len(out) - len(dims)
        kind = C_TYPES[compute]
        cast = C_TYPES[given.meta["type"].dtype] != kind

        def read(index: Index) -> str:
            text = known.element(["0" if d == 1 else index[axis + shift] for axis, d in enumerate(dims)])
            return f"{kind}({text})" if cast else text

        return read

    def _pointwise(self, node: fx.Node) -> Value:
        type_: ValueType = node.meta["type"]
        name = node.target.overloadpacket.__name__ if hasattr(node.target, "overloadpacket") else ""
        given = named_arguments(node)
        tensors = [a for a in given.values() if isinstance(a, fx.Node)]
        compute = type_.dtype
        if tensors and (type_.dtype == torch.bool or name == "_to_copy"):
            compute = tensors[0].meta["type"].dtype
            for t in tensors[1:]:
                compute = torch.promote_types(compute, t.meta["type"].dtype)
        self.compute_type(compute)
        places = [a for key, a in given.items() if isinstance(a, fx.Node) or key in ("self", "other", "input")]
        readers = [self._operand(a, type_.dims, compute) for a in places]
        if name == "where":
            readers[0] = self._operand(places[0], type_.dims, torch.bool)
        numbers = {k: v for k, v in given.items() if not isinstance(v, fx.Node)}
        if any(isinstance(v, Size) for v in numbers.values()):
            raise NoKernel("a number of rows inside an edge program")
        if scalar(node.target, ["a"] * len(readers), numbers, type_.dtype, compute) is None:
            raise NoKernel(op_name(node.target))

        def element(index: Index) -> str:
            return str(scalar(node.target, [read(index) for read in readers], numbers, type_.dtype, compute))

        return Value(element, type_.dims, cheap=False)

    def _full(self, node: fx.Node) -> Value:
        type_ = node.meta["type"]
        if not isinstance(node.args[1], (int, float, bool)):
            raise NoKernel("full of a size")
        text = literal(node.args[1], type_.dtype)
        return Value(lambda index: text, type_.dims, True, lambda i: text)

    def _view(self, node: fx.Node) -> Value:
        source, dims = self.value(node.args[0]), node.meta["type"].dims
        inner = source.dims
        if _rows_inside(dims) or _rows_inside(inner):
            raise NoKernel("reshape with rows on an inner axis")
        if source.flat is not None:
            flat = source.flat
            return Value(lambda index: flat(self.linear(index, dims)), dims, source.cheap, flat)
        if features(dims) == features(inner):
            keep = [axis for axis, d in enumerate(dims) if not isinstance(d, Rows)]
            back = [axis for axis, d in enumerate(inner) if not isinstance(d, Rows)]

            def same(index: Index) -> str:
                at = ["0"] * len(inner)
                for a, b in zip(keep, back, strict=True):
                    at[b] = index[a]
                return source.element(at)

            return Value(same, dims, source.cheap)

        def element(index: Index) -> str:
            linear = self.linear(index, dims)
            at, stride = ["0"] * len(inner), 1
            wide = [axis for axis, d in enumerate(inner) if not isinstance(d, Rows) and d != 1]
            for axis in reversed(wide):
                text = f"({linear})" if stride == 1 else f"(({linear}) / {stride})"
                at[axis] = text if axis == wide[0] else f"({text} % {inner[axis]})"
                stride *= inner[axis]
            return source.element(at)

        return Value(element, dims, source.cheap)

    def _remap(self, node: fx.Node) -> Value:
        source = self.value(node.args[0])
        back = index_map(node, source.dims)
        keeps = node.target in (aten.unsqueeze.default, aten.squeeze.dims)
        flat = source.flat if keeps else None
        return Value(lambda index: source.element(back(index)), node.meta["type"].dims, source.cheap, flat)

    def _fold_features(self, node: fx.Node) -> Value:
        """A sum (amax, amin) over features."""
        source, type_ = self.value(node.args[0]), node.meta["type"]
        dims, out = source.dims, type_.dims
        which = node.args[1] if len(node.args) > 1 else None
        which = range(len(dims)) if which in (None, []) else [which] if isinstance(which, int) else which
        reduced = {d % len(dims) for d in which}
        if any(isinstance(dims[a], Rows) for a in reduced):
            raise NoKernel("contraction inside the body")
        op, kind = node.target.overloadpacket.__name__, self.compute_type(type_.dtype)
        keep = len(out) == len(dims)
        inner = [(axis, dims[axis]) for axis in sorted(reduced) if dims[axis] != 1]
        narrow = node not in self.body.in_row and not self.body.is_wide(node.args[0])
        if narrow:
            return self._fold_few(op, source, reduced, keep, out)
        array = self.new_array(node)
        fold = f"{self.names[node]}_sum"
        at: Index = ["0" if isinstance(d, Rows) or d == 1 else f"i{axis}" for axis, d in enumerate(dims)]
        place = ["0" if axis in reduced else at[axis] for axis in range(len(dims)) if keep or axis not in reduced]
        outer = tuple((axis, d) for axis, d in enumerate(dims) if axis not in reduced and at[axis] != "0")
        loop = Loop(
            outer,
            tuple(inner),
            (_COMBINE[op].format(fold, source.element(at)),),
            (f"{kind} {fold} = {_start(op, type_.dtype)};",),
            (f"{array.element(place)} = {fold};",),
            fold if op == "sum" and type_.dtype.is_floating_point else "",
        )
        if node in self.body.in_row:
            self.row.setdefault(self.body.passes[node], []).extend(loop.lines())
        else:
            self.code.append(loop)
        return array

    def _fold_few(self, op: str, source: Value, reduced: set[int], keep: bool, out: tuple) -> Value:
        """A fold over the few features of a narrow value, as one expression."""
        dims = source.dims

        def element(index: Index) -> str:
            at, given = ["0"] * len(dims), iter(index)
            for axis in range(len(dims)):
                if keep or axis not in reduced:
                    at[axis] = next(given)
            terms = [list(at)]
            for axis in sorted(reduced):
                terms = [[*t[:axis], str(i), *t[axis + 1 :]] for t in terms for i in range(dims[axis])]
            text = source.element(terms[0])
            for term in terms[1:]:
                other = source.element(term)
                text = f"({text} + {other})" if op == "sum" else f"sarc_{op[1:]}({text}, {other})"
            return text

        return Value(element, out, cheap=False)

    def _cat(self, node: fx.Node) -> Value:
        out = node.meta["type"].dims
        axis = (node.args[1] if len(node.args) > 1 else 0) % len(out)
        parts = [self.value(n) for n in node.args[0]]
        array, start = self.new_array(node), 0
        for part in parts:

            def write(index: Index, part=part, offset=start) -> str:
                at = list(index)
                at[axis] = f"({index[axis]} + {offset})" if offset else index[axis]
                return f"{array.element(at)} = {part.element(index)};"

            self.emit(node, part.dims, write)
            start += part.dims[axis]
        return array

    def _uniform(self, node: fx.Node) -> Value:
        dims, op, size = node.meta["type"].dims, node.args[2], width(node)
        if _rows_inside(dims) or not any(isinstance(d, Rows) for d in dims):
            raise NoKernel("draws with rows on an inner axis, or none")
        self.pointers["keys"] = "keys"
        if node in self.body.in_row:
            raise NoKernel("draws of a row")
        array, blocks = self.new_array(node), (size + 3) // 4
        key = "keys[k0 + q]"
        if self.body.is_wide(node):
            name, last = self.names[node], self.code.pop()  # room for whole blocks of four
            assert isinstance(last, str)
            self.code.append(last.replace(f"[{size}]", f"[{4 * blocks}]"))
            outs = ", ".join(f"{name} + 4 * b + {i}" for i in range(4))
            self.code.append(f"for (int b = 0; b < {blocks}; ++b) sarc_philox({key}, b, {op}, seed, step, {outs});")
            return array
        name = self.names[node]
        for b in range(blocks):
            outs = ", ".join(f"&u{i}" for i in range(4))
            kept = "".join(f" {name}[{4 * b + i} * {BLOCK} + q] = u{i};" for i in range(4) if 4 * b + i < size)
            self.code += [
                "SARC_SIMD for (int q = 0; q < count; ++q) {",
                f"float u0, u1, u2, u3; sarc_philox({key}, {b}, {op}, seed, step, {outs});{kept}",
                "}",
            ]
        return array


def _rows_inside(dims: tuple) -> bool:
    """Whether rows are on an axis other than the first."""
    return any(isinstance(d, Rows) for d in dims[1:])


_COMBINE = {"sum": "{0} += {1};", "amax": "{0} = sarc_max({0}, {1});", "amin": "{0} = sarc_min({0}, {1});"}


def _start(op: str, dtype: torch.dtype) -> str:
    if not dtype.is_floating_point and op != "sum":
        raise NoKernel(f"{op} over features of integers")
    return literal({"sum": 0, "amax": -math.inf, "amin": math.inf}[op], dtype)


VIEWS = {
    aten.view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims,
    aten.permute.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip
_RULES: dict[object, Callable[[Lowering, fx.Node], Value]] = {
    aten.full.default: Lowering._full,
    aten.view.default: Lowering._view,
    aten.reshape.default: Lowering._view,
    aten.expand.default: Lowering._remap,
    aten.unsqueeze.default: Lowering._remap,
    aten.squeeze.dims: Lowering._remap,
    aten.permute.default: Lowering._remap,
    aten.slice.Tensor: Lowering._remap,
    aten.select.int: Lowering._remap,
    aten.sum.dim_IntList: Lowering._fold_features,
    aten.amax.default: Lowering._fold_features,
    aten.amin.default: Lowering._fold_features,
    aten.cat.default: Lowering._cat,
    UNIFORM: Lowering._uniform,
}
