"""Interpreter: a program's plain-torch meaning on whole-graph tensors; the oracle of every pass."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch.fx as fx
from torch import Tensor

from sarc.ir.dialect import UNIFORM
from sarc.ir.draws import keyed_uniform
from sarc.ir.edge_program import edge_call, run_whole
from sarc.ir.ops import Types
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
    env: dict[fx.Node, Any] = dict(zip(program.placeholders, values, strict=True))
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is operator.getitem:
            env[node] = env[node.args[0]][node.args[1]]
            continue
        known = program.spaces.numbers(with_reaches(program.spaces, sizes))
        args, kwargs = _operands(node, env, known)
        if node.target is edge_call:
            edges, operands, columns = args
            env[node] = run_whole(edges, operands, columns, known, row_keys)
        elif node.target is UNIFORM and row_keys:
            env[node] = keyed_uniform(node, args, row_keys)
        else:
            env[node] = node.target(*args, **kwargs)
        learn_sizes(node.meta["type"], env[node], program.spaces, sizes)
    return [env[n] for n in program.returned]


def _operands(node: fx.Node, env: dict[fx.Node, Any], sizes: dict[str, int]) -> tuple[Any, Any]:
    """The call's operands: tensors for values, numbers for sizes."""
    tensors = fx.map_arg((node.args, dict(node.kwargs)), env.__getitem__)
    return map_sizes(tensors, lambda size: size.value(sizes))


def with_reaches(spaces: Spaces, sizes: dict[str, int]) -> dict[str, int]:
    """`sizes` and those of reach spaces: on the whole graph no row is another part's."""
    return sizes | {s.name: sizes[s.parents[0]] for s in spaces if s.kind == "reach" and s.parents[0] in sizes}


def learn_sizes(type_: Types, value: Any, spaces: Spaces, sizes: dict[str, int]) -> None:
    """Add to `sizes` what the shape of a value of type `type_` shows."""
    if isinstance(type_, ValueType):
        for dim, length in zip(type_.dims, value.shape, strict=True):
            if isinstance(dim, Rows) and spaces[dim.space].kind != "concat":
                sizes.setdefault(dim.space, length // (dim.before * dim.after))
