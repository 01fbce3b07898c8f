"""raise-graph-ops: every index operator on rows becomes a gather or a reduce by a column; the program becomes typed.

Which node or edge an index names is read from where it comes from, never from names: an index that is a column
broadcast by views is that column. Overwriting scatters become sums of the winning rows, chosen by structure alone.

Before:
    out = x.new_zeros(x.size(0), 4)
    return out.index_add(0, dst, x[src])
After:
    %full_default: f32[N, 4] = aten.full([|N|, 4], 0, dtype=f32)   # model.py:2
    %gather_default: f32[E, 4] = sarc.gather(%x, %src, 0)   # model.py:3
    %reduce_default: f32[N, 4] = sarc.reduce(%gather_default, %dst, 0, |N|, 'sum')   # model.py:3
Needs a canonical graph and the types of its placeholders; gives a typed graph in which rows meet only through columns
and contractions.
It does nothing to calls that index no rows: they are typed as they stand.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from sarc.errors import UnsupportedModelError
from sarc.ir.call import location, named_arguments, op_name
from sarc.ir.dialect import GATHER, REDUCE, ROW_IDS
from sarc.ir.layout_rules import static_length
from sarc.ir.nearest_form import SELECT_BY_MASK
from sarc.ir.ops import size_of
from sarc.ir.space import Rows, Size, Spaces, ValueType
from sarc.passes.base import Builder, merge_common

aten = torch.ops.aten

_VIEWS = {
    aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims, aten.detach.default,
    aten.slice.Tensor,
}  # fmt: skip


class RaiseGraphOps:
    """Rewrites a canonical, untyped graph into a typed one in the graph dialect.

    Args:
        spaces: all spaces of the graph.
        types: type of each placeholder, in order.
    """

    name = "raise-graph-ops"

    def __init__(self, spaces: Spaces, types: list[ValueType]):
        self.spaces, self.types = spaces, types

    def run(self, canonical: fx.Graph) -> fx.Graph:
        graph = fx.Graph()
        self.builder = Builder(graph, self.spaces)
        self.env: dict[fx.Node, fx.Node] = {}
        types = iter(self.types)
        for node in canonical.nodes:
            self.builder.loc = node.meta.get("loc", "")
            if node.op == "placeholder":
                made = graph.placeholder(node.name)
                made.meta = {"type": next(types), "loc": ""}
            elif node.op == "output":
                made = graph.output(fx.map_arg(node.args[0], self.env.__getitem__))
            else:
                made = self._visit(node)
                if made.name != node.name and isinstance(made, fx.Node):
                    self._keep_filter_name(node, made)
            self.env[node] = made
        merge_common(graph, lambda kept, merged: self._keep_filter_name(merged, kept))
        return graph

    def _keep_filter_name(self, old: fx.Node, new: fx.Node) -> None:
        """A filter is named by its mask: rename the mask in the filter when the mask's node was renamed."""
        for space in list(self.spaces):
            if space.kind == "filter" and space.mask == old.name:
                self.spaces.rename_mask(space.name, new.name)

    def _visit(self, node: fx.Node) -> fx.Node:
        same = self._same_column(node)
        if same is not None:
            return same
        rewrite = _REWRITES.get(node.target)
        made = rewrite(self, node) if rewrite else None
        if made is not None:
            return made
        return self.builder.call(node.target, *self._arg(node.args), **self._arg(node.kwargs))

    def _same_column(self, node: fx.Node) -> fx.Node | None:
        """The column that a view reshapes to another rank and back, or to the length that it has."""
        ends = (aten.reshape.default, aten.squeeze.dims, aten.expand.default)
        if node.target not in ends or node.meta["val"].dim() != 1:
            return None
        found = node.args[0]
        views = (aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dims)
        while found.target in views and self._rank(found) != 1:
            found = found.args[0]
        lengths = [str(f.meta["val"].shape[0]) for f in (found, node) if f.meta["val"].dim() == 1]
        return self.env[found] if len(lengths) == 2 and lengths[0] == lengths[1] else None

    def _arg(self, tree):
        return fx.map_arg(tree, self.env.__getitem__)

    def _type(self, node: fx.Node) -> ValueType:
        return self.env[node].meta["type"]

    def _refuse(self, node: fx.Node, why: str, instead: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{location(node)}{op_name(node.target)} {why}; {instead}")

    # --- columns

    def _column(self, index: fx.Node, axis: int) -> fx.Node | None:
        """The 1-D column that `index` broadcasts along `axis`, or None when entries differ across other axes."""
        length = self._type(index).dims[axis]
        found = index
        while self._rank(found) != 1:
            if found.target not in _VIEWS:
                return self._narrow(index, axis)
            found = found.args[0]
            if self._rank(found) == 0:
                return None
        column = self.env[found]
        return column if column.meta["type"].dims[0] == length else None

    def _narrow(self, index: fx.Node, axis: int) -> fx.Node | None:
        """The column of an index whose other axes have length one."""
        dims = self._type(index).dims
        if any(d != 1 for a, d in enumerate(dims) if a != axis):
            return None
        return self.builder.call(aten.reshape.default, self.env[index], [size_of(dims[axis], self.spaces)])

    def _rank(self, node: fx.Node) -> int:
        return len(self._type(node).dims)

    def _constant(self, node: fx.Node):
        """The number that fills `node`, or None."""
        while node.target in _VIEWS or node.target is aten._to_copy.default:
            node = node.args[0]
        return node.args[1] if node.target is aten.full.default and not isinstance(node.args[1], fx.Node) else None

    def _has_rows(self, node: fx.Node, axis: int) -> bool:
        return isinstance(self._type(node).dims[axis], Rows)

    # --- gathers

    def _gather(self, node: fx.Node, x: fx.Node, column: fx.Node, axis: int) -> fx.Node:
        dim, rows = x.meta["type"].dims[axis], column.meta["type"].dims[0]
        if isinstance(dim, Rows) and not isinstance(rows, Rows):
            raise self._refuse(
                node,
                f"picks {rows} fixed rows of {dim}",
                f"expected an index with rows of its own (nodes, edges): {SELECT_BY_MASK}",
            )
        return self.builder.call(GATHER, x, column, axis)

    def _index_select(self, node: fx.Node) -> fx.Node | None:
        x, axis, index = node.args
        axis %= self._rank(x)
        if not self._has_rows(x, axis) and not self._has_rows(index, 0):
            return None
        return self._gather(node, self.env[x], self.env[index], axis)

    def _embedding(self, node: fx.Node) -> fx.Node:
        weight, index = node.args[:2]
        return self._gather_shaped(node, self.env[weight], self.env[index], 0)

    def _gather_shaped(self, node: fx.Node, x: fx.Node, index: fx.Node, axis: int) -> fx.Node:
        """Rows of `x` for an index of any rank."""
        dims = index.meta["type"].dims
        if len(dims) == 1:
            if not isinstance(x.meta["type"].dims[axis], Rows) and not isinstance(dims[0], Rows):
                return self.builder.call(aten.index_select.default, x, axis, index)
            return self._gather(node, x, index, axis)
        length = 1
        for d in dims:
            length = _times(length, size_of(d, self.spaces))
        flat = self.builder.call(aten.reshape.default, index, [length])
        picked = self._gather_shaped(node, x, flat, axis)
        shape = [size_of(d, self.spaces) for d in x.meta["type"].dims]
        shape[axis : axis + 1] = [size_of(d, self.spaces) for d in dims]
        return self.builder.call(aten.reshape.default, picked, shape)

    def _index(self, node: fx.Node) -> fx.Node | None:
        x, indices = node.args
        used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
        if not any(self._type(i).spaces for _, i in used) and not any(self._has_rows(x, a) for a, _ in used):
            return None
        if len(used) == 1:
            axis, index = used[0]
            return self._gather_shaped(node, self.env[x], self.env[index], axis)
        axes = [axis for axis, _ in used]
        if axes != list(range(axes[0], axes[0] + len(axes))):
            raise self._refuse(node, "indexes axes that are not adjacent", "index one axis at a time")
        dims = self._type(x).dims
        if len(used) == 2 and used[0][1].target is ROW_IDS and self._type(used[0][1]).dims[0] == dims[axes[0]]:
            return self._pick_feature(node, x, used[1][1], axes)
        if any(self._has_rows(x, axis) for axis in axes):
            raise self._refuse(
                node, "indexes rows and features at once", "gather the rows first, then torch.gather features"
            )
        flat = self.env[x]
        column = None
        for axis, index in used:
            column = self.env[index] if column is None else self.builder.call(
                aten.add.Tensor, self.builder.call(aten.mul.Tensor, column, dims[axis]), self.env[index]
            )
        shape = [size_of(d, self.spaces) for d in dims]
        length = static_length(tuple(dims[axis] for axis in axes))
        flat = self.builder.call(aten.reshape.default, flat, [*shape[: axes[0]], length, *shape[axes[-1] + 1 :]])
        return self._gather_shaped(node, flat, column, axes[0])

    def _pick_feature(self, node: fx.Node, x: fx.Node, index: fx.Node, axes: list[int]) -> fx.Node | None:
        """x[arange(N), y]: one feature of each row."""
        if self._rank(x) != 2 or axes != [0, 1]:
            raise self._refuse(node, "picks one feature a row of a tensor of rank above 2", "use torch.gather")
        column = self.builder.call(aten.unsqueeze.default, self.env[index], 1)
        return self.builder.call(aten.squeeze.dims, self.builder.call(aten.gather.default, self.env[x], 1, column), [1])

    def _gather_op(self, node: fx.Node) -> fx.Node | None:
        x, axis, index = node.args[:3]
        axis %= self._rank(x)
        if not self._has_rows(x, axis) and not (self._has_rows(index, axis)):
            return None
        column = self._column(index, axis)
        others = [(a, d) for a, d in enumerate(self._type(x).dims) if a != axis]
        if column is None or any(self._type(index).dims[a] != d for a, d in others):
            raise self._refuse(node, "names a different row for each feature", "gather whole rows: one index a row")
        return self._gather(node, self.env[x], column, axis)

    # --- folds

    def _fold(self, node: fx.Node, base: fx.Node, axis: int, index: fx.Node, rows, kind: str, include_self: bool):
        """`base` with `rows` folded in by `index` along `axis`, as PyTorch's scatter family defines it."""
        axis %= max(self._rank(base), 1)
        if not self._has_rows(base, axis) and not self._has_rows(index, axis if self._rank(index) > 1 else 0):
            return None
        column = self.env[index] if self._rank(index) == 1 else self._column(index, axis)
        if column is None:
            raise self._refuse(node, "scatters each feature to a different row", "scatter whole rows: one index a row")
        messages = self._messages(base, axis, column, rows)
        target = self._type(base).dims[axis]
        if not isinstance(column.meta["type"].dims[0], Rows):
            raise self._refuse(
                node, f"writes {column.meta['type'].dims[0]} fixed rows of {target}", SELECT_BY_MASK
            )
        if isinstance(target, Rows) and not target.plain:
            raise self._refuse(node, "scatters to flattened rows", "unflatten the rows first")
        size = size_of(target, self.spaces)
        start, call = self._constant(base), self.builder.call
        base = self.env[base]
        if kind == "sum":
            folded = call(REDUCE, messages, column, axis, size, "sum")
            if include_self:
                return folded if start == 0 else call(aten.add.Tensor, base, folded)
            return self._where_hit(column, axis, size, folded, base)
        if kind == "mean":
            folded = call(REDUCE, messages, column, axis, size, "sum")
            count = self._count(column, axis, size, base)
            if include_self:
                return call(aten.div.Tensor, call(aten.add.Tensor, base, folded), call(aten.add.Tensor, count, 1))
            mean = call(aten.div.Tensor, folded, call(aten.clamp.default, count, 1))
            return self._where_hit(column, axis, size, mean, base)
        if kind in ("amax", "amin"):
            folded = call(REDUCE, messages, column, axis, size, kind)
            if not include_self:
                return self._where_hit(column, axis, size, folded, base)
            if start == (float("-inf") if kind == "amax" else float("inf")):
                return folded
            return call(aten.maximum.default if kind == "amax" else aten.minimum.default, base, folded)
        if kind == "last":
            return self._overwrite(column, axis, size, messages, base)
        raise self._refuse(node, f"folds rows by {kind}", "expected sum, mean, amax or amin")

    def _messages(self, base: fx.Node, axis: int, column: fx.Node, rows) -> fx.Node:
        """The rows to fold, broadcast to the base's features; scalars and single rows are spread."""
        dims = list(self._type(base).dims)
        dims[axis] = column.meta["type"].dims[0]
        shape = [size_of(d, self.spaces) for d in dims]
        if not isinstance(rows, fx.Node):
            return self.builder.call(aten.full.default, shape, rows, dtype=self._type(base).dtype)
        made = self.env[rows]
        if made.meta["type"].dims != tuple(dims):
            made = self.builder.call(aten.expand.default, made, shape)
        if made.meta["type"].dtype != self._type(base).dtype:
            made = self.builder.call(aten._to_copy.default, made, dtype=self._type(base).dtype)
        return made

    def _count(self, column: fx.Node, axis: int, size, like: fx.Node) -> fx.Node:
        """How many rows each target receives, shaped to broadcast against `like`, in its dtype."""
        dtype = like.meta["type"].dtype
        ones = self.builder.call(aten.full.default, [size_of(column.meta["type"].dims[0], self.spaces)], 1, dtype=dtype)
        count = self.builder.call(REDUCE, ones, column, 0, size, "sum")
        return self._spread(count, axis, size, like)

    def _spread(self, value: fx.Node, axis: int, size, like: fx.Node) -> fx.Node:
        shape = [1] * len(like.meta["type"].dims)
        shape[axis] = size
        return self.builder.call(aten.reshape.default, value, shape) if len(shape) > 1 else value

    def _where_hit(self, column: fx.Node, axis: int, size, folded: fx.Node, base: fx.Node) -> fx.Node:
        """`folded` where a target receives rows, `base` where it receives none."""
        hit = self.builder.call(aten.gt.Scalar, self._count(column, axis, size, base), 0)
        return self.builder.call(aten.where.self, hit, folded, base)

    def _overwrite(self, column: fx.Node, axis: int, size, messages: fx.Node, base: fx.Node) -> fx.Node:
        """Last writer wins: of the rows with one target, the one with the largest id."""
        call = self.builder.call
        dim = column.meta["type"].dims[0]
        ids = call(ROW_IDS, size_of(dim, self.spaces))
        last = call(REDUCE, ids, column, 0, size, "amax")
        wins = call(aten.eq.Tensor, call(GATHER, last, column, 0), ids)
        wins = self._spread(wins, axis, size_of(dim, self.spaces), messages)
        # A losing row adds m - detach(m): nothing to the value, but PyTorch's derivative passes gradients to it.
        silent = call(aten.sub.Tensor, messages, call(aten.detach.default, messages))
        folded = call(REDUCE, call(aten.where.self, wins, messages, silent), column, axis, size, "sum")
        return self._where_hit(column, axis, size, folded, base)

    def _scatter_add(self, node: fx.Node):
        base, axis, index, rows = node.args
        return self._fold(node, base, axis, index, rows, "sum", True)

    def _index_add(self, node: fx.Node):
        given = named_arguments(node)
        if given.get("alpha", 1) != 1:
            raise self._refuse(node, "scales what it adds (alpha)", "multiply the rows first")
        return self._fold(node, given["self"], given["dim"], given["index"], given["source"], "sum", True)

    def _scatter_reduce(self, node: fx.Node):
        given = named_arguments(node)
        kind, keep = given["reduce"], given.get("include_self", True)
        rows = given.get("src", given.get("source"))
        return self._fold(node, given["self"], given["dim"], given["index"], rows, kind, keep)

    def _scatter(self, node: fx.Node):
        given = named_arguments(node)
        rows = given.get("src", given.get("value"))
        return self._fold(node, given["self"], given["dim"], given["index"], rows, "last", False)

    def _index_copy(self, node: fx.Node):
        base, axis, index, rows = node.args
        return self._fold(node, base, axis, index, rows, "last", False)

    def _index_fill(self, node: fx.Node):
        base, axis, index, value = node.args
        return self._fold(node, base, axis, index, value, "last", False)

    def _index_put(self, node: fx.Node):
        base, indices, rows = node.args[:3]
        used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
        if len(used) != 1 or self._rank(used[0][1]) != 1:
            if not any(self._has_rows(base, a) for a, _ in used) and not any(self._type(i).spaces for _, i in used):
                return None
            raise self._refuse(node, "writes by several indices", "write whole rows: one index along one axis")
        axis, index = used[0]
        accumulate = node.args[3] if len(node.args) > 3 else False
        return self._fold(node, base, axis, index, rows, "sum" if accumulate else "last", accumulate)


def _times(a, b):
    expr = (a.expr if isinstance(a, Size) else a) * (b.expr if isinstance(b, Size) else b)
    return Size(expr) if not isinstance(expr, int) else expr


_R = RaiseGraphOps
_REWRITES = {
    aten.index_select.default: _R._index_select,
    aten.embedding.default: _R._embedding,
    aten.index.Tensor: _R._index,
    aten.gather.default: _R._gather_op,
    aten.scatter_add.default: _R._scatter_add,
    aten.index_add.default: _R._index_add,
    aten.scatter_reduce.two: _R._scatter_reduce,
    aten.index_reduce.default: _R._scatter_reduce,
    aten.scatter.src: _R._scatter,
    aten.scatter.value: _R._scatter,
    aten.index_copy.default: _R._index_copy,
    aten.index_fill.int_Scalar: _R._index_fill,
    aten.index_fill.int_Tensor: _R._index_fill,
    aten.index_put.default: _R._index_put,
}
