"""The op table: for every operator, how rows pass through it.

Shapes and dtypes are inferred by running the operator on meta tensors of surrogate lengths (see `Spaces`); what the
table adds is whether that is legal on rows that are spread over parts, how the rows are laid out in the result, and
which results are partial (a contraction of a space: each part computes a share, an all-reduce completes it).

`TABLE` maps an operator to its rule. Operators tagged pointwise by PyTorch need no entry. An operator without a rule is
legal on replicated values only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.fx as fx
from torch import Tensor

from sarc.errors import UnsupportedModelError
from sarc.ir.dialect import GATHER, REDUCE, ROW_IDS, SELECT_ROWS, UNIFORM
from sarc.ir.program import map_sizes
from sarc.ir.space import Dim, Rows, Size, Space, Spaces, ValueType

aten = torch.ops.aten


@dataclass(frozen=True)
class OpDef:
    """How one operator treats rows.

    Attributes:
        layout: rule that gives the dimensions of the result(s) from those of the operands.
        contracts: all-reduce ("sum", "max", "min") that completes the result when a space is contracted; "" when
            the operator may not contract one.
        doc: the rule in words, for messages and documentation.
    """

    layout: Callable[[Call], tuple[Dim, ...] | list[tuple[Dim, ...]]]
    contracts: str = ""
    doc: str = ""


@dataclass(frozen=True)
class Call:
    """One application of an operator, as rules see it."""

    node: fx.Node
    spaces: Spaces
    arguments: dict[str, object]
    results: tuple[tuple[Dim, ...], ...]

    def type(self, name: str) -> ValueType:
        return self.arguments[name].meta["type"]

    @property
    def operands(self) -> list[ValueType]:
        return [n.meta["type"] for n in self.node.all_input_nodes if isinstance(n.meta["type"], ValueType)]

    def refuse(self, why: str, instead: str) -> UnsupportedModelError:
        shapes = ", ".join(str(t) for t in self.operands)
        return UnsupportedModelError(
            f"{location(self.node)}{op_name(self.node.target)}({shapes}) {why}; {instead}"
        )


def location(node: fx.Node) -> str:
    """"file:line: " of the user's code for messages, or ""."""
    return f"{node.meta['loc']}: " if node.meta.get("loc") else ""


def op_name(target) -> str:
    """The operator's name as printed: `aten.add.Tensor`, `sarc.gather`, `getitem`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    return getattr(target, "__name__", str(target))


MIXES_ROWS = (
    "mixes rows of different owners",
    "rows may meet through gather and reduce along edges, or in a sum, mean, max or min over all rows",
)


# --- layout rules -----------------------------------------------------------------------------------------------------


def pointwise(call: Call) -> tuple[Dim, ...]:
    """Broadcast from the right; rows stay where they are."""
    out = list(call.results[0])
    for operand in call.operands:
        for axis, dim in enumerate(reversed(operand.dims)):
            place = len(out) - 1 - axis
            if not isinstance(dim, Rows):
                if isinstance(out[place], Rows) and dim != 1:
                    raise call.refuse(*MIXES_ROWS)
                continue
            if isinstance(out[place], Rows) and _resolved(call, out, place, dim) is None:
                raise call.refuse(
                    f"combines rows of {out[place]} with rows of {dim}",
                    "expected operands over the same rows: gather one of them to the other's rows first",
                )
            out[place] = dim
    return tuple(out)


def _resolved(call: Call, out: list[Dim], place: int, dim: Rows) -> Rows | None:
    """`dim` when it agrees with what is known of the result's dimension at `place`, else None."""
    size = call.spaces.surrogates
    known = out[place]
    if size[known.space] * known.before * known.after != size[dim.space] * dim.before * dim.after:
        return None
    marks = getattr(call, "_seen", None)
    if marks is None:
        marks = {}
        object.__setattr__(call, "_seen", marks)
    if place in marks and marks[place] != dim:
        return None
    marks[place] = dim
    return dim


def created(call: Call) -> tuple[Dim, ...]:
    """A creation operator: the lengths name the spaces."""
    return call.results[0]


def same(call: Call) -> tuple[Dim, ...]:
    """The result has the dimensions of the first operand."""
    return call.operands[0].dims


def view(call: Call) -> tuple[Dim, ...]:
    """Reshape: the entries before and after the rows may be regrouped, the rows stay whole."""
    return reshape_dims(call, call.operands[0].dims, call.results[0])


def reshape_dims(call: Call, dims: tuple[Dim, ...], out: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rows = [axis for axis, dim in enumerate(dims) if isinstance(dim, Rows)]
    if not rows:
        return out
    if len(rows) > 1:
        if [d for d in out if d != 1] == [d for d in dims if d != 1]:
            return out
        raise call.refuse("regroups two row dimensions", "reshape before the rows meet")
    axis = rows[0]
    dim: Rows = dims[axis]
    before = math.prod(dims[:axis]) * dim.before
    result = list(out)
    for place, got in enumerate(out):
        if not isinstance(got, Rows):
            before_here = None
            continue
        outer = math.prod(d for d in out[:place] if not isinstance(d, Rows))
        factor = got.before * got.after
        if outer == 0 or before % outer or factor % (before // outer):
            raise call.refuse("splits the row dimension", "keep the rows whole in a reshape")
        result[place] = Rows(dim.space, before // outer, factor // (before // outer))
        return tuple(result)
    del before_here
    raise call.refuse("loses the row dimension", "keep the rows whole in a reshape")


def expand(call: Call) -> tuple[Dim, ...]:
    """Broadcast to a shape; a dimension that is not broadcast keeps its rows."""
    out = list(call.results[0])
    dims = call.operands[0].dims
    for axis, dim in enumerate(reversed(dims)):
        if isinstance(dim, Rows):
            out[len(out) - 1 - axis] = dim
    return tuple(out)


def permute(call: Call) -> tuple[Dim, ...]:
    dims = call.operands[0].dims
    order = call.arguments.get("dims")
    return tuple(dims[axis % len(dims)] for axis in order)


def transpose(call: Call) -> tuple[Dim, ...]:
    dims = list(call.operands[0].dims)
    if "dim0" in call.arguments:
        a, b = call.arguments["dim0"], call.arguments["dim1"]
        dims[a], dims[b] = dims[b], dims[a]
        return tuple(dims)
    return tuple(reversed(dims))


def unsqueeze(call: Call) -> tuple[Dim, ...]:
    dims = list(call.operands[0].dims)
    dims.insert(call.arguments["dim"] % (len(dims) + 1), 1)
    return tuple(dims)


def squeeze(call: Call) -> tuple[Dim, ...]:
    """Drops dimensions of length one; a row dimension is never one of them, even where a part owns one row."""
    dims = call.operands[0].dims
    which = call.arguments.get("dim")
    which = range(len(dims)) if which is None else [which] if isinstance(which, int) else which
    drop = {axis % len(dims) for axis in which}
    return tuple(dim for axis, dim in enumerate(dims) if not (axis in drop and dim == 1))


def axis_of(call: Call, name: str = "dim") -> int:
    dims = call.operands[0].dims
    return call.arguments.get(name, 0) % max(len(dims), 1)


def along_features(call: Call):
    """Works along `dim`, which must not hold rows; the other dimensions keep theirs."""
    dims = call.operands[0].dims
    axis = axis_of(call)
    if dims and isinstance(dims[axis], Rows):
        raise call.refuse(*MIXES_ROWS)
    outs = []
    for out in call.results:
        if len(out) == len(dims):
            outs.append(tuple(out[a] if a == axis else dims[a] for a in range(len(dims))))
        else:
            outs.append(tuple(d for a, d in enumerate(dims) if a != axis))
    return outs if len(outs) > 1 or _returns_several(call) else outs[0]


def _returns_several(call: Call) -> bool:
    returns = call.node.target._schema.returns
    return len(returns) > 1 or "[]" in str(returns[0].type)


def select(call: Call) -> tuple[Dim, ...]:
    dims = call.operands[0].dims
    axis = axis_of(call)
    if isinstance(dims[axis], Rows):
        raise call.refuse("picks one row by position", "select rows by a mask or by an index column")
    return dims[:axis] + dims[axis + 1 :]


def slice_(call: Call) -> tuple[Dim, ...]:
    """A slice of features, the whole row dimension, or one part of a concatenation of row sets."""
    dims = call.operands[0].dims
    axis = axis_of(call)
    dim, out = dims[axis], list(dims)
    out[axis] = call.results[0][axis]
    if not isinstance(dim, Rows):
        return tuple(out)
    if out[axis] == Rows(dim.space, 1, dim.before * dim.after):
        out[axis] = dim
        return tuple(out)
    bounds = concat_bounds(call.spaces, call.spaces[dim.space])
    start, end = _surrogate(call, call.arguments.get("start") or 0), _surrogate(call, call.arguments.get("end"))
    part = bounds.get((start, end if end is not None else call.spaces.surrogates[dim.space]))
    if part is None or not dim.plain or call.arguments.get("step", 1) != 1:
        raise call.refuse("slices rows by position", "select rows by a mask or by an index column")
    out[axis] = Rows(part)
    return tuple(out)


def concat_bounds(spaces: Spaces, space: Space) -> dict[tuple[int, int], str]:
    """For a concat: surrogate (start, end) of each part -> the part's space."""
    bounds, start = {}, 0
    if space.kind == "concat":
        for parent in space.parents:
            end = start + spaces.surrogates[parent]
            bounds[start, end] = parent
            start = end
    return bounds


def _surrogate(call: Call, bound) -> int | None:
    if bound is None:
        return None
    value = map_sizes(bound, lambda size: size.value(call.spaces.surrogates))
    return None if value >= 2**62 else value


def cat(call: Call) -> tuple[Dim, ...]:
    """Concatenation of features, or of whole row sets (a derived space)."""
    parts = [t.dims for t in call.operands_in_order()] if hasattr(call, "operands_in_order") else None
    parts = [n.meta["type"].dims for n in call.arguments["tensors"]]
    parts = [p for p in parts if p != (0,)]
    axis = call.arguments.get("dim", 0) % len(parts[0])
    out = list(parts[0])
    if not any(isinstance(p[axis], Rows) for p in parts):
        for p in parts:
            if any(p[a] != out[a] for a in range(len(out)) if a != axis):
                raise call.refuse(*MIXES_ROWS)
        out[axis] = sum(p[axis] for p in parts)
        return tuple(out)
    if not all(isinstance(p[axis], Rows) and p[axis].plain for p in parts):
        raise call.refuse(
            "appends replicated rows to partitioned ones", "give every appended row an owner: concatenate row sets"
        )
    out[axis] = Rows(call.spaces.concat(tuple(p[axis].space for p in parts)).name)
    return tuple(out)


def stack(call: Call) -> tuple[Dim, ...]:
    parts = [n.meta["type"].dims for n in call.arguments["tensors"]]
    if any(p != parts[0] for p in parts):
        raise call.refuse(*MIXES_ROWS)
    out = list(parts[0])
    out.insert(call.arguments.get("dim", 0) % (len(out) + 1), len(parts))
    return tuple(out)


def over_dims(call: Call):
    """A reduction over `dim`; reducing a row dimension is a contraction."""
    dims = call.operands[0].dims
    reduced = reduced_axes(call.node, call.arguments, dims)
    keep = bool(call.arguments.get("keepdim", False))
    out = tuple(1 if a in reduced else d for a, d in enumerate(dims) if keep or a not in reduced)
    return [out] * len(call.results) if _returns_several(call) else out


def reduced_axes(node: fx.Node, arguments: dict, dims: tuple[Dim, ...]) -> set[int]:
    which = arguments.get("dim")
    if which is None or which == []:
        return set(range(len(dims)))
    which = [which] if isinstance(which, int) else which
    return {axis % len(dims) for axis in which}


def flip(call: Call) -> tuple[Dim, ...]:
    dims = call.operands[0].dims
    if any(isinstance(dims[a], Rows) for a in call.arguments["dims"]):
        raise call.refuse("reorders rows by position", "reorder rows through an index column")
    return dims


def repeat(call: Call) -> tuple[Dim, ...]:
    dims = call.operands[0].dims
    out = list(call.results[0])
    for axis, dim in enumerate(reversed(dims)):
        if isinstance(dim, Rows):
            place = len(out) - 1 - axis
            times = out[place].before * out[place].after // (dim.before * dim.after)
            out[place] = Rows(dim.space, dim.before * times, dim.after)
    return tuple(out)


def matmul(call: Call) -> tuple[Dim, ...]:
    """mm and bmm: rows of the left stay rows; a space contracted on both sides is a contraction."""
    a, b = call.operands_by_name("self", "mat2")
    if a.dims[-1] != b.dims[-2]:
        raise call.refuse(*MIXES_ROWS)
    batch = a.dims[:-2]
    if any(x != y for x, y in zip(batch, b.dims[:-2], strict=True)):
        raise call.refuse(*MIXES_ROWS)
    out = (*batch, a.dims[-2], b.dims[-1])
    if sum(isinstance(d, Rows) for d in out) > 1:
        raise call.refuse(
            "makes a matrix of rows by rows (every node against every other)",
            "score pairs of nodes along edges: gather both ends and reduce over the last dimension",
        )
    return out


def gather(call: Call) -> tuple[Dim, ...]:
    """Rows named by a column: the row dimension becomes the column's."""
    x, column, axis = call.type("x"), call.type("column"), call.arguments["axis"]
    out = list(x.dims)
    if isinstance(out[axis], Rows) and not out[axis].plain:
        raise call.refuse("gathers from flattened rows", "unflatten the rows before the gather")
    out[axis] = column.dims[0]
    return tuple(out)


def reduce(call: Call) -> tuple[Dim, ...]:
    rows, column, axis = call.type("rows"), call.type("column"), call.arguments["axis"]
    if rows.dims[axis] != column.dims[0]:
        raise call.refuse(
            f"folds rows of {rows.dims[axis]} by a column over {column.dims[0]}", "expected one column entry a row"
        )
    out = list(rows.dims)
    out[axis] = call.results[0][axis]
    return tuple(out)


def select_rows(call: Call) -> tuple[Dim, ...]:
    mask = call.node.args[0]
    (dim,) = mask.meta["type"].dims
    for space in call.spaces:
        if space.kind == "filter" and space.mask == mask.name:
            return (Rows(space.name),)
    parent = call.spaces[dim.space]
    made = Space(call.spaces.fresh_name(), "filter", (dim.space,), mask.name, on_edges=parent.on_edges)
    return (Rows(call.spaces.add(made).name),)


def feature_index(call: Call) -> tuple[Dim, ...]:
    """gather / scatter along features: row-wise when index and source hold the same rows."""
    dims = call.operands[0].dims
    axis = axis_of(call)
    if isinstance(dims[axis], Rows):
        raise call.refuse(*MIXES_ROWS)
    index = call.arguments["index"].meta["type"].dims
    for a in range(len(dims)):
        if a != axis and (isinstance(dims[a], Rows) or isinstance(index[a], Rows)) and dims[a] != index[a]:
            raise call.refuse(*MIXES_ROWS)
    if call.node.target is aten.gather.default:
        return index
    return dims


def getitem(call: Call) -> tuple[Dim, ...]:
    return call.node.args[0].meta["type"][call.node.args[1]].dims


def select_backward(call: Call) -> tuple[Dim, ...]:
    axis = call.arguments["dim"]
    out = call.results[0]
    grad = list(call.operands[0].dims)
    grad.insert(axis % len(out), out[axis % len(out)])
    return tuple(grad)


def scatter_along(call: Call) -> tuple[Dim, ...]:
    """select_scatter / slice_scatter: features of a row are replaced."""
    dims = call.operands[0].dims
    if isinstance(dims[axis_of(call)], Rows):
        raise call.refuse("writes rows by position", "select rows by a mask or by an index column")
    return dims


def slice_backward(call: Call) -> tuple[Dim, ...]:
    axis = call.arguments["dim"] % len(call.results[0])
    grad = call.operands[0].dims
    if isinstance(grad[axis], Rows) and grad[axis] != call.results[0][axis]:
        raise call.refuse("slices rows by position", "select rows by a mask or by an index column")
    return tuple(call.results[0][a] if a == axis else d for a, d in enumerate(grad))


def _operands_by_name(self: Call, *names: str) -> list[ValueType]:
    return [self.arguments[name].meta["type"] for name in names]


Call.operands_by_name = _operands_by_name  # type: ignore[attr-defined]


TABLE: dict[object, OpDef] = {
    GATHER: OpDef(gather, doc="rows named by a column"),
    REDUCE: OpDef(reduce, "sum", doc="fold of rows by a column"),
    ROW_IDS: OpDef(created, doc="ids of the rows"),
    SELECT_ROWS: OpDef(select_rows, doc="ids of the rows where a mask holds"),
    UNIFORM: OpDef(created, doc="uniform draws keyed by row"),
    operator.getitem: OpDef(getitem),
    aten.full.default: OpDef(created),
    aten.scalar_tensor.default: OpDef(created),
    aten.arange.start_step: OpDef(created),
    aten.eye.default: OpDef(created),
    aten.view.default: OpDef(view),
    aten._unsafe_view.default: OpDef(view),
    aten.reshape.default: OpDef(view),
    aten.expand.default: OpDef(expand),
    aten.permute.default: OpDef(permute),
    aten.t.default: OpDef(transpose),
    aten.transpose.int: OpDef(transpose),
    aten.unsqueeze.default: OpDef(unsqueeze),
    aten.squeeze.default: OpDef(squeeze),
    aten.squeeze.dim: OpDef(squeeze),
    aten.squeeze.dims: OpDef(squeeze),
    aten.select.int: OpDef(select),
    aten.slice.Tensor: OpDef(slice_),
    aten.cat.default: OpDef(cat),
    aten.stack.default: OpDef(stack),
    aten.flip.default: OpDef(flip),
    aten.repeat.default: OpDef(repeat),
    aten.mm.default: OpDef(matmul, "sum"),
    aten.bmm.default: OpDef(matmul, "sum"),
    aten.sum.default: OpDef(over_dims, "sum"),
    aten.sum.dim_IntList: OpDef(over_dims, "sum"),
    aten.amax.default: OpDef(over_dims, "max"),
    aten.amin.default: OpDef(over_dims, "min"),
    aten.max.default: OpDef(over_dims, "max"),
    aten.min.default: OpDef(over_dims, "min"),
    aten.any.default: OpDef(over_dims, "max"),
    aten.any.dim: OpDef(over_dims, "max"),
    aten.any.dims: OpDef(over_dims, "max"),
    aten.all.default: OpDef(over_dims, "min"),
    aten.all.dim: OpDef(over_dims, "min"),
    aten.prod.dim_int: OpDef(over_dims),
    aten.max.dim: OpDef(over_dims),
    aten.min.dim: OpDef(over_dims),
    aten.argmax.default: OpDef(over_dims),
    aten.argmin.default: OpDef(over_dims),
    aten.logsumexp.default: OpDef(over_dims),
    aten.linalg_vector_norm.default: OpDef(over_dims),
    aten.mean.dim: OpDef(over_dims),
    aten.var.correction: OpDef(over_dims),
    aten._softmax.default: OpDef(along_features),
    aten._log_softmax.default: OpDef(along_features),
    aten._softmax_backward_data.default: OpDef(along_features),
    aten._log_softmax_backward_data.default: OpDef(along_features),
    aten.cumsum.default: OpDef(along_features),
    aten.cumprod.default: OpDef(along_features),
    aten.sort.default: OpDef(along_features),
    aten.sort.stable: OpDef(along_features),
    aten.topk.default: OpDef(along_features),
    aten.split.Tensor: OpDef(along_features),
    aten.split_with_sizes.default: OpDef(along_features),
    aten.unsafe_split.Tensor: OpDef(along_features),
    aten.unsafe_split_with_sizes.default: OpDef(along_features),
    aten.unbind.int: OpDef(along_features),
    aten.index_select.default: OpDef(along_features),
    aten.glu.default: OpDef(along_features),
    aten.glu_backward.default: OpDef(same),
    aten.gather.default: OpDef(feature_index),
    aten.scatter.value: OpDef(feature_index),
    aten.scatter.src: OpDef(feature_index),
    aten.scatter_add.default: OpDef(feature_index),
    aten.select_backward.default: OpDef(select_backward),
    aten.slice_backward.default: OpDef(slice_backward),
    aten.select_scatter.default: OpDef(scatter_along),
    aten.slice_scatter.default: OpDef(scatter_along),
    aten.detach.default: OpDef(same),
    aten.clone.default: OpDef(same),
    aten._to_copy.default: OpDef(same),
    aten.elu_backward.default: OpDef(pointwise),
    aten.threshold_backward.default: OpDef(pointwise),
    aten.leaky_relu_backward.default: OpDef(pointwise),
    aten.gelu_backward.default: OpDef(pointwise),
    aten.softplus_backward.default: OpDef(pointwise),
    aten.log_sigmoid_forward.default: OpDef(lambda call: [call.operands[0].dims, (0,)]),
    aten.log_sigmoid_backward.default: OpDef(same),
}
POINTWISE = OpDef(pointwise, doc="row by row")


def definition(target) -> OpDef | None:
    """The rule of an operator; None when sarc knows none (legal on replicated values only)."""
    found = TABLE.get(target)
    if found is None and isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return POINTWISE
    return found


# --- inference --------------------------------------------------------------------------------------------------------


def named_arguments(node: fx.Node) -> dict[str, object]:
    """The call's operands by schema name."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(enumerate(node.args))
    schema = node.target._schema.arguments
    return {**{spec.name: value for spec, value in zip(schema, node.args, strict=False)}, **node.kwargs}


def infer(node: fx.Node, spaces: Spaces) -> ValueType | tuple[ValueType, ...]:
    """The type of a call from the types of its operands.

    Raises:
        UnsupportedModelError: the operator may not be applied to rows like these.
    """
    if node.target is operator.getitem:
        return node.args[0].meta["type"][node.args[1]]
    rule = definition(node.target)
    if node.target is SELECT_ROWS:
        call = Call(node, spaces, {}, ())
        return ValueType(select_rows(call), torch.int64)
    try:
        results = _meta_results(node, spaces)
    except (RuntimeError, IndexError, ValueError) as error:
        call = Call(node, spaces, named_arguments(node), ())
        raise call.refuse(
            f"does not fit rows like these ({_in_spaces(str(error).splitlines()[0], spaces)})",
            "expected operands over the same rows: use sizes of the tensors themselves (x.size(0)) for shapes",
        ) from error
    flat = tuple(tuple(spaces.of_number(length) for length in r.shape) for r in results)
    call = Call(node, spaces, named_arguments(node), flat)
    carries_rows = any(isinstance(d, Rows) for dims in flat for d in dims) or any(t.spaces for t in call.operands)
    if not carries_rows:
        types = tuple(ValueType(dims, r.dtype) for dims, r in zip(flat, results, strict=True))
        return types if _returns_several(call) else types[0]
    if rule is None:
        raise call.refuse("is not known to work row by row", "write it with operators of docs/ops.md, or apply it to replicated values")
    dims = rule.layout(call)
    many = isinstance(dims, list)
    dims = dims if many else [dims]
    types = tuple(ValueType(tuple(d), r.dtype) for d, r in zip(dims, results, strict=True))
    if contracted(node, types[0]) and not rule.contracts:
        raise call.refuse(*MIXES_ROWS)
    return types if many else types[0]


def contracted(node: fx.Node, result: ValueType) -> bool:
    """Whether the call contracts a space, so that each part's result is a share of the whole."""
    if node.target in (GATHER, SELECT_ROWS, ROW_IDS, UNIFORM, aten.cat.default, aten.slice.Tensor):
        return False
    if node.target is operator.getitem or not isinstance(result, ValueType):
        return False
    if node.target is REDUCE:
        return not isinstance(result.dims[node.args[2]], Rows)
    before = {s for n in node.all_input_nodes if isinstance(n.meta["type"], ValueType) for s in n.meta["type"].spaces}
    return bool(before - set(result.spaces))


def _in_spaces(message: str, spaces: Spaces) -> str:
    """`message` with surrogate lengths replaced by the names of their spaces."""
    for name, length in sorted(spaces.surrogates.items(), key=lambda item: -item[1]):
        message = message.replace(str(length), name)
    return message


def _meta_results(node: fx.Node, spaces: Spaces) -> tuple[Tensor, ...]:
    def stand_in(value):
        if isinstance(value, fx.Node):
            return _meta_of(value.meta["type"], spaces)
        return value

    surrogate = lambda tree: map_sizes(tree, lambda size: size.value(spaces.surrogates))  # noqa: E731
    args = surrogate(fx.map_arg(node.args, stand_in))
    kwargs = surrogate(fx.map_arg(node.kwargs, stand_in))
    if "device" in kwargs or node.target in (aten.full.default, aten.eye.default, aten.scalar_tensor.default, aten.arange.start_step):
        kwargs = {**kwargs, "device": "meta"}
    result = node.target(*args, **kwargs)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _meta_of(type_, spaces: Spaces):
    if isinstance(type_, tuple):
        return tuple(_meta_of(t, spaces) for t in type_)
    lengths = [
        spaces.surrogates[d.space] * d.before * d.after if isinstance(d, Rows) else d for d in type_.dims
    ]
    return torch.empty(lengths, dtype=type_.dtype, device="meta")


def size_of(dim: Dim, spaces: Spaces):
    """The operand that stands for a dimension's length."""
    return Size(spaces.sizes[dim.space] * (dim.before * dim.after)) if isinstance(dim, Rows) else dim


def resolve_sizes(node: fx.Node, args, kwargs, local: Mapping[str, int], total: Mapping[str, int]):
    """Operands with numbers for sizes: local rows where the operator takes a shape, whole-graph rows elsewhere."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return args, kwargs
    specs = node.target._schema.arguments
    # Schemas call lengths `int` (also in lists) and factors `number`.
    shapes = {spec.name for spec in specs if "int" in str(spec.real_type)}

    def number(name, value):
        sizes = local if name in shapes else total
        return map_sizes(value, lambda size: size.value(sizes))

    return (
        tuple(number(spec.name, value) for spec, value in zip(specs, args, strict=False)),
        {name: number(name, value) for name, value in kwargs.items()},
    )
