"""bind: split a raised program by binding time into the structure program and the step program.

What depends on integer and boolean inputs alone (degrees, normalisations, self loops, row selections) is the structure
program: run once a graph, itself partitioned. Everything else is the step program, whose inputs include the bound
values.

Before:
    program raised
    space N = nodes
    space E = edges on edges
    %x: f32[N] = input arg x
    %dst: i64[E] = input arg dst
    %ones: f32[E] = aten.full([|E|], 1, dtype=f32)   # model.py:8
    %degree: f32[N] = sarc.reduce(%ones, %dst, 0, |N|, 'sum')   # model.py:8
    %out: f32[N] = aten.div.Tensor(%x, %degree)   # model.py:9
    return result 0 = %out
After:
    program structure
    space N = nodes
    space E = edges on edges
    %dst: i64[E] = input arg dst
    %ones: f32[E] = aten.full([|E|], 1, dtype=f32)   # model.py:8
    %degree: f32[N] = sarc.reduce(%ones, %dst, 0, |N|, 'sum')   # model.py:8
    return bound degree = %degree
    program step
    space N = nodes
    space E = edges on edges
    %x: f32[N] = input arg x
    %bound_degree: f32[N] = input bound degree   # model.py:8
    %out: f32[N] = aten.div.Tensor(%x, %bound_degree)   # model.py:9
    return result 0 = %out
Needs a raised program; gives the structure program and a step program whose inputs include the bound values.
It does nothing to a program without structural values: the structure program is empty, the step the program itself.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from sarc.errors import UnsupportedModelError
from sarc.ir.binding_times import STEP, STRUCTURE, binding_times
from sarc.ir.call import location, op_name
from sarc.ir.dialect import GATHER, REDUCE, ROW_IDS, SELECT_ROWS
from sarc.ir.program import Input, Output, Program, output_node, remove_dead, select_inputs
from sarc.ir.space import ValueType

aten = torch.ops.aten


def bind(program: Program) -> tuple[Program, Program]:
    """The structure program and the step program of a raised program.

    Raises:
        UnsupportedModelError: an index or a row selection depends on features or parameters.
    """
    times = binding_times(program)
    _check_columns(program, times)
    _check_ids(program)
    structure, step = fx.Graph(), fx.Graph()
    s_env: dict[fx.Node, fx.Node] = {}
    env: dict[fx.Node, fx.Node] = {}
    s_inputs, inputs = [], []
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        s_env[node] = _copy(structure, node, {})
        env[node] = _copy(step, node, {})
        s_inputs.append(entry)
        inputs.append(entry)
    for node in program.graph.nodes:
        if node.op == "call_function" and times[node] <= STRUCTURE:
            s_env[node] = _copy(structure, node, s_env)
    spread = _spread(program, times)
    wanted = _boundary(program, times, spread)
    for node in wanted:
        made = step.placeholder(f"bound_{node.name}")
        made.meta = {"type": node.meta["type"], "loc": node.meta.get("loc", ""), "aligned": node.target is SELECT_ROWS}
        env[node] = made
        inputs.append(Input("bound", node.name))
    for node in program.graph.nodes:
        if node.op == "call_function" and node not in env and (times[node] != STRUCTURE or node in spread):
            env[node] = _copy(step, node, env)
    step.output([env[n] for n in program.returned])
    structure.output([s_env[n] for n in wanted])
    outputs = tuple(Output("bound", n.name) for n in wanted)
    bound = _trim(Program(structure, program.spaces.copy(), tuple(s_inputs), outputs, "structure", program.constants))
    # The structure program keeps the masks of the filters it defines, even where only the filter's size is used.
    return bound, _trim(Program(step, program.spaces.copy(), tuple(inputs), program.outputs, "step", program.constants))


def _spread(program: Program, times: dict[fx.Node, int]) -> set[fx.Node]:
    """Structural values spread over features for the step: it spreads them itself, and what is kept is narrow."""
    return {
        node for node in program.graph.nodes
        if node.target is aten.expand.default and times[node] == STRUCTURE and node not in program.returned
        if node.meta["type"].dtype.is_floating_point  # others may be columns
        if any(times.get(u, STRUCTURE) == STEP for u in node.users)
    }  # fmt: skip


def _boundary(program: Program, times: dict[fx.Node, int], spread: set[fx.Node]) -> list[fx.Node]:
    """Structural values that the step program (or the caller) reads, in order."""
    returned = set(program.returned)
    found = []
    for node in program.graph.nodes:
        if node.op != "call_function" or times[node] != STRUCTURE or not isinstance(node.meta["type"], ValueType):
            continue
        if node in spread:
            continue
        if node in returned or any(times.get(u, STRUCTURE) == STEP or u in spread for u in node.users):
            found.append(node)
        elif node.target is SELECT_ROWS:
            found.append(node)
    return found


def _check_columns(program: Program, times: dict[fx.Node, int]) -> None:
    for node in program.graph.nodes:
        if node.target not in (SELECT_ROWS, GATHER, REDUCE):
            continue
        column = node.args[0 if node.target is SELECT_ROWS else 1]
        if times[column] == STEP:
            what = "rows are selected by" if node.target is SELECT_ROWS else "an index of rows is"
            raise UnsupportedModelError(
                f"{location(node)}{what} values that depend on features or parameters ({op_name(node.target)}): which "
                f"rows meet must be known from integer or boolean inputs alone; use torch.where or weights of zero "
                f"instead of selecting rows, or compute the selection outside the model and pass it as an input"
            )


_KEEP_IDS = {aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims, aten.where.self}
_COMPARE = {aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor}


def _check_ids(program: Program) -> None:
    """Ids of selected rows are those of the rows they were selected from: they name and order rows, not count them."""
    ids: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.target is ROW_IDS and program.spaces.is_selected(node.meta["type"].dims[0].space):
            ids.add(node)
        given = [n for n in node.all_input_nodes if n in ids]
        if not given or node.op != "call_function" or node.target in _COMPARE:
            continue
        named = node.target in (GATHER, REDUCE)
        if named and given == [node.args[1]]:
            continue
        if not (node.target in _KEEP_IDS or node.target is GATHER or (named and node.args[4] in ("amax", "amin"))):
            raise UnsupportedModelError(
                f"{location(node)}{op_name(node.target)} computes with positions of selected rows "
                f"({given[0].meta['type']}): which place a row has among the selected ones is not known on a part; "
                f"expected positions of all nodes or edges: number the rows before selecting them, or outside the model"
            )
        ids.add(node)


def _copy(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, fx.Node]) -> fx.Node:
    made = graph.node_copy(node, env.__getitem__)
    made.meta = dict(node.meta)
    return made


def _trim(program: Program) -> Program:
    remove_dead(program.graph)
    output_node(program.graph)
    return select_inputs(program, [n for n in program.placeholders if n.users])
