"""FoldState: sums that a part makes relative to its own maximum, so that both travel at once.

A softmax's sums are of terms exp(x - m) y, shifted by the maximum m of their row. They need m only as a factor: sums
made relative to another number n are exp(m - n) times those relative to m. So a part that holds some edges of a row
need not know the maximum of all: it takes its own, sends it with its sums, and the row's owner brings the sums of all
parts to one maximum. The maximum and the sums are the *state* of one fold (online softmax, Milakov and Gimelshein 2018,
section 3).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
import torch.fx as fx

from sarc.ir.collective import fetch, give_back
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.program import Program, type_of

aten = torch.ops.aten

# Operators that keep a factor of their operand and act on trailing axes alone.
_KEEPS_FACTOR = {aten.neg.default, aten._to_copy.default, aten.expand.default, aten.unsqueeze.default,
                 aten.reshape.default, aten.view.default, aten.sum.dim_IntList}  # fmt: skip
_APPENDS = {aten.unsqueeze.default, aten.reshape.default, aten.view.default}

# How a body's value depends on the maximum m: m itself, x - m, or exp(-m) times a value that does not.
_MAXIMUM, _EXPONENT, _FACTOR = "maximum", "exponent", "factor"


@dataclass(frozen=True)
class FoldState:
    """The sums of one edge call and the maximum they are relative to.

    Attributes:
        call: of the sums.
        operand: index of the operand that is the maximum of its row.
        value: what it is gathered from: the maximum, or that where a row has edges and a constant elsewhere.
        maximum: the result of another edge call (a getitem) over the same edges, folded to the same rows; of these
            edges alone where other parts have some of their rows.
        sums: indices of the results that have the factor.
    """

    call: fx.Node
    operand: int
    value: fx.Node
    maximum: fx.Node
    sums: tuple[int, ...]

    @property
    def source(self) -> fx.Node:
        """The edge call of the maximum."""
        return self.maximum.args[0]  # type: ignore[return-value]


def find_fold_states(program: Program) -> list[FoldState]:
    """The fold states of a program whose edge programs have no row sets yet, in order."""
    found = []
    for node in program.graph.nodes:
        if node.target is edge_call:
            states = (_state(node, k) for k in range(len(node.args[0].operands)))
            found += of_one_maximum([s for s in states if s is not None])
    return found


def of_one_maximum(states: list[FoldState]) -> list[FoldState]:
    """The states of one edge call; none where a sum is relative to two maxima."""
    sums = [k for state in states for k in state.sums]
    return states if len(sums) == len(set(sums)) else []


def _state(call: fx.Node, operand: int) -> FoldState | None:
    edges, values, columns = call.args
    read = edges.operands[operand]
    if read.column is None:
        return None
    maximum = behind_guard(values[read.value])
    if not is_maximum(maximum, edges.space, columns[read.column]):
        return None
    sums = relative_sums(edges, operand)
    if not sums or not stands_alone(call, operand, maximum):
        return None
    return FoldState(call, operand, values[read.value], maximum, sums)


def stands_alone(call: fx.Node, operand: int, maximum: fx.Node) -> bool:
    """Whether an edge call needs the maximum for this operand alone."""
    edges, values, _ = call.args
    value = edges.operands[operand].value
    if sum(o.value == value for o in edges.operands) > 1:
        return False
    return not any(depends_on(v, maximum) for k, v in enumerate(values) if k != value)


def is_maximum(value: fx.Node, space: str, column: fx.Node) -> bool:
    """Whether a value is the maximum, made by an edge call over `space`, of the rows that `column` names."""
    if value.target is not operator.getitem or value.args[0].target is not edge_call:
        return False
    edges, _, columns = value.args[0].args
    result = edges.results[value.args[1]]
    folds = result.kind == "reduce" and result.fold == "amax" and result.axis == 0
    return edges.space == space and folds and columns[result.column] is column


def behind_guard(value: fx.Node) -> fx.Node:
    """What a value is where rows have edges: `where(has edges, value, constant)` stands for `value`."""
    if value.target is aten.where.self and value.args[2].target is aten.full.default:
        return value.args[1]
    return value


def depends_on(value: fx.Node, other: fx.Node) -> bool:
    """Whether `other` is needed to compute `value`."""
    stack, seen = [value], set()
    while stack:
        node = stack.pop()
        if node is other:
            return True
        if node not in seen:
            seen.add(node)
            stack.extend([picked] if (picked := exchanged(node)) else node.all_input_nodes)
    return False


def exchanged(value: fx.Node) -> fx.Node | None:
    """The value of which a fetch or a give-back made `value`; None where none did."""
    if value.target is operator.getitem and value.args[0].target in (fetch, give_back):
        return value.args[0].args[0][value.args[1]]
    return None


def relative_sums(edges: EdgeProgram, operand: int) -> tuple[int, ...]:
    """Indices of the results that are exp(-m) times a value free of m, of the operand m read through a column.

    Empty when m enters any result in another way, or the factor's axes are not the leading ones of a sum's.
    """
    read = edges.operands[operand]
    inner = [n for n in edges.body.nodes if n.op == "placeholder"]
    if read.axis != 0 or read.column is None or not inner[operand].meta["type"].dtype.is_floating_point:
        return ()
    kinds: dict[fx.Node, str] = {inner[operand]: _MAXIMUM}
    leading = inner[operand].meta["type"].dims
    for node in edges.body.nodes:
        if node.op != "call_function" or not any(n in kinds for n in node.all_input_nodes):
            continue
        kind = _kind(node, kinds)
        type_ = type_of(node)
        if kind is None or type_.dims[: len(leading)] != leading or not type_.dtype.is_floating_point:
            return ()
        if not _aligned(node, kinds, len(leading)):
            return ()
        kinds[node] = kind
    output = next(n for n in reversed(edges.body.nodes) if n.op == "output")
    found = []
    for k, (result, value) in enumerate(zip(edges.results, output.args[0], strict=True)):
        if value not in kinds:
            continue
        to_rows = result.kind == "reduce" and result.fold == "sum" and result.axis == 0
        if kinds[value] != _FACTOR or not to_rows or result.column != read.column:
            return ()
        if type_of(value).dtype != type_of(inner[operand]).dtype:
            return ()
        found.append(k)
    return tuple(found)


def _kind(node: fx.Node, kinds: dict[fx.Node, str]) -> str | None:
    """How a call depends on m; None where it is none of the known ways."""
    given = [kinds.get(n) if isinstance(n, fx.Node) else None for n in node.args]
    first, second = (*given, None, None)[:2]
    if node.target is aten.sub.Tensor and not node.kwargs:
        return {(None, _MAXIMUM): _EXPONENT, (_EXPONENT, None): _EXPONENT, (_FACTOR, _FACTOR): _FACTOR}.get(
            (first, second)
        )
    if node.target is aten.add.Tensor and not node.kwargs:
        known = {(_EXPONENT, None): _EXPONENT, (None, _EXPONENT): _EXPONENT, (_FACTOR, _FACTOR): _FACTOR}
        return known.get((first, second))
    if node.target is aten.exp.default:
        return _FACTOR if first == _EXPONENT else None
    if node.target is aten.mul.Tensor:
        return _FACTOR if {first, second} == {_FACTOR, None} else None
    if node.target is aten.div.Tensor:
        return _FACTOR if (first, second) == (_FACTOR, None) else None
    if node.target in _APPENDS or node.target is aten.expand.default:
        return first
    return first if node.target in _KEEPS_FACTOR and first == _FACTOR else None


def _aligned(node: fx.Node, kinds: dict[fx.Node, str], leading: int) -> bool:
    """Whether the factor stays on the leading axes: operands that have it are as long as the result, views append."""
    rank = len(node.meta["type"].dims)
    for operand in node.all_input_nodes:
        if operand not in kinds:
            continue
        dims = operand.meta["type"].dims
        if node.target in _APPENDS:
            grown = node.meta["type"].dims
            if grown[: len(dims)] != dims or any(d != 1 for d in grown[len(dims) :]):
                return False
        elif node.target is aten.sum.dim_IntList:
            if any(d % len(dims) < leading for d in node.args[1]):
                return False
        elif len(dims) != rank:
            return False
    return True
