"""split: the joint program becomes a forward and a backward program with little saved between them.

Saved are values over nodes and replicated values. Recomputed in the backward program are all values over edges (so no
edge tensor outlives its fold), random draws and what follows from them alone, constants and views; and the values that
`rematerialise` has noted.

Before:
    program joint
    space N = nodes
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %tangent_0: f32[N, 2] = input tangent 0
    %h: f32[N, 2] = aten.mm(%x, %w)   # model.py:8
    %y: f32[N, 2] = aten.exp(%h)   # model.py:9
    %g: f32[N, 2] = aten.mul.Tensor(%tangent_0, %y)   # model.py:9
    %t: f32[4, N] = aten.t(%x)   # model.py:8
    %gw: f32[4, 2] = aten.mm(%t, %g)   # model.py:8
    return result 0 = %y
    return grad param w = %gw
After:
    program forward
    space N = nodes
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %h: f32[N, 2] = aten.mm(%x, %w)   # model.py:8
    %y: f32[N, 2] = aten.exp(%h)   # model.py:9
    return result 0 = %y
    return saved y = %y
    program backward
    space N = nodes
    %x: f32[N, 4] = input arg x
    %tangent_0: f32[N, 2] = input tangent 0
    %saved_y: f32[N, 2] = input saved y   # model.py:9
    %g: f32[N, 2] = aten.mul.Tensor(%tangent_0, %saved_y)   # model.py:9
    %t: f32[4, N] = aten.t(%x)   # model.py:8
    %gw: f32[4, 2] = aten.mm(%t, %g)   # model.py:8
    return grad param w = %gw
Needs a joint program; gives a forward program whose outputs gain the saved values and a backward program that reads
them.
It does nothing about values that the backward pass does not read: they are not saved.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.fx as fx

from sarc.ir.dialect import OWN_ROWS, UNIFORM
from sarc.ir.program import Input, Output, Program, remove_dead, select_inputs
from sarc.ir.space import Spaces, ValueType
from sarc.passes.base import is_getitem

aten = torch.ops.aten

VIEWS = {
    aten.reshape.default, aten.expand.default, aten.permute.default, aten.t.default, aten.transpose.int,
    OWN_ROWS, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.slice.Tensor, aten.select.int,
}  # fmt: skip


# Their several results look at parts of their operand.
PARTS_OF = {
    aten.split.Tensor, aten.split_with_sizes.default, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default,
    aten.unbind.int,
}  # fmt: skip


class Division:
    """Which values of a joint program belong to which pass.

    Attributes:
        late: values that depend on tangents, and the tangents.
        in_forward: what the results need, and sums that the gradients are to find made ("keep").
        free: constants, random draws and what is made of these alone.
        needed_late: late values that the gradients need.
    """

    def __init__(self, joint: Program):
        results = [n for n, o in zip(joint.returned, joint.outputs, strict=True) if o.kind != "grad"]
        self.grads = [n for n, o in zip(joint.returned, joint.outputs, strict=True) if o.kind == "grad"]
        self.spaces = joint.spaces
        self.in_forward = _needed_by([*results, *(n for n in joint.graph.nodes if "keep" in n.meta)])
        self.in_forward |= {n for n in joint.graph.nodes if is_getitem(n) and n.args[0] in self.in_forward}
        self.late = depends_on_tangents(joint)
        self.free = _free_values(joint)
        needed = _needed_by(self.grads)
        self.needed_late = [n for n in joint.graph.nodes if n in needed and n in self.late]

    def may_keep(self, node: fx.Node) -> bool:
        """Whether a value could be kept between the passes."""
        if node in self.late or node not in self.in_forward or node in self.free or is_view(node):
            return False
        return not isinstance(node.meta["type"], tuple) and not over_edges(node, self.spaces)


def is_view(node: fx.Node) -> bool:
    """Whether the value looks at memory of another one."""
    if is_getitem(node):
        return node.args[0].target in PARTS_OF
    return node.target in VIEWS or node.target in PARTS_OF


def split(joint: Program) -> tuple[Program, Program]:
    """The forward program (its outputs gain the saved values) and the backward program (its inputs gain them)."""
    forward_outputs = [(n, o) for n, o in zip(joint.returned, joint.outputs, strict=True) if o.kind != "grad"]
    division = Division(joint)
    placeholders = set(joint.placeholders)
    saved: list[fx.Node] = []

    def is_saved(node: fx.Node) -> bool:
        return division.may_keep(node) and not node.meta.get("again")

    backward = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    wanted = _needed_by(division.grads, stop=lambda n: n not in placeholders and is_saved(n))
    inputs: list[Input] = []
    for node, entry in zip(joint.placeholders, joint.inputs, strict=True):
        env[node] = _copy(backward, node, env)
        inputs.append(entry)
    for node in joint.graph.nodes:
        if node.op == "call_function" and node in wanted and is_saved(node):
            env[node] = backward.placeholder(f"saved_{node.name}")
            env[node].meta = {"type": node.meta["type"], "loc": node.meta.get("loc", "")}
            inputs.append(Input("saved", node.name))
            saved.append(node)
    for node in joint.graph.nodes:
        if node.op == "call_function" and node in wanted and node not in env:
            env[node] = _copy(backward, node, env)
    backward.output([env[n] for n in division.grads])

    forward = fx.Graph()
    f_env: dict[fx.Node, fx.Node] = {}
    for node in joint.graph.nodes:
        if node in placeholders or (node.op == "call_function" and node in division.in_forward):
            f_env[node] = _copy(forward, node, f_env)
            f_env[node].meta.pop("again", None)
    forward.output([f_env[n] for n, _ in forward_outputs] + [f_env[n] for n in saved])
    outputs = (*(o for _, o in forward_outputs), *(Output("saved", n.name) for n in saved))
    first = replace(joint, graph=forward, spaces=joint.spaces.copy(), outputs=outputs, stage="forward")
    second = replace(
        joint, graph=backward, spaces=joint.spaces.copy(), inputs=tuple(inputs),
        outputs=tuple(o for o in joint.outputs if o.kind == "grad"), stage="backward",
    )  # fmt: skip
    return _trim(first), _trim(second)


def over_edges(node: fx.Node, spaces: Spaces) -> bool:
    """Whether the value (one of the values) has rows that stand for edges."""
    types = node.meta["type"]
    types = types if isinstance(types, tuple) else (types,)
    return any(spaces[s].on_edges for t in types if isinstance(t, ValueType) for s in t.spaces)


def _needed_by(roots: list[fx.Node], stop=lambda node: False) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            if not stop(node):
                stack.extend(node.all_input_nodes)
    return found


def depends_on_tangents(joint: Program) -> set[fx.Node]:
    """The tangents of a joint program, and what is made of them."""
    late = {n for n, e in zip(joint.placeholders, joint.inputs, strict=True) if e.kind == "tangent"}
    for node in joint.graph.nodes:
        if node.op == "call_function" and any(n in late for n in node.all_input_nodes):
            late.add(node)
    return late


def _free_values(joint: Program) -> set[fx.Node]:
    """Constants, random draws and values made of these alone."""
    free = {n for n, e in zip(joint.placeholders, joint.inputs, strict=True) if e.kind == "rng"}
    for node in joint.graph.nodes:
        if node.op == "call_function" and (node.target is UNIFORM or all(n in free for n in node.all_input_nodes)):
            free.add(node)
    return free


def _copy(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, fx.Node]) -> fx.Node:
    made = graph.node_copy(node, env.__getitem__)
    made.meta = dict(node.meta)
    return made


def _trim(program: Program) -> Program:
    remove_dead(program.graph)
    return select_inputs(program, [n for n in program.placeholders if n.users])
