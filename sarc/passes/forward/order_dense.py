"""order-dense: a sum over neighbours and a matrix product change places where the gathered row gets narrower.

(sum_j w_j x_j) W = sum_j w_j (x_j W), for weights w of one number an edge. Rows are gathered, and exchanged, in the
narrower of the two widths; equal widths keep the user's order. Scalings by one number a node commute as well: a mean, a
degree's root. A product that something else reads, or that a bias is added to before it is gathered, stays.

Before:
    program raised
    space N = nodes
    space E = edges on edges
    %x: f32[N, 8] = input arg x
    %w: f32[8, 2] = input param w
    %e: f32[E, 1] = input arg e
    %src: i64[E] = input arg src
    %dst: i64[E] = input arg dst
    %xj: f32[E, 8] = sarc.gather(%x, %src, 0)   # model.py:8
    %m: f32[E, 8] = aten.mul.Tensor(%xj, %e)   # model.py:8
    %s: f32[N, 8] = sarc.reduce(%m, %dst, 0, |N|, 'sum')   # model.py:8
    %out: f32[N, 2] = aten.mm(%s, %w)   # model.py:9
    return result 0 = %out
After:
    program raised
    space N = nodes
    space E = edges on edges
    %x: f32[N, 8] = input arg x
    %w: f32[8, 2] = input param w
    %e: f32[E, 1] = input arg e
    %src: i64[E] = input arg src
    %dst: i64[E] = input arg dst
    %mm_default: f32[N, 2] = aten.mm(%x, %w)   # model.py:9
    %gather_default: f32[E, 2] = sarc.gather(%mm_default, %src, 0)   # model.py:8
    %mul_tensor: f32[E, 2] = aten.mul.Tensor(%gather_default, %e)   # model.py:8
    %reduce_default: f32[N, 2] = sarc.reduce(%mul_tensor, %dst, 0, |N|, 'sum')   # model.py:8
    return result 0 = %reduce_default
Needs a raised program; gives one in which sums over edges that are linear in one table gather its narrower form.
It does nothing where widths are equal, but for data and where memory counts, or where something else reads either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx

from sarc.ir.binding_times import DATA, binding_times
from sarc.ir.dialect import GATHER, REDUCE
from sarc.ir.finite_rows import infinite_on_empty
from sarc.ir.program import Input, Program, type_of
from sarc.ir.space import Rows
from sarc.passes.base import Builder, tidy

aten = torch.ops.aten

_SCALINGS = {aten.mul.Tensor, aten.div.Tensor, aten.neg.default}


@dataclass(frozen=True)
class Order:
    """A sum over edges and a matrix product that change places.

    Attributes:
        last: the call whose value is made anew.
        table: f[N, F] to start from.
        weights: of the product.
        chain: gather, scalings, reduce, scalings, in order.
        product_first: whether the table is multiplied before it is gathered.
    """

    last: fx.Node
    table: fx.Node
    weights: fx.Node
    chain: tuple[fx.Node, ...]
    product_first: bool


class OrderDense:
    """Rewrites a raised program, or a step.

    Args:
        wrt: inputs that need gradients, where that is known: the other arguments are data, and a sum of data comes
            before a product whatever the widths, since it is made once (see bind-data).
        tight: memory counts more than time. Of equal widths the product of a table that needs a gradient comes first:
            its own is then of the table, which the layer before keeps as well, and not of the sum, a table more.
    """

    name = "order-dense"

    def __init__(self, wrt: frozenset[Input] | None = None, tight: bool = False):
        self.wrt, self.tight = wrt, tight

    def run(self, program: Program) -> Program:
        own = program.copy()
        changed = False
        # A product passes one hop at a time.
        while (found := find_order(own, self.wrt, self.tight)) is not None:
            reorder(own, found)
            changed = True
        return own if changed else program


def find_order(program: Program, wrt: frozenset[Input] | None = None, tight: bool = False) -> Order | None:
    """The first place where a product and a sum should change places."""
    unsafe = infinite_on_empty(program)
    times = binding_times(program, wrt)

    def are_data(*nodes: fx.Node) -> bool:
        return wrt is not None and all(times[n] <= DATA for n in nodes)

    for node in program.graph.nodes:
        if node.target is aten.mm.default and not type_of(node.args[1]).spaces and len(node.args[0].users) == 1:
            chain = _chain_up(node.args[0])
            if chain is None or are_data(node.args[0]):
                continue
            table = chain[0].args[0]
            moved = tight and not are_data(table) and type_of(table).dims[1:] == type_of(node).dims[1:]
            if (moved or _narrows(node, table)) and table not in unsafe:
                return Order(node, table, node.args[1], chain, product_first=True)
        elif node.target is REDUCE:
            chain = _chain_up(node)
            product = None if chain is None else chain[0].args[0]
            if chain is None or product is None or product.target is not aten.mm.default or len(product.users) > 1:
                continue
            x, weights = product.args
            if type_of(weights).spaces or type_of(x).dims[0] != type_of(product).dims[0]:
                continue
            if _narrows(x, product) or are_data(x, *_scalings_of(chain)):
                return Order(node, x, weights, chain, product_first=False)
    return None


def _scalings_of(chain: tuple[fx.Node, ...]) -> list[fx.Node]:
    """What the calls of a chain read beside each other."""
    return [n for call in chain for n in call.all_input_nodes if n not in chain and n is not chain[0].args[0]]


def _narrows(a: fx.Node, b: fx.Node) -> bool:
    """Whether rows of `a` are narrower than rows of `b`, in one dtype."""
    first, second = type_of(a), type_of(b)
    return first.dtype == second.dtype and first.dims[1] < second.dims[1]  # type: ignore[operator]


def _chain_up(node: fx.Node) -> tuple[fx.Node, ...] | None:
    """The gather, scalings and one sum that make `node` from one table of rank 2; None where it is made otherwise.

    Nothing but the chain reads what is inside it.
    """
    chain: list[fx.Node] = []
    folded = False
    while True:
        type_ = type_of(node)
        inner = node.op != "call_function" or (bool(chain) and len(node.users) > 1)
        if inner or len(type_.dims) != 2 or not isinstance(type_.dims[0], Rows) or isinstance(type_.dims[1], Rows):
            return None
        chain.append(node)
        if node.target is GATHER and node.args[2] == 0 and folded:
            ends = isinstance(type_of(node.args[0]).dims[0], Rows) and type_of(node.args[0]).dtype == type_.dtype
            return tuple(reversed(chain)) if ends else None
        if node.target is REDUCE and not folded and node.args[2] == 0 and node.args[4] == "sum":
            folded = True
        elif node.target not in _SCALINGS or not _scales(node):
            return None
        node = node.args[0] if node.target is not aten.mul.Tensor else _scaled(node)
        if type_of(node).dtype != type_.dtype:
            return None


def _scales(node: fx.Node) -> bool:
    """Whether a call multiplies or divides whole rows of one operand of its own shape by one number each."""
    if node.target is aten.neg.default:
        return True
    if node.target is aten.div.Tensor:
        return isinstance(node.args[0], fx.Node) and _one_a_row(node.args[1]) and _has_shape_of(node, node.args[0])
    return any(_has_shape_of(node, a) and _one_a_row(b) for a, b in (node.args, node.args[::-1]))


def _scaled(product: fx.Node) -> fx.Node:
    """The operand of a scaling that carries the features."""
    a, b = product.args
    return a if _has_shape_of(product, a) and _one_a_row(b) else b  # type: ignore[return-value]


def _has_shape_of(node: fx.Node, operand: object) -> bool:
    return isinstance(operand, fx.Node) and type_of(operand).dims == type_of(node).dims


def _one_a_row(operand: object) -> bool:
    """Whether all features of a row meet the same number of `operand`."""
    if not isinstance(operand, fx.Node):
        return True
    return type_of(_narrow(operand)).dims[-1:] in ((), (1,))


def _narrow(operand: fx.Node) -> fx.Node:
    """A value that is spread over features, before it is spread."""
    return operand.args[0] if operand.target is aten.expand.default else operand  # type: ignore[return-value]


def reorder(program: Program, found: Order) -> None:
    """Make the value anew in the other order; alters the program's own graph."""
    builder = Builder(program.graph, program.spaces)
    with program.graph.inserting_before(found.last):
        value = _multiplied(found, found.table, builder) if found.product_first else found.table
        for step in found.chain:
            builder.loc = step.meta.get("loc", "")
            value = _replay(step, value, builder)
        if not found.product_first:
            value = _multiplied(found, value, builder)
    found.last.replace_all_uses_with(value)
    tidy(program.graph, program.spaces)


def _multiplied(found: Order, value: fx.Node, builder: Builder) -> fx.Node:
    product = found.last if found.product_first else found.chain[0].args[0]
    builder.loc = product.meta.get("loc", "")  # type: ignore[union-attr]
    return builder.call(aten.mm.default, value, found.weights)


def _replay(step: fx.Node, value: fx.Node, builder: Builder) -> fx.Node:
    """A call of the chain, on rows of another width."""
    if step.target is not aten.mul.Tensor and step.target is not aten.div.Tensor:
        return builder.call(step.target, value, *step.args[1:])
    rows = _scaled(step) if step.target is aten.mul.Tensor else step.args[0]
    args = [value if a is rows else _narrow(a) if isinstance(a, fx.Node) else a for a in step.args]
    return builder.call(step.target, *args)
