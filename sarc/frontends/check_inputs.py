"""What a call's tensors must be beyond their shapes: the partitioned graph, one device, one meaning on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sarc.errors import GraphError, UnsupportedModelError
from sarc.frontends.inputs import EDGES, GRAPH, Call


def check_devices(module: nn.Module, call: Call) -> None:
    """GraphError unless parameters, buffers and the call's tensors are on one device, and that is the CPU."""
    named = [(f"parameter {n}", p) for n, p in module.named_parameters()]
    named += [(f"buffer {n}", b) for n, b in module.named_buffers()]
    named += [(f"argument {leaf.name}", leaf.value) for leaf in call.leaves if leaf.value is not None]
    if not named:
        return
    first, where = named[0][0], named[0][1].device
    for name, tensor in named[1:]:
        if tensor.device != where:
            raise GraphError(
                f"{name} is on {tensor.device}, {first} on {where}: expected the model and all tensors of a call on "
                f"one device; move them with .to('cpu')"
            )
    if where.type != "cpu":
        raise UnsupportedModelError(
            f"the model and its inputs are on {where}: expected cpu, the device that partitioned programs run on; use "
            f"model.cpu() and tensor.cpu()"
        )


def check_graph(call: Call, kinds: Sequence[str], held_edges: int, known: Tensor | None) -> None:
    """The graph of the call must be the one that was partitioned.

    Args:
        kinds: whose rows each leaf holds.
        held_edges: edges of this process.
        known: int64 [2, E], the partitioned graph when this process holds all of it.

    Raises:
        GraphError: other edges, another number of them, or [E, 2] instead of [2, E].
    """
    for leaf, kind in zip(call.leaves, kinds, strict=True):
        value = leaf.value
        if value is None or value.dim() != 2 or value.dtype.is_floating_point or value.dtype == torch.bool:
            continue
        if kind == GRAPH:
            if known is not None and value.data_ptr() != known.data_ptr() and not torch.equal(value.long(), known):
                raise GraphError(
                    f"argument {leaf.name}: the graph has changed since it was partitioned (same number of edges, "
                    f"other edges); partition the new graph and compile again"
                )
        elif kind == EDGES and value.shape[1] == 2 and "index" in leaf.name:
            raise GraphError(
                f"argument {leaf.name} has shape {list(value.shape)}: expected edge_index of shape [2, E]; "
                f"pass {leaf.name}.t()"
            )
        elif not kind and value.shape[0] == 2:
            raise GraphError(
                f"argument {leaf.name} looks like an edge_index of {value.shape[1]} edges, but the partitioned graph "
                f"has {held_edges} (of this process): pass the graph that was partitioned, or name the argument in "
                f"spaces= if it is something else"
            )


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
