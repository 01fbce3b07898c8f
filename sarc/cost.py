"""Cost model: floating-point operations and bytes of programs, as sympy formulas in the sizes of the spaces.

Formulas count what the reference backend does: every operator reads its operands and writes its result, views are
free, an edge program reads a row for each gather and evaluates its body once an edge. In words, a matrix product of
[n, k] and [k, m] costs 2 n k m operations, a pointwise operator one for each entry of its result, a reduction or
softmax one for each entry of its operand.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import sympy
import torch.fx as fx

from sarc.ir.collective import all_reduce, fetch, give_back, tuple_of
from sarc.ir.edge_program import edge_call
from sarc.ir.ops import definition
from sarc.ir.program import Program
from sarc.ir.space import Rows, Spaces, ValueType


@dataclass(frozen=True)
class Cost:
    """Operations and bytes moved, each a formula in the sizes of the spaces (symbols of their names)."""

    flops: sympy.Expr
    nbytes: sympy.Expr

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.nbytes + other.nbytes)

    def at(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Operations and bytes for given sizes."""
        numbers = {sympy.Symbol(name): size for name, size in sizes.items()}
        return int(self.flops.subs(numbers)), int(self.nbytes.subs(numbers))


FREE = Cost(sympy.Integer(0), sympy.Integer(0))


def entries(type_: ValueType, spaces: Spaces) -> sympy.Expr:
    """Number of entries of a value."""
    count = sympy.Integer(1)
    for dim in type_.dims:
        count *= spaces.sizes[dim.space] * dim.before * dim.after if isinstance(dim, Rows) else dim
    return sympy.expand(count)


def nbytes(type_: ValueType, spaces: Spaces) -> sympy.Expr:
    """Bytes of a value."""
    return entries(type_, spaces) * type_.dtype.itemsize


def call_cost(node: fx.Node, spaces: Spaces) -> Cost:
    """Cost of one call of a program or of an edge program's body."""
    if node.target in (operator.getitem, tuple_of):
        return FREE
    if node.target is edge_call:
        return _edge_cost(node, spaces)
    results = _types(node)
    operands = [t for n in node.all_input_nodes for t in _types(n)]
    moved = sum((nbytes(t, spaces) for t in (*operands, *results)), sympy.Integer(0))
    if node.target in (all_reduce, fetch, give_back):
        return Cost(sympy.Integer(0), moved)
    rule = definition(node.target)
    work = rule.work if rule else "entry"
    if work == "view":
        return FREE
    if work == "create":
        return Cost(sympy.Integer(0), nbytes(results[0], spaces))
    if work == "move":
        return Cost(sympy.Integer(0), moved)
    if work == "fold":
        return Cost(entries(operands[0], spaces), moved)
    if work == "product":
        left = node.args[-2].meta["type"]  # what a product is added to stands before its matrices
        inner = entries(ValueType(left.dims[-1:], left.dtype), spaces)
        return Cost(2 * inner * entries(results[0], spaces), moved)
    return Cost(sum((entries(t, spaces) for t in results), sympy.Integer(0)), moved)


def _types(node: fx.Node) -> list[ValueType]:
    types = node.meta["type"]
    return list(types) if isinstance(types, tuple) else [types]


def _edge_cost(node: fx.Node, spaces: Spaces) -> Cost:
    """The body, a read of each operand's row an edge, and a read and a write of each fold's result."""
    program = node.args[0]
    total = FREE
    for operand in program.operands:
        total += Cost(sympy.Integer(0), nbytes(operand.type, spaces))
    for call in program.body.nodes:
        if call.op == "call_function":
            total += Cost(call_cost(call, spaces).flops, sympy.Integer(0))
    returned = next(n for n in reversed(program.body.nodes) if n.op == "output").args[0]
    for result, value in zip(program.results, returned, strict=True):
        folds = entries(value.meta["type"], spaces) if result.kind == "reduce" else sympy.Integer(0)
        total += Cost(folds, 2 * nbytes(result.type, spaces))
    return total


def program_cost(program: Program) -> Cost:
    """Cost of one run of a program."""
    total = FREE
    for node in program.graph.nodes:
        if node.op == "call_function":
            total += call_cost(node, program.spaces)
    return Cost(sympy.expand(total.flops), sympy.expand(total.nbytes))
