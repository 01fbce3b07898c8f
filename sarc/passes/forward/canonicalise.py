"""canonicalise: few forms for many, before anything looks at indices.

Sizes become `Size` operands, creation operators become `full` or `row_ids`, random operators become counter-based
draws, selections by a mask name the rows they select, copies disappear. Every derived space is entered here.

Before:
    count = torch.zeros(x.size(0))
    noise = torch.rand_like(x)
    return (x * noise).t().reshape(-1), count.clone()
After:
    %full_default = aten.full([|N|], 0, dtype=f32)   # model.py:2
    %uniform_default = sarc.uniform(%rng, [|N|, 4], 0)   # model.py:3
    %mul_tensor = aten.mul.Tensor(%x, %uniform_default)   # model.py:4
    %t_default = aten.t(%mul_tensor)   # model.py:4
    %reshape_default = aten.reshape(%t_default, [|4*N|])   # model.py:4
Needs a captured graph with fake values; gives an untyped graph over the spaces, which gain the derived ones.
It does nothing to an operator that has one form already.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
import torch.fx as fx

from sarc.errors import UnsupportedModelError
from sarc.ir.call import location, named_arguments
from sarc.ir.dialect import ROW_IDS, SELECT_ROWS, UNIFORM
from sarc.ir.space import Size, Space, Spaces
from sarc.passes.base import RANDOM, merge_common
from sarc.passes.forward.random_values import random_value

aten = torch.ops.aten

_FILL = {
    aten.zeros: 0, aten.new_zeros: 0, aten.zeros_like: 0, aten.empty: 0, aten.new_empty: 0, aten.empty_like: 0,
    aten.new_empty_strided: 0, aten.empty_strided: 0, aten.ones: 1, aten.new_ones: 1, aten.ones_like: 1,
    aten.full: None, aten.new_full: None, aten.full_like: None,
}  # fmt: skip
_COPIES = {
    aten.clone.default, aten.alias.default, aten.contiguous.default, aten.lift_fresh_copy.default,
    aten.lift_fresh.default, aten.lift.default,
}  # fmt: skip
_CHECKS = {aten._assert_async.default, aten._assert_async.msg, aten._assert_scalar.default}
_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
_IGNORED_KWARGS = ("device", "pin_memory", "layout", "memory_format", "non_blocking", "requires_grad", "implicit")


class Canonicalise:
    """Rewrites one traced graph (fake values in `meta["val"]`) into canonical form.

    Args:
        spaces: the declared spaces; derived ones are added.
        symbols: size symbol of the trace -> size in the symbols of `spaces`; symbols of selections are added.
        rng: name under which the (seed, step) placeholder is made, when a random operator needs it.
    """

    name = "canonicalise"

    def __init__(self, spaces: Spaces, symbols: dict[sympy.Symbol, sympy.Expr]):
        self.spaces, self.symbols = spaces, symbols
        self.rng: fx.Node | None = None
        self.draws = 0

    def run(self, traced: fx.Graph, names: Sequence[str] = ()) -> fx.Graph:
        """The canonical graph; placeholders keep their order and take `names`; "rng" comes last when it is needed."""
        self.names = list(names)
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(traced, env)
        returned = next(n for n in traced.nodes if n.op == "output").args[0]
        graph.output(fx.map_arg(returned, env.__getitem__))
        for node in graph.nodes:
            node.meta = dict(node.meta)
        merge_common(graph, self._unify)
        self.graph = fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            self._visit(node)
        return self.graph

    # --- values

    def expr(self, value) -> sympy.Expr | int | float:
        """A size of the trace in the symbols of the spaces."""
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            expr = value.node.expr
            # A merged selection's symbol stands for the kept one's, which stands for a space: follow the chain.
            while isinstance(expr, sympy.Expr) and expr.free_symbols & self.symbols.keys():
                expr = expr.subs(self.symbols)
            return expr
        return value

    def size(self, value):
        """An operand for a size: a plain number where it is one."""
        expr = self.expr(value)
        if isinstance(expr, sympy.Expr):
            return Size(expr) if expr.free_symbols else (int(expr) if expr.is_Integer else float(expr))
        return expr

    def shape(self, node: fx.Node) -> list:
        return [self.size(length) for length in node.meta["val"].shape]

    def arg(self, tree):
        return fx.map_arg(tree, self.env.__getitem__)

    def emit(self, target: Callable, *args, like: fx.Node | None = None, val=None, **kwargs) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {"loc": self.node.meta.get("loc", ""), "val": self.node.meta.get("val") if val is None else val}
        if like is not None:
            node.meta["val"] = like.meta["val"]
        return node

    def _unify(self, kept: fx.Node, merged: fx.Node) -> None:
        a, b = kept.meta.get("val"), merged.meta.get("val")
        if isinstance(a, torch.Tensor):
            for x, y in zip(a.shape, b.shape, strict=True):
                if isinstance(y, torch.SymInt) and y.node.expr.is_Symbol and isinstance(x, torch.SymInt):
                    if x.node.expr != y.node.expr:
                        self.symbols[y.node.expr] = x.node.expr
        if isinstance(b, torch.SymInt) and b.node.expr.is_Symbol and a.node.expr != b.node.expr:
            self.symbols[b.node.expr] = a.node.expr

    # --- rewriting

    def _visit(self, node: fx.Node) -> None:
        self.node = node
        if node.op == "placeholder":
            made = self.env[node] = self.graph.placeholder(self.names.pop(0) if self.names else node.name)
            made.meta = dict(node.meta)
            return
        if node.op == "output":
            self._add_rng_placeholder()
            self.graph.output(self.arg(node.args[0]))
            return
        val = node.meta.get("val")
        if isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool) and not isinstance(
            val, torch.Tensor
        ):
            self.env[node] = self.size(val)
            return
        target = node.target
        if target in _CHECKS:
            return
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
            packet = target.overloadpacket
            if target in RANDOM:
                self.env[node] = random_value(self, node)
                return
            if packet in _FILL:
                self.env[node] = self._fill(node, _FILL[packet])
                return
            if target in _COPIES:
                self.env[node] = self.arg(node.args[0])
                return
            rewrite = _REWRITES.get(packet)
            if rewrite is not None:
                made = rewrite(self, node)
                if made is not None:
                    self.env[node] = made
                    return
        if target is operator.getitem and isinstance(self.env[node.args[0]], tuple):
            self.env[node] = self.env[node.args[0]][node.args[1]]
            return
        self.env[node] = self._keep(node)

    def _keep(self, node: fx.Node) -> fx.Node:
        args = list(self.arg(node.args))
        kwargs = {k: v for k, v in self.arg(node.kwargs).items() if k not in _IGNORED_KWARGS}
        if node.target in _RESHAPES or node.target is aten.expand.default:
            args[1] = self.shape(node)
        # A copy that made rows contiguous is dropped, so a view may meet any strides: it is a reshape from here on.
        target = aten.reshape.default if node.target in _RESHAPES else node.target
        return self.emit(target, *args, **kwargs)

    def _to_copy(self, node: fx.Node) -> fx.Node:
        dtype = node.kwargs.get("dtype")
        source = self.arg(node.args[0])
        if dtype is None or dtype == node.args[0].meta["val"].dtype:
            return source
        return self.emit(aten._to_copy.default, source, dtype=dtype)

    def _fill(self, node: fx.Node, value) -> fx.Node:
        if value is None:
            given = named_arguments(node)
            value = self.arg(given["fill_value"])
        return self.emit(aten.full.default, self.shape(node), value, dtype=node.meta["val"].dtype)

    def _arange(self, node: fx.Node) -> fx.Node:
        given = named_arguments(node)
        start, step = self.arg(given.get("start", 0)), self.arg(given.get("step", 1))
        (length,) = self.shape(node)
        dtype = node.meta["val"].dtype
        if not isinstance(length, Size):
            end = start + length * step
            return self.emit(aten.arange.start_step, start, end, step, dtype=dtype)
        ids = self.emit(ROW_IDS, length)
        if step != 1:
            ids = self.emit(aten.mul.Tensor, ids, step)
        if start != 0:
            ids = self.emit(aten.add.Tensor, ids, start)
        return ids if dtype == torch.int64 else self.emit(aten._to_copy.default, ids, dtype=dtype)

    def _overwrite(self, node: fx.Node) -> fx.Node:
        """`x.fill_(value)` and `x.copy_(value)`: the value alone, in the shape and dtype of x."""
        value, dtype = self.arg(node.args[1]), node.meta["val"].dtype
        if not isinstance(value, fx.Node):
            return self.emit(aten.full.default, self.shape(node), value, dtype=dtype)
        if node.args[1].meta["val"].dtype != dtype:
            value = self.emit(aten._to_copy.default, value, like=node.args[1], dtype=dtype)
        if self.shape(node.args[1]) == self.shape(node):
            return value
        return self.emit(aten.expand.default, value, self.shape(node))

    def _extremum(self, node: fx.Node) -> tuple | None:
        """`x.max(dim)` over rows, when only the values are read."""
        x, *rest = node.args
        if not rest or not isinstance(x.meta["val"].shape[rest[0]], torch.SymInt):
            return None
        if any(user.args[1] == 1 and user.users for user in node.users):
            return None
        fold = aten.amax.default if node.target is aten.max.dim else aten.amin.default
        keep = rest[1] if len(rest) > 1 else False
        return (self.emit(fold, self.arg(x), [rest[0]], keep, val=node.meta["val"][0]), None)

    def _scalar_tensor(self, node: fx.Node) -> fx.Node:
        return self.emit(aten.full.default, [], self.arg(node.args[0]), dtype=node.meta["val"].dtype)

    def _slice(self, node: fx.Node) -> fx.Node | None:
        """A slice that keeps everything is its operand."""
        source = node.args[0]
        return self.env[source] if self.shape(node) == self.shape(source) else None

    def _slice_scatter(self, node: fx.Node) -> fx.Node | None:
        """A slice written over everything leaves what was written."""
        base, written = node.args[:2]
        return self.env[written] if self.shape(base) == self.shape(written) else None

    def _squeeze(self, node: fx.Node) -> fx.Node:
        shape = node.args[0].meta["val"].shape
        which = node.args[1] if len(node.args) > 1 else range(len(shape))
        which = [which] if isinstance(which, int) else which
        drop = sorted({d % len(shape) for d in which if len(shape)})
        return self.emit(aten.squeeze.dims, self.arg(node.args[0]), [d for d in drop if shape[d] == 1])

    # --- rows selected by a mask

    def _column_of_mask(self, mask: fx.Node, length) -> fx.Node:
        """The `select_rows` column of a boolean mask over rows; `length` is the selection's size in the trace."""
        made = self.env[mask]
        if mask.meta["val"].dim() != 1:
            shape = "x".join(map(str, self.shape(mask)))
            raise UnsupportedModelError(
                f"{location(self.node)}a boolean mask of shape {shape} selects entries; expected a mask "
                f"over rows, of one dimension: use torch.where to mask entries"
            )
        for node in self.graph.nodes:
            if node.target is SELECT_ROWS and node.args[0] is made:
                self.symbols[length.node.expr] = sympy.Symbol(node.meta["space"])
                return node
        parent = self._space_of(mask.meta["val"].shape[0])
        name = self.spaces.fresh_name()
        self.spaces.add(Space(name, "filter", (parent,), made.name, on_edges=self.spaces[parent].on_edges))
        self.symbols[length.node.expr] = sympy.Symbol(name)
        column = self.emit(SELECT_ROWS, made, val=torch.empty(0, dtype=torch.int64))
        column.meta["space"] = name
        column.meta["val"] = mask.meta["val"].new_empty((length,), dtype=torch.int64)
        return column

    def _space_of(self, length) -> str:
        expr = self.expr(length)
        for name, size in self.spaces.sizes.items():
            if size == expr:
                return name
        raise UnsupportedModelError(
            f"{location(self.node)}{expr} rows are selected from, which are the rows of no input and no "
            f"derived set; expected a mask over nodes, edges or rows selected from them"
        )

    def _nonzero(self, node: fx.Node) -> fx.Node:
        column = self._column_of_mask(node.args[0], node.meta["val"].shape[0])
        return self.emit(aten.unsqueeze.default, column, 1)

    def _masked_select(self, node: fx.Node) -> fx.Node:
        column = self._column_of_mask(node.args[1], node.meta["val"].shape[0])
        return self.emit(aten.index.Tensor, self.arg(node.args[0]), [column])

    def _index(self, node: fx.Node) -> fx.Node:
        source, indices = node.args
        columns = []
        for axis, index in enumerate(indices):
            if isinstance(index, fx.Node) and index.meta["val"].dtype in (torch.bool, torch.uint8):
                columns.append(self._column_of_mask(index, node.meta["val"].shape[axis]))
            else:
                columns.append(self.arg(index) if isinstance(index, fx.Node) else index)
        return self.emit(aten.index.Tensor, self.arg(source), columns)

    def _index_put(self, node: fx.Node) -> fx.Node | None:
        source, indices, values, *rest = node.args
        index = indices[0] if indices else None
        if not isinstance(index, fx.Node) or index.meta["val"].dtype != torch.bool:
            return None
        mask, val = self.env[index], values.meta["val"]
        lengths = [n if isinstance(n, int) else None for n in val.shape]
        if index.meta["val"].dim() == source.meta["val"].dim() > 1 and set(lengths) <= {1}:
            return self.emit(aten.where.self, mask, self.arg(values), self.arg(source))
        rows = source.meta["val"].dim() - val.dim()
        if rows >= 1 or lengths[0] == 1:
            shape = [Size(self.expr(index.meta["val"].shape[0])), *([1] * (source.meta["val"].dim() - 1))]
            column = index.meta["val"][(..., *([None] * (len(shape) - 1)))]
            wide = self.emit(aten.reshape.default, mask, shape, val=column)
            written = self.arg(values)
            if rest and rest[0]:
                written = self.emit(aten.add.Tensor, self.arg(source), written)
            return self.emit(aten.where.self, wide, written, self.arg(source))
        column = self._column_of_mask(index, val.shape[0])
        return self.emit(aten.index_put.default, self.arg(source), [column], self.arg(values), *rest)

    def _cat(self, node: fx.Node) -> fx.Node | None:
        shapes = {p: p.meta["val"].shape for p in node.args[0]}
        parts = [p for p in node.args[0] if len(shapes[p]) != 1 or not _is_zero(shapes[p][0])]
        axis = (node.args[1] if len(node.args) > 1 else 0) % parts[0].meta["val"].dim()
        lengths = [p.meta["val"].shape[axis] for p in parts]
        if all(isinstance(n, torch.SymInt) for n in lengths) and len(parts) > 1:
            names = [self._space_named(n) for n in lengths]
            if all(names):
                self.spaces.concat(tuple(names))
        return self.emit(aten.cat.default, [self.env[p] for p in parts], axis) if len(parts) > 1 else self.env[parts[0]]

    def _space_named(self, length) -> str:
        expr = self.expr(length)
        return next((name for name, size in self.spaces.sizes.items() if size == expr), "")

    # --- random operators

    def draw(self, shape: list[Any]) -> fx.Node:
        """Uniform draws of `shape`, numbered in the order of the program."""
        if self.rng is None:
            anchor = next(iter(self.graph.nodes))
            with self.graph.inserting_before(anchor):
                self.rng = self.graph.placeholder("rng")
            self.rng.meta = {"val": None, "loc": ""}
        self.draws += 1
        return self.emit(UNIFORM, self.rng, shape, self.draws - 1)

    def _add_rng_placeholder(self) -> None:
        """Move the rng placeholder behind the others, where callers expect it."""
        if self.rng is None:
            return
        last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
        if last is not self.rng:
            last.append(self.rng)


def _is_zero(length: int | torch.SymInt) -> bool:
    """Whether a length is the number 0: a symbolic one may turn out 0, but is not known to be."""
    return isinstance(length, int) and length == 0


_REWRITES = {
    aten._to_copy: Canonicalise._to_copy,
    aten.arange: Canonicalise._arange,
    aten.scalar_tensor: Canonicalise._scalar_tensor,
    aten.fill: Canonicalise._overwrite,
    aten.copy: Canonicalise._overwrite,
    aten.max: Canonicalise._extremum,
    aten.min: Canonicalise._extremum,
    aten.squeeze: Canonicalise._squeeze,
    aten.slice: Canonicalise._slice,
    aten.slice_scatter: Canonicalise._slice_scatter,
    aten.nonzero: Canonicalise._nonzero,
    aten.masked_select: Canonicalise._masked_select,
    aten.index: Canonicalise._index,
    aten.index_put: Canonicalise._index_put,
    aten.cat: Canonicalise._cat,
}
