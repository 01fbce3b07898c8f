"""Operators: how a value of an edge program's body is read, given the readers of its operands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.fx as fx

from sarc.codegen.body import features, width
from sarc.codegen.expression import C_TYPES, literal, scalar
from sarc.codegen.loops import Loop
from sarc.codegen.value import Value, linear
from sarc.codegen.vectors import LANES, MARK, NoVector, VectorForm, is_vector, vector_operands, whole
from sarc.codegen.views import Index, NoKernel, index_map
from sarc.ir.call import named_arguments, op_name
from sarc.ir.dialect import UNIFORM
from sarc.ir.space import Rows, Size, ValueType

if TYPE_CHECKING:
    from sarc.codegen.lower import Lowering

aten = torch.ops.aten


def _operand(
    low: Lowering, reader: fx.Node, given: object, out: tuple, compute: torch.dtype
) -> Callable[[Index], str]:
    """How a value reads an operand, broadcast to the dimensions `out`, as `compute`."""
    if not isinstance(given, fx.Node):
        if isinstance(given, Size):
            raise NoKernel("a number of rows inside an edge program")
        text = literal(given, compute)
        return lambda index: text
    known = low.in_lanes(given) if low.body.in_block(reader) else low.value(given)
    dims = known.dims
    shift = len(out) - len(dims)
    kind = C_TYPES[compute]
    cast = C_TYPES[given.meta["type"].dtype] != kind

    def read(index: Index) -> str:
        text = known.element(["0" if d == 1 else index[axis + shift] for axis, d in enumerate(dims)])
        if cast and is_vector(text):
            raise NoVector("a conversion")
        return f"{kind}({text})" if cast else text

    return read


def pointwise(low: Lowering, node: fx.Node) -> Value:
    type_: ValueType = node.meta["type"]
    name = node.target.overloadpacket.__name__ if hasattr(node.target, "overloadpacket") else ""
    given = named_arguments(node)
    tensors = [a for a in given.values() if isinstance(a, fx.Node)]
    compute = type_.dtype
    if tensors and (type_.dtype == torch.bool or name == "_to_copy"):
        compute = tensors[0].meta["type"].dtype
        for t in tensors[1:]:
            compute = torch.promote_types(compute, t.meta["type"].dtype)
    low.compute_type(compute)
    places = [a for key, a in given.items() if isinstance(a, fx.Node) or key in ("self", "other", "input")]
    readers = [_operand(low, node, a, type_.dims, compute) for a in places]
    if name == "where":
        readers[0] = _operand(low, node, places[0], type_.dims, torch.bool)
    numbers = {k: v for k, v in given.items() if not isinstance(v, fx.Node)}
    if any(isinstance(v, Size) for v in numbers.values()):
        raise NoKernel("a number of rows inside an edge program")
    if scalar(node.target, ["a"] * len(readers), numbers, type_.dtype, compute) is None:
        raise NoKernel(op_name(node.target))

    def element(index: Index) -> str:
        operands = [read(index) for read in readers]
        if any(is_vector(text) for text in operands):
            operands = vector_operands(name, operands)
        return str(scalar(node.target, operands, numbers, type_.dtype, compute))

    return Value(element, type_.dims, cheap=False)


def _full(low: Lowering, node: fx.Node) -> Value:
    type_ = node.meta["type"]
    if not isinstance(node.args[1], (int, float, bool)):
        raise NoKernel("full of a size")
    text = literal(node.args[1], type_.dtype)
    return Value(lambda index: text, type_.dims, True, lambda i: text)


def _view(low: Lowering, node: fx.Node) -> Value:
    source, dims = low.value(node.args[0]), node.meta["type"].dims
    inner = source.dims
    if _rows_inside(dims) or _rows_inside(inner):
        raise NoKernel("reshape with rows on an inner axis")
    if source.flat is not None:
        flat = source.flat
        return Value(lambda index: flat(linear(index, dims)), dims, source.cheap, flat)
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
        place = linear(index, dims)
        at, stride = ["0"] * len(inner), 1
        wide = [axis for axis, d in enumerate(inner) if not isinstance(d, Rows) and d != 1]
        for axis in reversed(wide):
            text = f"({place})" if stride == 1 else f"(({place}) / {stride})"
            at[axis] = text if axis == wide[0] else f"({text} % {inner[axis]})"
            stride *= inner[axis]
        return source.element(at)

    return Value(element, dims, source.cheap)


def _remap(low: Lowering, node: fx.Node) -> Value:
    source = low.value(node.args[0])
    back = index_map(node, source.dims)
    keeps = node.target in (aten.unsqueeze.default, aten.squeeze.dims)
    flat = source.flat if keeps else None
    return Value(lambda index: source.element(back(index)), node.meta["type"].dims, source.cheap, flat)


def _slice_backward(low: Lowering, node: fx.Node) -> Value:
    """A value between zeros: the derivative of a slice of features."""
    source, type_ = low.value(node.args[0]), node.meta["type"]
    _, _, axis, start, end, step = node.args
    axis %= len(type_.dims)
    size = type_.dims[axis]
    if isinstance(size, Rows) or step != 1:
        raise NoKernel("derivative of a slice of rows, or of one with a step")
    start, end, _ = slice(start, end).indices(size)
    zero = literal(0, type_.dtype)

    def element(index: Index) -> str:
        if any(MARK in i for i in index):
            raise NoVector("zeros between")
        at = list(index)
        if size != 1:
            at[axis] = "0" if source.dims[axis] == 1 else f"({index[axis]} - {start})"
        inside = f"{index[axis]} >= {start} && {index[axis]} < {end}"
        return f"(({inside}) ? {source.element(at)} : {zero})"

    return Value(element, type_.dims, cheap=False)


def _fold_features(low: Lowering, node: fx.Node) -> Value:
    """A sum (amax, amin) over features."""
    source, type_ = low.value(node.args[0]), node.meta["type"]
    dims, out = source.dims, type_.dims
    which = node.args[1] if len(node.args) > 1 else None
    which = range(len(dims)) if which in (None, []) else [which] if isinstance(which, int) else which
    reduced = {d % len(dims) for d in which}
    if any(isinstance(dims[a], Rows) for a in reduced):
        raise NoKernel("contraction inside the body")
    op, kind = node.target.overloadpacket.__name__, low.compute_type(type_.dtype)
    keep = len(out) == len(dims)
    inner = [(axis, dims[axis]) for axis in sorted(reduced) if dims[axis] != 1]
    narrow = node not in low.body.in_row and not low.body.is_wide(node.args[0])
    if narrow:
        return _fold_few(low, op, source, reduced, keep, out)
    array = low.new_array(node)
    fold = f"{low.names[node]}_sum"
    at: Index = ["0" if isinstance(d, Rows) or d == 1 else f"i{axis}" for axis, d in enumerate(dims)]
    place = ["0" if axis in reduced else at[axis] for axis in range(len(dims)) if keep or axis not in reduced]
    outer = tuple((axis, d) for axis, d in enumerate(dims) if axis not in reduced and at[axis] != "0")
    floats = op == "sum" and type_.dtype.is_floating_point
    form = None
    if floats and low.vector and len(inner) == 1:
        with contextlib.suppress(NoVector):
            term = source.element([MARK + i if axis == inner[0][0] else i for axis, i in enumerate(at)])
            start = f"sarc_vector<{low.vector}, {LANES}> {fold} = {{}};"
            total = f"{array.element(place)} = sarc_total({fold});"
            form = VectorForm((f"{fold} += sarc_unseen({whole(term)}, i{inner[0][0]});",), (start,), (total,))
    loop = Loop(
        outer,
        tuple(inner),
        (_COMBINE[op].format(fold, source.element(at)),),
        (f"{kind} {fold} = {_start(op, type_.dtype)};",),
        (f"{array.element(place)} = {fold};",),
        fold if floats else "",
        form,
    )
    if node in low.body.in_row:
        low.row.setdefault(low.body.passes[node], []).extend(loop.lines())
    else:
        low.code.append(loop)
    return array


def _fold_few(low: Lowering, op: str, source: Value, reduced: set[int], keep: bool, out: tuple) -> Value:
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


def _cat(low: Lowering, node: fx.Node) -> Value:
    out = node.meta["type"].dims
    axis = (node.args[1] if len(node.args) > 1 else 0) % len(out)
    parts = [low.value(n) for n in node.args[0]]
    array, start = low.new_array(node), 0
    for part in parts:

        def write(index: Index, part=part, offset=start) -> str:
            at = list(index)
            at[axis] = f"({index[axis]} + {offset})" if offset else index[axis]
            return f"{array.element(at)} = {part.element(index)};"

        low.emit(node, part.dims, write)
        start += part.dims[axis]
    return array


def _uniform(low: Lowering, node: fx.Node) -> Value:
    dims, op, size = node.meta["type"].dims, node.args[2], width(node)
    if _rows_inside(dims) or not any(isinstance(d, Rows) for d in dims):
        raise NoKernel("draws with rows on an inner axis, or none")
    low.pointers["keys"] = "keys"
    if node in low.body.in_row:
        raise NoKernel("draws of a row")
    array, blocks = low.new_array(node), (size + 3) // 4
    key = "keys[k0 + q]"
    if low.body.is_wide(node):
        name, last = low.names[node], low.code.pop()  # room for whole blocks of four
        assert isinstance(last, str)
        low.code.append(last.replace(f"[{size}]", f"[{4 * blocks}]"))
        outs = ", ".join(f"{name} + 4 * b + {i}" for i in range(4))
        low.code.append(f"for (int b = 0; b < {blocks}; ++b) sarc_philox({key}, b, {op}, seed, step, {outs});")
        return array
    assert array.flat is not None
    for b in range(blocks):
        outs = ", ".join(f"&u{i}" for i in range(4))
        kept = "".join(f" {array.flat(str(4 * b + i))} = u{i};" for i in range(4) if 4 * b + i < size)
        low.code += [
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


RULES: dict[object, Callable[[Lowering, fx.Node], Value]] = {
    aten.full.default: _full,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten.expand.default: _remap,
    aten.unsqueeze.default: _remap,
    aten.squeeze.dims: _remap,
    aten.permute.default: _remap,
    aten.slice.Tensor: _remap,
    aten.slice_backward.default: _slice_backward,
    aten.select.int: _remap,
    aten.sum.dim_IntList: _fold_features,
    aten.amax.default: _fold_features,
    aten.amin.default: _fold_features,
    aten.cat.default: _cat,
    UNIFORM: _uniform,
}
