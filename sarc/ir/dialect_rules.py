"""Layout rules of the graph dialect: rows that columns name, that parts own, and that a mask selects.

They are rules like those of `layout_rules.py`, which has ATen's.
"""

from __future__ import annotations

from sarc.ir.call import Call, Dims
from sarc.ir.space import Rows, Space


def gather(call: Call) -> Dims:
    """Rows named by a column: the row dimension becomes the column's."""
    x, column, axis = call.type("x"), call.type("column"), call.arguments["axis"]
    out = list(x.dims)
    source = out[axis]
    if isinstance(source, Rows) and not source.plain:
        raise call.refuse("gathers from flattened rows", "unflatten the rows before the gather")
    out[axis] = column.dims[0]
    return tuple(out)


def reduce(call: Call) -> Dims:
    """Fold of rows by a column; into a static length it is a contraction."""
    rows, column, axis = call.type("rows"), call.type("column"), call.arguments["axis"]
    if rows.dims[axis] != column.dims[0]:
        raise call.refuse(
            f"folds rows of {rows.dims[axis]} by a column over {column.dims[0]}", "expected one column entry a row"
        )
    out = list(rows.dims)
    out[axis] = call.results[0][axis]
    return tuple(out)


def owned(call: Call) -> Dims:
    """Between rows that a part reaches and those of them that it owns."""
    out = list(call.type("x").dims)
    axis = call.arguments["axis"]
    ends = (out[axis], call.results[0][axis])
    spaces = [call.spaces[d.space] for d in ends if isinstance(d, Rows) and d.plain]
    if len(spaces) < 2 or not any(s.kind == "reach" and o.name in s.parents for s, o in (spaces, spaces[::-1])):
        raise call.refuse("takes rows by position", "expected rows of a reach and of its parent")
    out[axis] = ends[1]
    return tuple(out)


def segment_ids(call: Call) -> Dims:
    """The segments follow each other in the order of the rows, which rows of a selection do not know on a part."""
    for dim in (*call.type("lengths").dims, *call.results[0]):
        if isinstance(dim, Rows) and call.spaces.is_selected(dim.space):
            raise call.refuse("counts rows of a selection", "fold all rows, with zeros where a row is not selected")
    return call.results[0]


def select_rows(call: Call) -> Dims:
    """Ids of the rows where a mask holds: a derived space of its own."""
    mask = call.node.args[0]
    (dim,) = mask.meta["type"].dims
    for space in call.spaces:
        if space.kind == "filter" and space.mask == mask.name:
            return (Rows(space.name),)
    parent = call.spaces[dim.space]
    made = Space(call.spaces.fresh_name(), "filter", (dim.space,), mask.name, on_edges=parent.on_edges)
    return (Rows(call.spaces.add(made).name),)
