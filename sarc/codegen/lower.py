"""Lowering: the values of an edge program's body as C++ expressions and small local arrays.

A value is a reader: C++ for its element at an index of its features. Row-wise operators are read through (inlined); a
value that several readers need, or one of another kind, is computed once into an array: a row's, a block's (narrow
values, one array entry an edge: `t[feature * 64 + q]`), or an edge's (wide values).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.fx as fx

from sarc.codegen.block_layout import LANES, layout_of
from sarc.codegen.body import Body, features, width
from sarc.codegen.expression import C_TYPES, STORED_WIDE
from sarc.codegen.loops import Declaration, Loop
from sarc.codegen.operators import RULES, pointwise
from sarc.codegen.value import BLOCK, COMPARISONS, VIEWS, Value, linear, nest
from sarc.codegen.vectors import MARK, NoVector, read, store, vector_type
from sarc.codegen.views import Index, NoKernel
from sarc.ir.edge_program import fold_to_rows, take_rows
from sarc.ir.space import Rows, ValueType

aten = torch.ops.aten


class Lowering(ABC):
    """The readers of a body's values, and the statements that fill their arrays.

    Attributes:
        declared: declarations of arrays, at the start of a chunk.
        row: statements of a row, by the pass before which they stand.
        vector: type of the wide values, where loops over them may have a vector form, or "".
        code: where statements go that fill arrays of edge values: a list of the phase at hand.
    """

    def __init__(self, body: Body):
        self.body, self.program, self.layout = body, body.program, layout_of(body)
        self.values: dict[fx.Node, Value] = {}
        self.names: dict[fx.Node, str] = {}
        self.edge_values: dict[fx.Node, Value] = {}
        self.declared: list[str] = []
        self.row: dict[int, list[str]] = {}
        self.spread: dict[fx.Node, Value] = {}
        self.code: list[str | Loop] = []
        self.pointers: dict[str, str] = {}
        self.vector = vector_type(body)

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
        if self._is_comparison(node):
            return node in body.roots.values()
        if body.uses[node] > 1 or node in body.roots.values() or body.sinks(node) or self._is_widened(node):
            return True
        (reader,) = body.readers(node)
        same = body.passes[reader] == body.passes[node] and body.phases[reader] == body.phases[node]
        return not same or body.is_wide(reader) or reader.target in (fold_to_rows, aten.cat.default)

    def _is_comparison(self, node: fx.Node) -> bool:
        """Whether a narrow value compares stored values: done again by each reader, as storing truth values is dear."""
        stored = [n in self.body.in_row or n.op == "placeholder" or self.body.uses[n] > 1 for n in node.all_input_nodes]
        return node.target in COMPARISONS and all(stored)

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
        self.emit(node, value.dims, lambda at: store(array.element(at), value.element(at)))
        return array

    def emit(self, node: fx.Node, dims: tuple, fill: Callable[[Index], str]) -> None:
        """Add the loops that compute a value: over its features, and for narrow values over the block's edges."""
        if node in self.body.in_row:
            self.row.setdefault(self.body.passes[node], []).extend(nest(dims, fill).lines())
        elif self.body.is_wide(node) or self.body.sinks(node):
            self.code.append(nest(dims, fill, fill if self.vector else None))
        else:
            self.code += self.layout.loops(dims, fill)

    def in_lanes(self, node: fx.Node) -> Value:
        """The reader of a row's value in loops over the lanes of a block: repeated in an array of whole vectors."""
        value, layout = self.value(node), self.layout
        if not layout.width or node not in self.body.in_row or width(node) != layout.width:
            return value
        if node not in self.spread:
            name, dims = f"lanes{len(self.spread)}", value.dims
            kind = self.compute_type(node.meta["type"].dtype)
            self.declared.append(f"alignas(64) {kind} {name}[{LANES}];")
            at = ["0" if isinstance(d, Rows) or d == 1 else layout.lane for d in dims]
            fill = f"for (int l = 0; l < {LANES}; ++l) {name}[l] = {value.element(at)};"
            self.row.setdefault(self.body.passes[node], []).append(fill)

            def element(index: Index) -> str:
                return f"{name}[l]" if linear(index, dims) == layout.lane else value.element(index)

            self.spread[node] = Value(element, dims)
        return self.spread[node]

    def new_array(self, node: fx.Node) -> Value:
        """An array for a value, declared where it lives."""
        dims, kind = node.meta["type"].dims, self.compute_type(node.meta["type"].dtype)
        name = self.names.setdefault(node, f"t{len(self.names)}")
        loc = f"  // {node.meta['loc']}" if node.meta.get("loc") else ""
        size = max(math.prod(features(dims)), 1)
        if node in self.body.in_row or self.body.is_wide(node):
            declared = self.declared if node in self.body.in_row else self.code
            declared.append(Declaration(f"{kind} {name}[{size}];{loc}"))
            return self.array_of(name, dims)
        line = f"alignas(64) {kind} {name}[{size} * {BLOCK}] = {{}};{loc}"
        if line not in self.declared:
            self.declared.append(line)

        return self.layout.array(name, dims)

    def array_of(self, name: str, dims: tuple) -> Value:
        """The reader of an array that holds one row's features."""
        return Value(lambda at: read(name, linear(at, dims)), dims, True, lambda i: read(name, i))

    def compute_type(self, dtype: torch.dtype) -> str:
        if dtype not in C_TYPES:
            raise NoKernel(f"values of {dtype}")
        return C_TYPES[dtype]

    # --- leaves: filled in by the kernel, which knows where the rows are

    @abstractmethod
    def _leaf(self, node: fx.Node) -> Value:
        """The reader of an operand."""

    def memory(self, name: str, node: fx.Node) -> Value:
        """The reader of a row of a table that starts at the pointer `name`."""
        type_ = node.meta["type"]

        def at(i: str) -> str:
            if type_.dtype not in STORED_WIDE and type_.dtype != torch.bool:
                return read(name, i)
            if MARK in i:
                raise NoVector(i)
            return f"({name}[{i}] != 0)" if type_.dtype == torch.bool else f"sarc_load({name}[{i}])"

        return Value(lambda index: at(linear(index, type_.dims)), type_.dims, True, at)

    # --- calls

    def _call(self, node: fx.Node) -> Value:
        type_ = node.meta["type"]
        self.compute_type(type_.dtype)
        if node.target is take_rows:
            source = self.value(node.args[0])
            return Value(source.element, type_.dims, True, source.flat)
        rule = RULES.get(node.target)
        return rule(self, node) if rule else pointwise(self, node)
