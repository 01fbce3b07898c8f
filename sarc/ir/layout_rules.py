"""Layout rules: how each kind of operator lays out rows in its results.

A rule takes a `Call` and returns the dimensions of its result (a list of them for several results), or refuses with the
user's line, the operands' types and the nearest supported form. Its first docstring line is the rule in words:
messages and docs/ops.md show it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sarc.ir.call import MIXES_ROWS, PAIRS_ROWS, Call, Dims
from sarc.ir.program import map_sizes
from sarc.ir.space import Rows, Space, Spaces

aten = torch.ops.aten

def pointwise(call: Call) -> Dims:
    """Row by row: broadcast from the right; rows stay where they are."""
    out = list(call.results[0])
    rows: dict[int, Rows] = {}
    for operand in call.operands:
        for axis, dim in enumerate(reversed(operand.dims)):
            place = len(out) - 1 - axis
            known = out[place]
            if not isinstance(dim, Rows):
                if isinstance(known, Rows) and dim != 1:
                    raise call.refuse(*MIXES_ROWS)
                continue
            if isinstance(known, Rows) and not (_same_length(call, known, dim) and rows.get(place, dim) == dim):
                raise call.refuse(
                    f"combines rows of {known} with rows of {dim}",
                    "expected operands over the same rows: gather one of them to the other's rows first",
                )
            rows[place] = out[place] = dim
    return tuple(out)


def _same_length(call: Call, a: Rows, b: Rows) -> bool:
    size = call.spaces.surrogates
    return size[a.space] * a.before * a.after == size[b.space] * b.before * b.after


def created(call: Call) -> Dims:
    """A creation operator: the lengths name the spaces."""
    return call.results[0]


def same(call: Call) -> Dims:
    """The result has the dimensions of the first operand."""
    return call.operands[0].dims


def view(call: Call) -> Dims:
    """Reshape: the entries before and after the rows may be regrouped, the rows stay whole."""
    return reshape_dims(call, call.operands[0].dims, call.results[0])


def reshape_dims(call: Call, dims: Dims, out: Dims) -> Dims:
    """`out` with the layout of flattened rows that reshaping `dims` gives."""
    rows = [axis for axis, dim in enumerate(dims) if isinstance(dim, Rows)]
    if not rows:
        return out
    if len(rows) > 1:
        if [d for d in out if d != 1] == [d for d in dims if d != 1]:
            return out
        raise call.refuse("regroups two row dimensions", "reshape before the rows meet")
    dim = dims[rows[0]]
    assert isinstance(dim, Rows)
    before = static_length(dims[: rows[0]]) * dim.before
    for place, got in enumerate(out):
        if not isinstance(got, Rows):
            continue
        outer = static_length(out[:place])
        factor = got.before * got.after
        if outer == 0 or before % outer or factor % (before // outer):
            raise call.refuse("splits the row dimension", "keep the rows whole in a reshape")
        return (*out[:place], Rows(dim.space, before // outer, factor // (before // outer)), *out[place + 1 :])
    raise call.refuse("loses the row dimension", "keep the rows whole in a reshape")


def static_length(dims: Dims) -> int:
    """Product of the dimensions that hold no rows."""
    return math.prod(d for d in dims if not isinstance(d, Rows))


def expand(call: Call) -> Dims:
    """Broadcast to a shape; a dimension that is not broadcast keeps its rows."""
    out = list(call.results[0])
    dims = call.operands[0].dims
    for axis, dim in enumerate(reversed(dims)):
        if isinstance(dim, Rows):
            out[len(out) - 1 - axis] = dim
    return tuple(out)


def permute(call: Call) -> Dims:
    """Axes in another order."""
    dims = call.operands[0].dims
    return tuple(dims[axis % len(dims)] for axis in call.arguments["dims"])


def transpose(call: Call) -> Dims:
    """Two axes change places."""
    dims = list(call.operands[0].dims)
    if "dim0" in call.arguments:
        a, b = call.arguments["dim0"], call.arguments["dim1"]
        dims[a], dims[b] = dims[b], dims[a]
        return tuple(dims)
    return tuple(reversed(dims))


def unsqueeze(call: Call) -> Dims:
    """A new axis of length one."""
    dims = list(call.operands[0].dims)
    dims.insert(call.arguments["dim"] % (len(dims) + 1), 1)
    return tuple(dims)


def squeeze(call: Call) -> Dims:
    """Drops axes of length one; a row axis is never one of them, even where a part owns one row."""
    dims = call.operands[0].dims
    which = call.arguments.get("dim")
    which = range(len(dims)) if which is None else [which] if isinstance(which, int) else which
    drop = {axis % len(dims) for axis in which}
    return tuple(dim for axis, dim in enumerate(dims) if not (axis in drop and dim == 1))


def axis_of(call: Call, name: str = "dim") -> int:
    dims = call.operands[0].dims
    default = next((a.default_value for a in call.node.target._schema.arguments if a.name == name), None)
    return call.arguments.get(name, default or 0) % max(len(dims), 1)


def along_features(call: Call) -> Dims | list[Dims]:
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
    return outs if len(outs) > 1 or call.returns_several else outs[0]


def select(call: Call) -> Dims:
    """One entry of an axis that holds no rows."""
    dims = call.operands[0].dims
    axis = axis_of(call)
    if isinstance(dims[axis], Rows):
        raise call.refuse("picks one row by position", "select rows by a mask or by an index column")
    return dims[:axis] + dims[axis + 1 :]


def slice_(call: Call) -> Dims:
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
    start = _surrogate(call, call.arguments.get("start"), 0)
    end = _surrogate(call, call.arguments.get("end"), call.spaces.surrogates[dim.space])
    part = bounds.get((start, end))
    if part is None or not dim.plain or call.arguments.get("step", 1) != 1:
        raise call.refuse("slices rows by position", "select rows by a mask or by an index column")
    out[axis] = Rows(part)
    return tuple(out)


def concat_bounds(spaces: Spaces, space: Space) -> dict[tuple[int, int], str]:
    """For a concat: surrogate (start, end) of each part -> the part's space."""
    bounds: dict[tuple[int, int], str] = {}
    start = 0
    if space.kind == "concat":
        for parent in space.parents:
            end = start + spaces.surrogates[parent]
            bounds[start, end] = parent
            start = end
    return bounds


def _surrogate(call: Call, bound: Any, default: int) -> int:
    """A slice bound in surrogate lengths; `default` where it is open."""
    if bound is None:
        return default
    value = map_sizes(bound, lambda size: size.value(call.spaces.surrogates))
    return default if value >= 2**62 else value


def cat(call: Call) -> Dims:
    """Concatenation of features, or of whole row sets (a derived space)."""
    parts: list[Dims] = [n.meta["type"].dims for n in call.arguments["tensors"]]
    parts = [p for p in parts if p != (0,)]
    axis = call.arguments.get("dim", 0) % len(parts[0])
    out = list(parts[0])
    if not any(isinstance(p[axis], Rows) for p in parts):
        for p in parts:
            if any(p[a] != out[a] for a in range(len(out)) if a != axis):
                raise call.refuse(*MIXES_ROWS)
        out[axis] = sum(static_length((p[axis],)) for p in parts)
        return tuple(out)
    spaces = tuple(d.space for d in (p[axis] for p in parts) if isinstance(d, Rows) and d.plain)
    if len(spaces) < len(parts):
        raise call.refuse(
            "appends replicated rows to partitioned ones", "give every appended row an owner: concatenate row sets"
        )
    out[axis] = Rows(call.spaces.concat(spaces).name)
    return tuple(out)


def stack(call: Call) -> Dims:
    """Operands over the same rows along a new axis."""
    parts = [n.meta["type"].dims for n in call.arguments["tensors"]]
    if any(p != parts[0] for p in parts):
        raise call.refuse(*MIXES_ROWS)
    out = list(parts[0])
    out.insert(call.arguments.get("dim", 0) % (len(out) + 1), len(parts))
    return tuple(out)


def over_dims(call: Call) -> Dims | list[Dims]:
    """A reduction over `dim`; reducing a row dimension is a contraction."""
    dims = call.operands[0].dims
    reduced = reduced_axes(call.arguments, dims)
    keep = bool(call.arguments.get("keepdim", False))
    out = tuple(1 if a in reduced else d for a, d in enumerate(dims) if keep or a not in reduced)
    return [out] * len(call.results) if call.returns_several else out


def reduced_axes(arguments: dict[str, Any], dims: Dims) -> set[int]:
    """The axes that `dim` names: all of them when it is absent or empty."""
    which = arguments.get("dim")
    if which is None or which == []:
        return set(range(len(dims)))
    which = [which] if isinstance(which, int) else which
    return {axis % len(dims) for axis in which}


def flip(call: Call) -> Dims:
    """Axes without rows in reverse."""
    dims = call.operands[0].dims
    if any(isinstance(dims[a], Rows) for a in call.arguments["dims"]):
        raise call.refuse("reorders rows by position", "reorder rows through an index column")
    return dims


def repeat(call: Call) -> Dims:
    """Copies along each axis; copies of the rows are major."""
    dims = call.operands[0].dims
    out = list(call.results[0])
    for axis, dim in enumerate(reversed(dims)):
        place = len(out) - 1 - axis
        got = out[place]
        if isinstance(dim, Rows) and isinstance(got, Rows):
            times = got.before * got.after // (dim.before * dim.after)
            out[place] = Rows(dim.space, dim.before * times, dim.after)
    return tuple(out)


def matmul(call: Call) -> Dims:
    """mm and bmm: rows of the left stay rows; a space contracted on both sides is a contraction."""
    a, b = call.type("self"), call.type("mat2")
    if a.dims[-1] != b.dims[-2]:
        raise call.refuse(*MIXES_ROWS)
    if a.dtype != b.dtype:
        raise call.refuse("multiplies two dtypes", "expected one dtype: convert the input or the model, x.to(dtype)")
    batch = a.dims[:-2]
    if any(x != y for x, y in zip(batch, b.dims[:-2], strict=True)):
        raise call.refuse(*MIXES_ROWS)
    out = (*batch, a.dims[-2], b.dims[-1])
    if sum(isinstance(d, Rows) for d in out) > 1:
        raise call.refuse(*PAIRS_ROWS)
    return out


def add_product(call: Call) -> Dims:
    """addmm_: a product of rows with a replicated matrix, added to a table of its type."""
    table, a, b = call.type("self"), call.type("mat1"), call.type("mat2")
    out = (a.dims[0], b.dims[1])
    if a.dims[1] != b.dims[0] or isinstance(a.dims[1], Rows) or table.dims != out:
        raise call.refuse(*MIXES_ROWS)
    return out


def product_over(call: Call) -> Dims:
    """mm_: a product of rows with a replicated matrix that is no wider than high, written over the rows."""
    table, matrix = call.type("self"), call.type("mat2")
    high, wide = matrix.dims
    if isinstance(high, Rows) or isinstance(wide, Rows) or high != table.dims[1] or wide > high:
        raise call.refuse(*MIXES_ROWS)
    return (table.dims[0], wide)


def feature_index(call: Call) -> Dims:
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


def select_backward(call: Call) -> Dims:
    """Zeros but for one entry of an axis that holds no rows."""
    axis = call.arguments["dim"]
    out = call.results[0]
    grad = list(call.operands[0].dims)
    grad.insert(axis % len(out), out[axis % len(out)])
    return tuple(grad)


def scatter_along(call: Call) -> Dims:
    """select_scatter / slice_scatter: features of a row are replaced."""
    dims = call.operands[0].dims
    if isinstance(dims[axis_of(call)], Rows):
        raise call.refuse("writes rows by position", "select rows by a mask or by an index column")
    axis, source = axis_of(call), call.type("src").dims
    if len(source) == len(dims):
        source = source[:axis] + source[axis + 1 :]
    if source != dims[:axis] + dims[axis + 1 :]:
        raise call.refuse(*MIXES_ROWS)
    return dims


def slice_backward(call: Call) -> Dims:
    """Zeros but for a range of an axis that holds no rows."""
    axis = call.arguments["dim"] % len(call.results[0])
    grad = call.operands[0].dims
    if isinstance(grad[axis], Rows) and grad[axis] != call.results[0][axis]:
        raise call.refuse("slices rows by position", "select rows by a mask or by an index column")
    return tuple(call.results[0][a] if a == axis else d for a, d in enumerate(grad))


def rows_and_nothing(call: Call) -> list[Dims]:
    """Row by row, with an empty second result."""
    return [call.operands[0].dims, (0,)]
