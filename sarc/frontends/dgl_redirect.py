"""Redirects dgl's module-level functions to a RecordingGraph they are given, for as long as a capture lasts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from sarc.frontends import dgl_layers, dgl_messages
from sarc.frontends.dgl_degree_checks import AnswerDegreeChecks
from sarc.frontends.dgl_graph import INSTEAD, GraphSizes, RecordingGraph, is_all
from sarc.frontends.dgl_refusal import unsupported


@contextmanager
def redirect_dgl() -> Iterator[None]:
    """Inside, dgl's functions and layers accept a RecordingGraph; for other graphs they do what they always do.

    Also answers the layers' zero in-degree checks (see dgl_degree_checks). Everything is put back at the end, after an
    error too. Does not import dgl: where nothing has, there is nothing to redirect.
    """
    replaced = []
    try:
        for owner, name, replacement in _replacements():
            replaced.append((owner, name, vars(owner)[name]))
            setattr(owner, name, replacement)
        with AnswerDegreeChecks():
            yield
    finally:
        for owner, name, original in reversed(replaced):
            setattr(owner, name, original)


def _replacements() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """What to replace: owner, attribute, replacement. The lists at the end of this file say what and by what.

    Case 1: functions that all others go through, found by their callers in one module: other bindings of the callers,
    the user's included, need no change. Case 2: layers. Case 3: functions that are replaced under their name wherever
    they were imported to.
    """
    if "dgl" not in sys.modules:
        return
    for module_name, name, recorded in (*GRAPH_OPS, *READOUTS):  # Case 1
        module = sys.modules[module_name]
        yield module, name, _choose_by_graph(vars(module)[name], recorded)
    for module_name, name, recorded in LAYERS:  # Case 2
        if module_name in sys.modules:
            layer = vars(sys.modules[module_name])[name]
            yield layer, "forward", _choose_by_graph(vars(layer)["forward"], recorded)
    for module_name, name, recorded in (*TRANSFORMS, *TYPED_PRODUCTS):  # Case 3
        original = vars(sys.modules[module_name])[name]
        of_graphs = (module_name, name, recorded) in TRANSFORMS
        replacement = (_choose_by_graph if of_graphs else _choose_by_tensor)(original, recorded)
        for binding in _modules_binding(name, original):
            yield binding, name, replacement


def _choose_by_graph(original: Callable[..., Any], recorded: Callable[..., Any]) -> Callable[..., Any]:
    """Calls `recorded` for a recording graph or the sizes it gives, `original` for everything else.

    Raises UnsupportedModelError for a real graph with tensors that have no values: DGL's kernels cannot read them.
    """

    @wraps(original)
    def redirected(*args: Any, **kwargs: Any) -> Any:
        arguments = (*args, *kwargs.values())
        if any(isinstance(argument, (RecordingGraph, GraphSizes)) for argument in arguments):
            return recorded(*args, **kwargs)
        if any(map(_is_real_graph, arguments)) and any(map(_has_no_values, arguments)):
            raise unsupported("a DGLGraph that is no argument of the model", "pass the graph to forward()")
        return original(*args, **kwargs)

    return redirected


def _choose_by_tensor(original: Callable[..., Any], recorded: Callable[..., Any]) -> Callable[..., Any]:
    """Calls `recorded` for tensors without values, `original` for others."""

    @wraps(original)
    def redirected(*args: Any, **kwargs: Any) -> Any:
        is_recorded = any(map(_has_no_values, (*args, *kwargs.values())))
        return (recorded if is_recorded else original)(*args, **kwargs)

    return redirected


def _has_no_values(argument: Any) -> bool:
    return isinstance(argument, Tensor) and type(argument) not in (Tensor, Parameter)


def _is_real_graph(argument: Any) -> bool:
    return type(argument).__name__ in ("DGLGraph", "DGLBlock", "HeteroGraphIndex")


def _modules_binding(name: str, function: Any) -> list[ModuleType]:
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [module for module in modules if vars(module).get(name) is function]


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise unsupported(f"dgl.{name}", INSTEAD[name])

    return refuse


# ---- replacements; `graph` may have come as graph._graph, which of a RecordingGraph is itself -----------------------


def _edge_softmax(graph: RecordingGraph, logits: Tensor, eids: Any = "__ALL__", norm_by: str = "dst") -> Tensor:
    if not is_all(eids):
        raise unsupported("edge_softmax over some of the edges", "give the others a logit of -inf")
    index = graph.dst if norm_by == "dst" else graph.src
    return dgl_messages.edge_softmax(logits, index, graph.num_nodes())


def _gspmm(graph: RecordingGraph, op: str, reduce_op: str, lhs_data: Any, rhs_data: Any) -> Tensor:
    """Nodes without in-edges get -inf in a max and inf in a min, as from dgl.ops; update_all makes that 0 in DGL."""
    messages = _gsddmm(graph, op, lhs_data, rhs_data, "u", "e")
    empty = {"max": -math.inf, "min": math.inf}.get(reduce_op, 0)
    return dgl_messages.fold(reduce_op, messages, graph.dst, graph.num_nodes(), empty)


def _gsddmm(
    graph: RecordingGraph, op: str, lhs_data: Any, rhs_data: Any, lhs_target: str = "u", rhs_target: str = "v"
) -> Tensor:
    if op == "copy_lhs":
        return graph.at_edges(lhs_data, lhs_target)
    if op == "copy_rhs":
        return graph.at_edges(rhs_data, rhs_target)
    lhs, rhs = graph.at_edges(lhs_data, lhs_target), graph.at_edges(rhs_data, rhs_target)
    return dgl_messages.combine(op, lhs, rhs)


def _segment_reduce(seglen: GraphSizes, value: Tensor, reducer: str = "sum") -> Tensor:
    """Readout of the one graph: [N, *F] to [1, *F]."""
    ops: dict[str, Callable[..., Tensor]]
    ops = {"sum": Tensor.sum, "mean": Tensor.mean, "max": Tensor.amax, "min": Tensor.amin}
    return ops[reducer](value, 0, keepdim=True)


def _repeat(input: Tensor, repeats: GraphSizes, dim: int) -> Tensor:
    """The one graph's row [1, *F], or [1] of dgl.broadcast_nodes, for each node or edge."""
    return input.expand((*repeats, *input.shape[1:]))


def _reverse(
    graph: RecordingGraph,
    copy_ndata: bool = True,
    copy_edata: bool = False,
    *,
    share_ndata: bool | None = None,
    share_edata: bool | None = None,
) -> RecordingGraph:
    """dgl.reverse; the share_ arguments are the old names of the copy_ ones."""
    return graph.reverse(
        copy_ndata if share_ndata is None else share_ndata, copy_edata if share_edata is None else share_edata
    )


# Each row: module, function or class, what records it.
Row = tuple[str, str, Callable[..., Any]]
GRAPH_OPS: list[Row] = [
    ("dgl.ops.edge_softmax", "edge_softmax_internal", _edge_softmax),
    ("dgl.ops.spmm", "gspmm", _gspmm),
    ("dgl.ops.spmm", "gspmm_internal", _gspmm),  # for a gspmm that the user has imported by name
    ("dgl.ops.sddmm", "gsddmm_internal", _gsddmm),
]
READOUTS: list[Row] = [
    ("dgl.ops.segment", "segment_reduce", _segment_reduce),
    ("dgl.backend", "repeat", _repeat),
]
LAYERS: list[Row] = [
    ("dgl.nn.pytorch.conv.graphconv", "EdgeWeightNorm", dgl_layers.edge_weight_norm),
    ("dgl.nn.pytorch.conv.gatedgraphconv", "GatedGraphConv", dgl_layers.gated_graph_conv),
]
REFUSED_TRANSFORMS = (
    "add_edges add_nodes add_reverse_edges khop_graph knn_graph laplacian_lambda_max line_graph remove_edges "
    "remove_nodes to_bidirected to_simple"
)
TRANSFORMS: list[Row] = [
    ("dgl.transforms.functional", "reverse", _reverse),
    ("dgl.transforms.functional", "add_self_loop", RecordingGraph.add_self_loop),
    ("dgl.transforms.functional", "remove_self_loop", RecordingGraph.remove_self_loop),
    *(("dgl.transforms.functional", name, _refuse(name)) for name in REFUSED_TRANSFORMS.split()),
]
TYPED_PRODUCTS: list[Row] = [
    ("dgl.ops.gather_mm", "gather_mm", dgl_layers.gather_mm),
    ("dgl.ops.segment", "segment_mm", _refuse("segment_mm")),
]
