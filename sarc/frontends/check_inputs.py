"""What a call's tensors must be beyond their shapes: the partitioned graph, one device, one meaning on every rank."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sarc.errors import GraphError, UnsupportedModelError
from sarc.frontends.copy_module import check_initialised
from sarc.frontends.inputs import EDGES, GRAPH, NODES, Call, Leaf
from sarc.ir.space import DTYPE_NAMES

DEVICES = ("cpu", "cuda")


def check_arguments(
    module: nn.Module, call: Call, rows: Mapping[str, int], named: Mapping[str, str | None], offloads: bool = False
) -> None:
    """What one process can tell of a call by itself.

    Args:
        rows: rows of this process, by space.
        named: the user's `spaces=`.
        offloads: whether tables wait in the CPU's memory.

    Raises:
        UnsupportedModelError: a layout or dtype that programs do not hold, or a device that they do not run on.
        GraphError: an edge_index of another dtype or layout; rows of neither nodes nor edges; `spaces=` that does not
            fit the call.
    """
    check_initialised(module)
    check_devices(module, call, offloads)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        _check_dense(f"parameter {name}", tensor)
    for leaf in call.leaves:
        if leaf.num_nodes not in (None, rows[NODES]):
            raise GraphError(
                f"argument {leaf.name}: expected a graph of {rows[NODES]} nodes, as it was partitioned, got one of "
                f"{leaf.num_nodes}; partition the new graph and compile again"
            )
        if leaf.value is not None:
            _check_dense(f"argument {leaf.name}", leaf.value)
            if leaf.name not in named:
                _check_edges(leaf, rows)
    _check_named(module, call, rows, named)
    _check_some_rows(call, rows, named)


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise UnsupportedModelError(
            f"{name} is a sparse tensor ({tensor.layout}): expected dense tensors; pass an adjacency matrix as "
            f"edge_index = torch.stack([columns, rows]) of adj.coalesce().indices() with adj.values() as edge weights, "
            f"and features as x.to_dense()"
        )
    if tensor.dtype not in DTYPE_NAMES:
        raise UnsupportedModelError(
            f"{name} has dtype {str(tensor.dtype)[6:]}: expected one of "
            f"{', '.join(str(dtype)[6:] for dtype in DTYPE_NAMES)}; keep complex numbers as two real features"
        )


def _check_edges(leaf: Leaf, rows: Mapping[str, int]) -> None:
    """An argument called like an edge_index must be one."""
    value = leaf.value
    if value is None or value.dim() != 2 or not ("edge_index" in leaf.name or leaf.name.endswith("edges")):
        return
    edges = rows[EDGES]
    if value.shape[0] != 2 and edges in value.shape:
        advice = f"; pass {leaf.name}.t()" if tuple(value.shape) == (edges, 2) else ""
        raise GraphError(
            f"argument {leaf.name}: expected edge_index of shape [2, {edges}], sources above destinations, got shape "
            f"{list(value.shape)}{advice}"
        )
    if value.shape[0] == 2 and value.dtype not in (torch.int64, torch.int32):
        raise GraphError(
            f"argument {leaf.name}: expected node ids of dtype int64 or int32, got {str(value.dtype)[6:]}; pass "
            f"{leaf.name}.long()"
        )


def _check_named(module: nn.Module, call: Call, rows: Mapping[str, int], named: Mapping[str, str | None]) -> None:
    leaves = {leaf.name: leaf for leaf in call.leaves}
    known = [*leaves, *inspect.signature(module.forward).parameters]
    for name, space in named.items():
        if name not in known:
            raise GraphError(
                f"spaces={{'{name}': {space!r}}} names no argument: this call has {', '.join(leaves) or 'no tensors'}"
            )
        leaf = leaves.get(name)
        if leaf is None or leaf.value is None or space is None:
            continue
        if not leaf.value.dim() or leaf.value.shape[0] != rows[space]:
            raise GraphError(
                f"argument {name}: expected {rows[space]} rows, since spaces= says that it holds rows of {space}, got "
                f"shape {list(leaf.value.shape)}"
            )


def _check_some_rows(call: Call, rows: Mapping[str, int], named: Mapping[str, str | None]) -> None:
    """Features of the wrong length would pass for a table that every part has in whole."""
    values = [(leaf.name, leaf.value) for leaf in call.leaves if leaf.value is not None and not leaf.is_edges]
    if any(value.dim() and value.shape[0] in rows.values() for _, value in values):
        return
    for name, value in values:
        if value.dim() >= 2 and value.shape[0] > 2 and value.is_floating_point() and name not in named:
            raise GraphError(
                f"argument {name}: expected {rows[NODES]} rows (one a node) or {rows[EDGES]} (one an edge) of the "
                f"partitioned graph, as this process holds them, got shape {list(value.shape)}; pass the features of "
                f"this graph, or spaces={{'{name}': None}} if every part is to have all of it"
            )


def check_devices(module: nn.Module, call: Call, offloads: bool = False) -> None:
    """GraphError unless parameters, buffers and the call's tensors are on one device, one that programs run on.

    With offload="cpu" that is a GPU, and the call's tensors may be on the CPU.
    """
    named: list[tuple[str, Tensor]] = [(f"parameter {n}", p) for n, p in module.named_parameters()]
    named += [(f"buffer {n}", b) for n, b in module.named_buffers()]
    named += [(f"argument {leaf.name}", leaf.value) for leaf in call.leaves if leaf.value is not None]
    if not named:
        return
    first, where = named[0][0], named[0][1].device
    if offloads and where.type != "cuda":
        raise GraphError(
            f"{first} is on {where}: expected the model on a GPU with offload='cpu', which keeps a GPU's tables in the "
            f"CPU's memory; use model.cuda(), or offload='disk'"
        )
    for name, tensor in named[1:]:
        if offloads and name.startswith("argument") and tensor.device.type == "cpu":
            continue
        if tensor.device != where:
            raise GraphError(
                f"{name} is on {tensor.device}, {first} on {where}: expected the model and all tensors of a call on "
                f"one device; move them with .to('{where}')"
            )
    if where.type not in DEVICES:
        raise UnsupportedModelError(
            f"the model and its inputs are on {where}: expected {' or '.join(DEVICES)}, the devices that partitioned "
            f"programs run on; use model.cpu() and tensor.cpu()"
        )


def check_graph(call: Call, kinds: Sequence[str], held_edges: int, known: Tensor | None) -> None:
    """The graph of the call must be the one that was partitioned.

    Args:
        kinds: whose rows each leaf holds.
        held_edges: edges of this process.
        known: int64 [2, E], the partitioned graph when this process holds all of it.

    Raises:
        GraphError: other edges, or another number of them.
    """
    for leaf, kind in zip(call.leaves, kinds, strict=True):
        value = leaf.value
        if value is None or value.dim() != 2 or value.dtype.is_floating_point or value.dtype == torch.bool:
            continue
        if kind == GRAPH:
            if known is not None and not _is_graph(value, known):
                got = "as many others" if value.shape == known.shape else f"{value.shape[1]}"
                raise GraphError(
                    f"argument {leaf.name}: expected the {known.shape[1]} edges that were partitioned, got {got}; "
                    f"partition the new graph and compile again"
                )
        elif not kind and value.shape[0] == 2:
            raise GraphError(
                f"argument {leaf.name} looks like an edge_index of {value.shape[1]} edges, but the partitioned graph "
                f"has {held_edges} (of this process): pass the graph that was partitioned, or name the argument in "
                f"spaces= if it is something else"
            )


def _is_graph(value: Tensor, known: Tensor) -> bool:
    same_memory = value.device == known.device and value.data_ptr() == known.data_ptr()
    return same_memory or torch.equal(value.to(known.device, torch.int64), known)


def check_ranks(shapes: Sequence[Mapping[str, tuple]], kinds: Mapping[str, str]) -> None:
    """Tensors of one argument must fit together over the ranks.

    Args:
        shapes: for each rank, by argument name (shape, dtype), shape None for a graph object.
        kinds: whose rows each argument holds.

    Raises:
        GraphError: another dtype, other features, or another number of rows than the ranks own.
    """
    for name, kind in kinds.items():
        if kind == GRAPH:
            continue
        per_rank = [each[name] for each in shapes]
        if len({(shape[1:] if kind else shape, dtype) for shape, dtype in per_rank}) == 1:
            continue
        got = ", ".join(f"{list(shape)} {dtype} on rank {rank}" for rank, (shape, dtype) in enumerate(per_rank))
        rows = (
            "the rows the rank owns (shard.x), then the same features"
            if kind
            else ("one row for each node (or edge) the rank owns, as in shard.x, or the same shape on all of them")
        )
        raise GraphError(f"argument {name}: expected on every rank {rows}, and one dtype; got {got}")


def find_graph(args: tuple, kwargs: Mapping[str, object]) -> tuple[object, int | None]:
    """The graph among a call's arguments, and the number of nodes when a float tensor shows it."""
    values = [*args, *kwargs.values()]
    graph = next((v for v in values if type(v).__module__.startswith("dgl.")), None)
    if graph is not None:
        return graph, None
    for value in values:
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == 2 and not value.is_floating_point():
            nodes = next(
                (v.shape[0] for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.dim()), None
            )
            return value, nodes
    raise GraphError(
        "no graph among the arguments of the first call: expected an edge_index int64 [2, E] or a DGLGraph; for other "
        "calls partition first: sarc.compile(model, sarc.partition(edge_index, num_nodes, num_parts))"
    )
