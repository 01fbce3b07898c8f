"""Inputs: which tensors a call brings, and whose rows each of them holds.

A call is flattened to named tensor leaves. A leaf's rows are told from its length: as many as nodes or edges of this
process, on the first axis (an index pair [2, E] on its second). Where that is ambiguous, the candidates are intersected
over the ranks; what stays ambiguous must be named by `spaces=`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from sarc.errors import GraphError, UnsupportedModelError
from sarc.frontends.capture import Argument
from sarc.frontends.dgl import RecordingGraph, redirect_dgl
from sarc.ir.space import Rows, ValueType
from sarc.partition.shard import ShardGraph

NODES, EDGES = "N", "E"
GRAPH = "graph edges"


@dataclass(frozen=True)
class Leaf:
    """One tensor of a call.

    Attributes:
        name: as printed: "x", "edge_index", "g.ndata['h']".
        value: the tensor; None for the edges of a graph object, which every part has already.
        is_edges: whether it is the partitioned graph's own edge_index.
        num_nodes: N of the graph object whose edges they are.
    """

    name: str
    value: Tensor | None
    is_edges: bool = False
    num_nodes: int | None = None

    @property
    def tensor(self) -> Tensor:
        """`value`, of a leaf that is not the edges of a graph object."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class _GraphSlot:
    """A graph object in the call: where its edges and features are among the leaves."""

    kind: str
    edges: int
    node: tuple[tuple[str, int], ...] = ()
    edge: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class _TensorSlot:
    index: int


@dataclass(frozen=True)
class Call:
    """A call of the model, taken apart.

    Attributes:
        leaves: its tensors, in order.
        structure: pytree of (args, kwargs) with slots in the places of tensors and graphs.
        static: hashable account of everything else, for the cache key.
    """

    leaves: tuple[Leaf, ...]
    structure: object
    static: tuple

    def rebuild(self, zero_in_degree: bool) -> Callable[[nn.Module, Sequence[Tensor], Mapping[str, object]], object]:
        """A function that makes the same call on other tensors (see `capture`).

        Args:
            zero_in_degree: whether some node of the whole graph has no in-edge (DGL layers ask).
        """
        slots, tree = pytree.tree_flatten(self.structure, is_leaf=_is_slot)

        def call(module: nn.Module, tensors: Sequence[Tensor], sizes: Mapping[str, object]) -> object:
            dgl = False
            values = []
            for slot in slots:
                if isinstance(slot, _TensorSlot):
                    values.append(tensors[slot.index])
                elif isinstance(slot, _GraphSlot):
                    values.append(_graph(slot, tensors, sizes, zero_in_degree))
                    dgl = dgl or slot.kind == "dgl"
                else:
                    values.append(slot)
            args, kwargs = pytree.tree_unflatten(values, tree)
            if dgl:
                with redirect_dgl():
                    return module(*args, **kwargs)
            return module(*args, **kwargs)

        return call


def _is_slot(value: object) -> bool:
    return isinstance(value, (_TensorSlot, _GraphSlot))


def _graph(slot: _GraphSlot, tensors: Sequence[Tensor], sizes: Mapping[str, Any], zero_in_degree: bool):
    edges = tensors[slot.edges]
    if slot.kind == "edge_index":
        return edges
    node = {name: tensors[k] for name, k in slot.node}
    edge = {name: tensors[k] for name, k in slot.edge}
    return RecordingGraph(edges[0], edges[1], sizes[NODES], node, edge, zero_in_degree=zero_in_degree)


def take_apart(module: nn.Module, args: tuple, kwargs: dict, graph_kind: str) -> Call:
    """Flatten a call.

    Args:
        graph_kind: what a `ShardGraph` stands for: "edge_index" or "dgl".

    Raises:
        UnsupportedModelError: an argument is an object that sarc does not know.
    """
    names = _argument_names(module, args, kwargs)
    paths, tree = pytree.tree_flatten_with_path((args, kwargs), is_leaf=_is_graph)
    leaves: list[Leaf] = []
    slots: list[object] = []
    static: list[object] = []
    for path, value in paths:
        name = _path_name(path, names)
        if isinstance(value, Tensor):
            slots.append(_TensorSlot(len(leaves)))
            leaves.append(Leaf(name, value))
        elif _is_graph(value):
            slots.append(_graph_leaves(name, value, graph_kind, leaves))
        elif value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
            slots.append(value)
        else:
            raise UnsupportedModelError(
                f"argument {name} is of type {type(value).__name__}: expected tensors, numbers, strings, a graph "
                f"(edge_index, DGLGraph, shard.graph), or lists, tuples and dicts of them; {_unpacked(value, name)}"
            )
        static.append(slots[-1])
    return Call(tuple(leaves), pytree.tree_unflatten(slots, tree), (str(tree), tuple(map(repr, static))))


def _unpacked(value: object, name: str) -> str:
    """How to pass what `value` holds."""
    if isinstance(value, np.ndarray):
        return f"pass torch.from_numpy({name})"
    if hasattr(value, "edge_index"):
        return f"pass {name}.x and {name}.edge_index to a forward that takes tensors"
    if hasattr(value, "coo"):
        return f"pass edge_index and weights: row, col, weight = {name}.coo(); torch.stack([col, row])"
    return "unpack the object in a wrapper module's forward and pass its tensors"


def _is_graph(value: object) -> bool:
    return isinstance(value, ShardGraph) or _is_dgl(value)


def _is_dgl(value: object) -> bool:
    return type(value).__module__.startswith("dgl.") and type(value).__name__ == "DGLGraph"


def _graph_leaves(name: str, graph: Any, graph_kind: str, leaves: list[Leaf]) -> _GraphSlot:
    edges = len(leaves)
    if isinstance(graph, ShardGraph):
        leaves.append(Leaf(f"{name}.edges", None, True))
        return _GraphSlot(graph_kind, edges)
    if graph.is_block or not graph.is_homogeneous or graph.batch_size != 1:
        raise GraphError(
            f"argument {name}: expected one homogeneous DGLGraph, got node types {graph.ntypes}, edge types "
            f"{graph.etypes}, batch size {graph.batch_size}; use dgl.to_homogeneous(g), and one graph a call"
        )
    src, dst = graph.edges(order="eid")
    leaves.append(Leaf(f"{name}.edges", torch.stack([src, dst]).long(), True, graph.num_nodes()))
    node, edge = [], []
    for key, value in sorted(graph.ndata.items()):
        node.append((key, len(leaves)))
        leaves.append(Leaf(f"{name}.ndata['{key}']", value))
    for key, value in sorted(graph.edata.items()):
        edge.append((key, len(leaves)))
        leaves.append(Leaf(f"{name}.edata['{key}']", value))
    return _GraphSlot("dgl", edges, tuple(node), tuple(edge))


def _argument_names(module: nn.Module, args: tuple, kwargs: dict) -> list[str]:
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError):
            raise TypeError(f"{type(module).__name__}.forward: {error}") from None
        return [f"arg{k}" for k in range(len(args))]
    names = []
    for key, value in bound.arguments.items():
        kind = bound.signature.parameters[key].kind
        names += [f"{key}{k}" for k in range(len(value))] if kind is inspect.Parameter.VAR_POSITIONAL else [key]
    return names


def _path_name(path: tuple, names: list[str]) -> str:
    group, first, *rest = path
    if group.idx == 0:
        name = names[first.idx] if first.idx < len(names) else f"arg{first.idx}"
    else:
        name = str(first.key)
    return name + "".join(str(pytree.keystr((key,))) for key in rest)


def candidates(leaf: Leaf, rows: Mapping[str, int], named: Mapping[str, str | None]) -> tuple[str, ...]:
    """Row interpretations that fit a leaf's shape: "N", "E", GRAPH (its own edge_index) or "" (replicated)."""
    if leaf.is_edges:
        return (GRAPH,)
    if leaf.name in named:
        return (named[leaf.name] or "",)
    shape = tuple(leaf.tensor.shape)
    found = []
    whole_numbers = leaf.tensor.dtype in (torch.int64, torch.int32)
    if len(shape) == 2 and shape[0] == 2 and shape[1] == rows[EDGES] and whole_numbers:
        found.append(GRAPH)
    if shape and shape[0] == rows[NODES]:
        found.append(NODES)
    if shape and shape[0] == rows[EDGES]:
        found.append(EDGES)
    found.append("")
    return tuple(found)


def choose(leaf: Leaf, options: Sequence[Sequence[str]], rows: Mapping[str, int]) -> str:
    """The interpretation of a leaf that every rank's shape allows.

    Raises:
        GraphError: the rows could be nodes as well as edges.
    """
    common = [o for o in options[0] if all(o in other for other in options)]
    if GRAPH in common:
        return GRAPH
    partitioned = [o for o in common if o]
    if len(partitioned) > 1:
        raise GraphError(
            f"argument {leaf.name} of shape {list(leaf.tensor.shape)} could hold rows of nodes or of edges (N = "
            f"{rows[NODES]}, E = {rows[EDGES]}); say which: sarc.compile(..., spaces={{'{leaf.name}': 'N'}})"
        )
    return partitioned[0] if partitioned else ""


def argument(leaf: Leaf, rows: str) -> Argument:
    """The typed argument of a leaf."""
    if rows == GRAPH:
        return Argument(leaf.name, ValueType((2, Rows(EDGES)), torch.int64))
    dims: list = list(leaf.tensor.shape)
    if rows:
        dims[0] = Rows(rows)
    return Argument(leaf.name, ValueType(tuple(dims), leaf.tensor.dtype))
