"""The structure program of a model, run on every part once a graph.

It is partitioned like any other program: each part computes the rows it owns, reads other parts' rows through columns
and returns partial folds to their owners. What it makes stays with the part: bound values, the rows of derived spaces
and the maps of all columns.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor

from sarc.errors import GraphError
from sarc.ir.call import location
from sarc.ir.dialect import GATHER, REDUCE, ROW_IDS, SEGMENT_IDS, SELECT_ROWS, fold_rows, start_value
from sarc.ir.edge_program import contract_kind
from sarc.ir.ops import contracted, placed, resolve_sizes
from sarc.ir.program import Input, Program
from sarc.ir.space import Rows
from sarc.partition.columns import ColumnMap
from sarc.runtime.part_state import PartState
from sarc.runtime.work import AllGather, AllReduce, Exchange, Work


def run_structure(program: Program, state: PartState, values: Mapping[Input, Tensor]) -> Work:
    """The bound values of one part, by name.

    Args:
        program: the structure program.
        state: the part's rows; gains those of the derived spaces.
        values: this part's rows of each structural input.
    """
    env: dict[fx.Node, Any] = {}
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        env[node] = values[entry]
    maps: dict[tuple[fx.Node, str | int], ColumnMap] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is operator.getitem:
            env[node] = env[node.args[0]][node.args[1]]
        elif node.target is ROW_IDS:
            env[node] = state.row_keys(node.meta["type"].dims[0].space)
        elif node.target is SEGMENT_IDS:
            env[node] = yield from _segment_ids(node, env, state)
        elif node.target is SELECT_ROWS:
            name = node.meta["type"].dims[0].space
            yield from state.add_filter(name, env[node.args[0]])
            env[node] = state.row_keys(name)
        elif node.target in (GATHER, REDUCE):
            target = _target(node)
            key = (node.args[1], target)
            if key not in maps:
                maps[key] = yield from state.map_column(env[node.args[1]], target, location(node))
            run = _gather if node.target is GATHER else _reduce
            env[node] = yield from run(node, env, maps[key], state)
        else:
            env[node] = run_local(node, env, state.local_sizes(), state.total_sizes(), state.device)
        if isinstance(env[node], Tensor) and contracted(node, node.meta["type"]):
            env[node] = yield AllReduce(env[node], contract_kind(node))
    return {out.name: env[node] for node, out in zip(program.returned, program.outputs, strict=True)}


def run_local(node: fx.Node, env, local: Mapping[str, int], total: Mapping[str, int], device: torch.device):
    """One operator on the rows at hand, which are on a device."""
    args, kwargs = resolve_sizes(
        node, fx.map_arg(node.args, env.__getitem__), fx.map_arg(node.kwargs, env.__getitem__), local, total
    )
    first = next((a for a in args if isinstance(a, Tensor)), None)
    if first is not None and not first.numel() and contracted(node, node.meta["type"]):
        kind = contract_kind(node)
        if kind != "sum":
            type_ = node.meta["type"]
            start = start_value({"max": "amax", "min": "amin"}[kind], type_.dtype)
            return torch.full(list(type_.dims), start, dtype=type_.dtype, device=device)
    return node.target(*args, **placed(node, kwargs, device))


def _segment_ids(node: fx.Node, env, state: PartState) -> Work:
    """Segments of this part's rows. Where a segment starts depends on all lengths before it: every part sees them."""
    lengths, size = node.args
    (held,), (rows,) = lengths.meta["type"].dims, node.meta["type"].dims
    lengths = env[lengths]
    if isinstance(held, Rows):
        everyone = yield AllGather((state.row_keys(held.space).cpu(), lengths.cpu()))
        lengths = torch.cat([theirs for _, theirs in everyone])[torch.cat([ids for ids, _ in everyone]).argsort()]
        lengths = lengths.to(state.device)
    total = state.total_sizes()[rows.space] if isinstance(rows, Rows) else size
    if int(lengths.sum()) != total:
        raise GraphError(f"{location(node)}segment lengths add up to {int(lengths.sum())}: expected {total}, one a row")
    keys = state.row_keys(rows.space) if isinstance(rows, Rows) else torch.arange(total, device=state.device)
    return torch.searchsorted(lengths.cumsum(0), keys, right=True)


def _target(node: fx.Node) -> str | int:
    """The space whose rows the node's column names, or the length of a replicated dimension."""
    holder = node.args[0] if node.target is GATHER else node
    dim = holder.meta["type"].dims[node.args[2]]
    return dim.space if isinstance(dim, Rows) else dim


def _gather(node: fx.Node, env, column: ColumnMap, state: PartState) -> Work:
    x, _, axis = node.args
    source = env[x]
    if not column.remote:
        return source.index_select(axis, column.own_index)
    outgoing = {
        q: source.index_select(axis, torch.cat(chunks)) for q, chunks in enumerate(column.serves) if chunks
    }
    incoming = yield Exchange(outgoing)
    length = sum(block.rows.numel() for block in column.blocks)
    shape = list(source.shape)
    shape[axis] = length
    out = source.new_empty(shape)
    for block in column.blocks:
        if block.peer == state.rank:
            table = source
        else:
            start = sum(column.needs[block.peer][: block.chunk])
            table = incoming[block.peer].narrow(axis, start, column.needs[block.peer][block.chunk])
        out.index_copy_(axis, block.rows, table.index_select(axis, block.index))
    return out


def _reduce(node: fx.Node, env, column: ColumnMap, state: PartState) -> Work:
    rows, _, axis, size, kind = node.args
    rows = env[rows]
    dim = node.meta["type"].dims[axis]
    shape = list(rows.shape)
    shape[axis] = state.local_sizes()[dim.space] if isinstance(dim, Rows) else size
    out = rows.new_full(shape, start_value(kind, rows.dtype))
    if not column.remote:
        fold_rows(out, axis, column.own_index, rows, kind)
        return out
    partial: dict[int, list[Tensor]] = {}
    for block in column.blocks:
        picked = rows.index_select(axis, block.rows)
        if block.peer == state.rank:
            fold_rows(out, axis, block.index, picked, kind)
            continue
        shape[axis] = column.needs[block.peer][block.chunk]
        share = rows.new_full(shape, start_value(kind, rows.dtype))
        fold_rows(share, axis, block.index, picked, kind)
        partial.setdefault(block.peer, []).append(share)
    incoming = yield Exchange({q: torch.cat(shares, axis) for q, shares in partial.items()})
    for q in sorted(incoming):
        fold_rows(out, axis, torch.cat(column.serves[q]), incoming[q], kind)
    return out
