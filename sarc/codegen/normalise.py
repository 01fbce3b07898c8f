"""Normal form of a program before division: contractions sum rows only."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.fx as fx

from sarc.ir.edge_program import EdgeProgram
from sarc.ir.space import Rows, ValueType

aten = torch.ops.aten


def normalise(program: EdgeProgram) -> EdgeProgram:
    """`program` with each contraction over rows and features as a fold over features, then one over rows."""
    returned = next(n for n in reversed(program.body.nodes) if n.op == "output").args[0]
    found = [n for n, r in zip(returned, program.results, strict=True) if r.kind == "contract" and _features_of(n)]
    if not found:
        return program
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in program.body.nodes:
        if node.op == "output":
            body.output([env[n] for n in node.args[0]])
        elif node in found:
            env[node] = _two_steps(body, node, env[node.args[0]])
        else:
            env[node] = body.node_copy(node, env.__getitem__)
            env[node].meta = dict(node.meta)
    return replace(program, body=body)


def _axes(node: fx.Node) -> list[int]:
    """Axes that a sum reduces; [] for another operator."""
    rank = len(node.args[0].meta["type"].dims) if node.args and isinstance(node.args[0], fx.Node) else 0
    if node.target is aten.sum.default:
        return list(range(rank))
    return [a % rank for a in node.args[1]] if node.target is aten.sum.dim_IntList else []


def _features_of(node: fx.Node) -> list[int]:
    """Axes of features that a contraction reduces."""
    return [a for a in _axes(node) if not isinstance(node.args[0].meta["type"].dims[a], Rows)]


def _two_steps(body: fx.Graph, node: fx.Node, operand: fx.Node) -> fx.Node:
    dims = node.args[0].meta["type"].dims
    features = _features_of(node)
    inner = body.call_function(aten.sum.dim_IntList, (operand, features, True))
    kept = tuple(1 if a in features else d for a, d in enumerate(dims))
    inner.meta = {"type": ValueType(kept, node.meta["type"].dtype), "loc": node.meta.get("loc", "")}
    rows = [a for a in _axes(node) if a not in features]
    outer = body.call_function(aten.sum.dim_IntList, (inner, rows))
    outer.meta = dict(node.meta)
    return outer
