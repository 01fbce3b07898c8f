"""bind-data: what depends on data alone is split from a step program: computed once a feature matrix.

Data are the arguments that need no gradient. Sums over neighbours of data (A X of a linear first layer), and rows of
data that other parts hold, are the *data* program; the step reads what it made. Data that no exchange and no fold has
made are computed in the step: they are cheaper to make than to keep.

Before:
    program step
    space N = nodes
    space E = edges on edges
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %xj: f32[E, 4] = sarc.gather(%x, %src, 0)   # model.py:8
    %ax: f32[N, 4] = sarc.reduce(%xj, %dst, 0, |N|, 'sum')   # model.py:8
    %out: f32[N, 2] = aten.mm(%ax, %w)   # model.py:9
    return result 0 = %out
After:
    program data
    space N = nodes
    space E = edges on edges
    %x: f32[N, 4] = input arg x
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %xj: f32[E, 4] = sarc.gather(%x, %src, 0)   # model.py:8
    %ax: f32[N, 4] = sarc.reduce(%xj, %dst, 0, |N|, 'sum')   # model.py:8
    return data ax = %ax
    program step
    space N = nodes
    space E = edges on edges
    %w: f32[4, 2] = input param w
    %data_ax: f32[N, 4] = input data ax   # model.py:8
    %out: f32[N, 2] = aten.mm(%data_ax, %w)   # model.py:9
    return result 0 = %out
Needs a step program and the inputs that need gradients; gives the data program, and a step program that reads what it
makes.
It does nothing where no fold and no exchange is of data alone: there is no data program, the step is the program.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.fx as fx

from sarc.ir.binding_times import DATA, STEP, binding_times
from sarc.ir.collective import fetch
from sarc.ir.dialect import GATHER, REDUCE
from sarc.ir.ops import contracted
from sarc.ir.program import Input, Output, Program, remove_dead, select_inputs
from sarc.ir.space import Spaces, ValueType

# Numbers an edge of a value over edges that may be kept: a weight, not a row of features.
_MOST_PER_EDGE = 1


def bind_data(
    program: Program, wrt: frozenset[Input], keep: Callable[[fx.Node], bool] = lambda node: True
) -> tuple[Program | None, Program]:
    """The data program, or None, and the step program.

    Args:
        wrt: inputs that need gradients.
        keep: whether a value may be kept; one that may not is computed in every step.
    """
    times = binding_times(program, wrt)
    heavy = find_heavy(program, times)
    kept = [n for n in _boundary(program, times, heavy) if keep(n)]
    if not kept:
        return None, program
    return _data(program, kept), _step(program, kept)


def find_heavy(program: Program, times: dict[fx.Node, int]) -> set[fx.Node]:
    """Values of data alone that a fold, a gather or an exchange has made."""
    heavy: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op != "call_function" or times[node] != DATA:
            continue
        type_ = node.meta["type"]
        works = node.target in (GATHER, REDUCE, fetch) or (isinstance(type_, ValueType) and contracted(node, type_))
        if works or any(n in heavy for n in node.all_input_nodes):
            heavy.add(node)
    return heavy


def _boundary(program: Program, times: dict[fx.Node, int], heavy: set[fx.Node]) -> list[fx.Node]:
    """The heavy values that the step reads, as few as may be kept; in order.

    A result of data alone is computed in every call, as it was asked for.
    """
    returned = set(program.returned)
    read = [n for n in program.graph.nodes if n.op == "call_function" and times[n] == STEP]
    stack = [v for n in read for v in n.all_input_nodes]
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in seen or node.op != "call_function" or times[node] != DATA:
            continue
        seen.add(node)
        if node in heavy and node not in returned and _may_be_kept(node, program.spaces):
            found.add(node)
        else:
            stack.extend(node.all_input_nodes)
    return [n for n in program.graph.nodes if n in found]


def _may_be_kept(node: fx.Node, spaces: Spaces) -> bool:
    type_ = node.meta["type"]
    if not isinstance(type_, ValueType):
        return False
    width = 1
    for dim in type_.dims:
        width *= dim if isinstance(dim, int) else dim.before * dim.after
    return width <= _MOST_PER_EDGE or not any(spaces[s].on_edges for s in type_.spaces)


def _data(program: Program, kept: list[fx.Node]) -> Program:
    """The program that makes the kept values."""
    needed: set[fx.Node] = set()
    stack = list(kept)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.graph.nodes:
        if node.op == "placeholder" or node in needed:
            env[node] = _copy(graph, node, env)
    graph.output([env[n] for n in kept])
    outputs = tuple(Output("data", n.name) for n in kept)
    return _trim(Program(graph, program.spaces.copy(), program.inputs, outputs, "data", program.constants))


def _step(program: Program, kept: list[fx.Node]) -> Program:
    """The program with the kept values as inputs."""
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.placeholders:
        env[node] = _copy(graph, node, env)
    for node in kept:
        env[node] = graph.placeholder(f"data_{node.name}")
        env[node].meta = {"type": node.meta["type"], "loc": node.meta.get("loc", "")}
    for node in program.graph.nodes:
        if node.op == "call_function" and node not in env:
            env[node] = _copy(graph, node, env)
    graph.output([env[n] for n in program.returned])
    inputs = (*program.inputs, *(Input("data", n.name) for n in kept))
    return _trim(Program(graph, program.spaces.copy(), inputs, program.outputs, program.stage, program.constants))


def _copy(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, fx.Node]) -> fx.Node:
    made = graph.node_copy(node, env.__getitem__)
    made.meta = dict(node.meta)
    return made


def _trim(program: Program) -> Program:
    remove_dead(program.graph)
    return select_inputs(program, [n for n in program.placeholders if n.users])

