"""simplify: what differentiation leaves behind goes: views undone, neutral operands, negations, sums of spread values.

The rules are two tables, of views and of arithmetic; each takes a call to an equal one, up to rounding, that is
smaller. They are applied, and equal calls merged, until none fits; arithmetic once views have nothing left to do.

Before:
    program joint
    space N = nodes
    %x: f32[N, 4] = input arg x
    %w: f32[4] = input param w
    %a: f32[N, 4] = aten.mul.Tensor(%x, 1.0)   # model.py:8
    %n: f32[N, 4] = aten.neg(%a)   # model.py:8
    %m: f32[N, 4] = aten.mul.Tensor(%n, %w)   # model.py:8
    %s: f32[1, 4] = aten.sum.dim_IntList(%m, [0], True)   # model.py:8
    %r: f32[4] = aten.reshape(%s, [4])   # model.py:8
    %out: f32[4] = aten.add.Tensor(%w, %r)   # model.py:9
    return grad param w = %out
After:
    program joint
    space N = nodes
    %x: f32[N, 4] = input arg x
    %w: f32[4] = input param w
    %sum_dim_int_list: f32[4] = aten.sum.dim_IntList(%x, [0])   # model.py:8
    %mul_tensor: f32[4] = aten.mul.Tensor(%sum_dim_int_list, %w)   # model.py:8
    %sub_tensor: f32[4] = aten.sub.Tensor(%w, %mul_tensor)   # model.py:9
    return grad param w = %sub_tensor
Needs a joint program, or a step program that is not differentiated; gives an equal one that no rule shortens.
It does nothing to a program that no rule shortens: the same object comes back.
"""

from __future__ import annotations

from dataclasses import replace

import torch.fx as fx

from sarc.ir.program import Program, remove_dead
from sarc.ir.space import Spaces, ValueType
from sarc.passes.base import Builder, Rules, merge_common, renumbered
from sarc.passes.joint.simplify_arithmetic import ARITHMETIC
from sarc.passes.joint.simplify_views import VIEWS


class Simplify:
    """Rewrites a typed program before edge programs are made."""

    name = "simplify"

    def run(self, program: Program) -> Program:
        own = program.copy()
        changed = False
        while any(apply_rules(own.graph, own.spaces, table) for table in (VIEWS, ARITHMETIC)):
            changed = True
        return replace(own, graph=renumbered(own.graph)) if changed else program


def apply_rules(graph: fx.Graph, spaces: Spaces, table: Rules) -> bool:
    """Visit every call once, in place; returns whether anything changed."""
    builder = Builder(graph, spaces)
    changed = False
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.users or not isinstance(node.meta["type"], ValueType):
            continue
        with graph.inserting_before(node):
            builder.loc = node.meta.get("loc", "")
            made = _first(node, builder, table)
        if made is not None:
            node.replace_all_uses_with(made)
            changed = True
    merged = merge_common(graph)
    # What a rule built and then gave up is dead as well: only calls of the program count as a change.
    remove_dead(graph)
    return changed or merged


def _first(node: fx.Node, builder: Builder, table: Rules) -> fx.Node | None:
    """What the first rule that fits makes of a call; a result of another type is no fit."""
    for rule in table.get(node.target, ()):
        made = rule(node, builder)
        if made is not None and made is not node and made.meta["type"] == node.meta["type"]:
            return made
    return None
