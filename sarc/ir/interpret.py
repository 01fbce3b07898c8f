"""Interpreter: a program's plain-torch meaning on whole-graph tensors; the oracle of every pass."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch.fx as fx
from torch import Tensor

from sarc.ir.dialect import UNIFORM
from sarc.ir.draws import keyed_uniform
from sarc.ir.edge_program import edge_call, run_whole
from sarc.ir.program import Program, map_sizes
from sarc.ir.space import Rows, Spaces, ValueType


def interpret(
    program: Program,
    values: Sequence[Tensor],
    sizes: dict[str, int] | None = None,
    row_keys: dict[str, Tensor] | None = None,
) -> list[Tensor]:
    """Run `program` on whole-graph tensors.

    Args:
        values: one for each input, in order.
        sizes: known sizes of spaces; those that the values show are added to it.
        row_keys: int64 keys of the rows of derived spaces, for random draws (positions when absent).

    Returns:
        one tensor for each output.
    """
    sizes = {} if sizes is None else sizes
    for node, value in zip(program.placeholders, values, strict=True):
        learn_sizes(node.meta["type"], value, program.spaces, sizes)
    env: dict[fx.Node, object] = dict(zip(program.placeholders, values, strict=True))
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is operator.getitem:
            env[node] = env[node.args[0]][node.args[1]]
            continue
        local = program.spaces.numbers(sizes)
        args = map_sizes(fx.map_arg(node.args, env.__getitem__), lambda size: size.value(local))
        kwargs = map_sizes(fx.map_arg(node.kwargs, env.__getitem__), lambda size: size.value(local))
        if node.target is edge_call:
            env[node] = run_whole(*args, local, row_keys)
        elif node.target is UNIFORM and row_keys:
            env[node] = keyed_uniform(node, args, row_keys)
        else:
            env[node] = node.target(*args, **kwargs)
        learn_sizes(node.meta["type"], env[node], program.spaces, sizes)
    return [env[n] for n in program.returned]


def learn_sizes(type_, value, spaces: Spaces, sizes: dict[str, int]) -> None:
    if isinstance(type_, ValueType):
        for dim, length in zip(type_.dims, value.shape, strict=True):
            if isinstance(dim, Rows) and spaces[dim.space].kind != "concat":
                sizes.setdefault(dim.space, length // (dim.before * dim.after))
