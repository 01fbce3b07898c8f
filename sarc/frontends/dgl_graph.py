"""A stand-in for a homogeneous dgl.DGLGraph that carries out message passing in plain torch ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
from torch import SymInt, Tensor

from sarc.frontends.dgl_batches import EdgeBatch, NodeBatch, reduce_messages
from sarc.frontends.dgl_degree_checks import mark_degrees
from sarc.frontends.dgl_messages import combine, degrees, fold, gather
from sarc.frontends.dgl_refusal import unsupported

NTYPE, ETYPE, CANONICAL_ETYPE = "_N", "_E", ("_N", "_E", "_N")
ALL = "__ALL__"  # dgl.base.ALL
UDF = Callable[[Any], dict[str, Tensor]]

_LINALG = "aggregate with update_all(fn.copy_u('h', 'm'), fn.sum('m', 'h')) or fn.u_mul_e; no matrix is built"
_QUERY = "the answer depends on the edges' values: find it before the model and pass it in as a tensor"
_PARTIAL = "run update_all or apply_edges over the whole graph and mask: m * mask"
_CHANGE = "change the graph before it is partitioned; add_self_loop, remove_self_loop and reverse work inside a model"
INSTEAD = {
    **dict.fromkeys("adj adj_external adj_tensors adjacency_matrix inc laplacian_lambda_max".split(), _LINALG),
    **dict.fromkeys("has_nodes has_edges_between edge_ids find_edges predecessors successors".split(), _QUERY),
    **dict.fromkeys("in_edges out_edges is_multigraph filter_nodes filter_edges".split(), _QUERY),
    **dict.fromkeys("send_and_recv push pull prop_nodes prop_edges".split(), _PARTIAL),
    **dict.fromkeys("add_nodes add_edges remove_nodes remove_edges subgraph in_subgraph out_subgraph".split(), _CHANGE),
    **dict.fromkeys("to_bidirected to_simple add_reverse_edges khop_graph line_graph knn_graph".split(), _CHANGE),
    "segment_mm": "construct or call the layer with presorted=False",
    "multi_update_all": "the graph has one edge type: use update_all",
}
OTHERWISE = "express the layer with update_all, apply_edges, edge_softmax, degrees and ndata / edata"


class RecordingGraph:
    """The edges `src` -> `dst`, int64 [E] each, among N nodes, with DGL's message-passing interface.

    ndata, edata: columns [N, *F] and [E, *F] the graph starts with. zero_in_degree: whether some node has no in-edge,
    which DGL layers ask before anything else; None when it is not known: then only real tensors can tell.
    What is missing raises UnsupportedModelError.
    """

    is_block = False
    is_homogeneous = True
    is_unibipartite = False
    ntypes = srctypes = dsttypes = (NTYPE,)
    etypes = (ETYPE,)
    canonical_etypes = (CANONICAL_ETYPE,)
    idtype = torch.int64
    batch_size = 1

    def __init__(
        self,
        src: Tensor,
        dst: Tensor,
        num_nodes: int | SymInt,
        ndata: Mapping[str, Tensor] | None = None,
        edata: Mapping[str, Tensor] | None = None,
        *,
        zero_in_degree: bool | None = None,
    ) -> None:
        self.src = src
        self.dst = dst
        self.ndata: dict[str, Tensor] = dict(ndata or {})
        self.edata: dict[str, Tensor] = dict(edata or {})
        self.zero_in_degree = zero_in_degree
        self._num_nodes = num_nodes

    # ---- features -------------------------------------------------------------------------------------------------

    @property
    def srcdata(self) -> dict[str, Tensor]:
        return self.ndata

    @property
    def dstdata(self) -> dict[str, Tensor]:
        return self.ndata

    @contextmanager
    def local_scope(self) -> Iterator[None]:
        """Inside, changes of ndata and edata are forgotten at the end."""
        outer = self.ndata, self.edata
        self.ndata, self.edata = dict(self.ndata), dict(self.edata)
        try:
            yield
        finally:
            self.ndata, self.edata = outer

    def local_var(self) -> RecordingGraph:
        return RecordingGraph(
            self.src, self.dst, self._num_nodes, self.ndata, self.edata, zero_in_degree=self.zero_in_degree
        )

    clone = local_var

    # ---- structure ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.src.device

    def num_nodes(self, ntype: Any = None) -> int | SymInt:
        _check_type(ntype, (NTYPE,))
        return self._num_nodes

    number_of_nodes = num_src_nodes = number_of_src_nodes = num_dst_nodes = number_of_dst_nodes = num_nodes

    def num_edges(self, etype: Any = None) -> int | SymInt:
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        return self.src.shape[0]

    number_of_edges = num_edges

    def batch_num_nodes(self, ntype: Any = None) -> GraphSizes:
        return GraphSizes((self.num_nodes(ntype),))

    def batch_num_edges(self, etype: Any = None) -> GraphSizes:
        return GraphSizes((self.num_edges(etype),))

    def in_degrees(self, v: Any = ALL, etype: Any = None) -> Tensor:
        """In-degree of each node, int64 [N], or of nodes `v` int64 [K]: [K]."""
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        return self._select(mark_degrees(degrees(self.dst, self._num_nodes), self.zero_in_degree), v)

    def out_degrees(self, u: Any = ALL, etype: Any = None) -> Tensor:
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        return self._select(degrees(self.src, self._num_nodes), u)

    @property
    def nodes(self) -> TypeView:
        """`g.nodes()`: ids int64 [N]; `g.nodes["_N"].data`: ndata."""
        return TypeView(self.ndata, (NTYPE,), self._node_ids)

    srcnodes = dstnodes = nodes

    @property
    def edges(self) -> TypeView:
        """`g.edges()`: source and destination, int64 [E] each; `g.edges["_E"].data`: edata."""
        return TypeView(self.edata, (ETYPE, CANONICAL_ETYPE), self.all_edges)

    def all_edges(self, form: str = "uv", order: str | None = "eid", etype: Any = None) -> Any:
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        if order not in (None, "eid"):
            raise unsupported(f"DGLGraph.edges(order={order!r})", "order='eid', the default, works")
        ids = torch.arange(self.src.shape[0], dtype=torch.int64, device=self.device) if form != "uv" else None
        return {"uv": (self.src, self.dst), "eid": ids, "all": (self.src, self.dst, ids)}[form]

    def to_canonical_etype(self, etype: Any) -> tuple[str, str, str]:
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        return CANONICAL_ETYPE

    def to(self, device: Any, **_: Any) -> RecordingGraph:
        if torch.device(device).type != self.device.type:
            raise unsupported(f"DGLGraph.to({device!r})", f"move the graph before the model: it is on {self.device}")
        return self

    def long(self) -> RecordingGraph:
        return self

    # ---- message passing ------------------------------------------------------------------------------------------

    def update_all(
        self, message_func: Any, reduce_func: Any, apply_node_func: UDF | None = None, etype: Any = None
    ) -> None:
        """Messages along all edges, folded at their destinations into ndata; then `apply_node_func`, if any."""
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        messages = self._messages(message_func)
        if hasattr(reduce_func, "msg_field"):
            values = messages[reduce_func.msg_field]
            columns = {reduce_func.out_field: fold(reduce_func.name, values, self.dst, self._num_nodes)}
        else:
            columns = reduce_messages(self, reduce_func, messages)
        if apply_node_func is not None:  # as in DGL, only what it returns is stored
            columns = apply_node_func(NodeBatch(self, {**self.ndata, **columns}))
        self.ndata.update(columns)

    def apply_edges(self, func: Any, edges: Any = ALL, etype: Any = None) -> None:
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        if not is_all(edges):
            raise unsupported("DGLGraph.apply_edges on some of the edges", _PARTIAL)
        self.edata.update(self._messages(func))

    def apply_nodes(self, func: UDF, v: Any = ALL, ntype: Any = None) -> None:
        _check_type(ntype, (NTYPE,))
        if not is_all(v):
            raise unsupported("DGLGraph.apply_nodes on some of the nodes", "apply to all nodes and mask")
        self.ndata.update(func(NodeBatch(self, dict(self.ndata))))

    def at_edges(self, column: Tensor, target: int | str) -> Tensor:
        """`column` of the sources (0, "u"), destinations (1, "v") or edges (2, "e") as an edge column [E, *F]."""
        if target in (2, "e"):
            return column
        return gather(column, self.src if target in (0, "u") else self.dst)

    def _messages(self, func: Any) -> dict[str, Tensor]:
        """Edge columns of a message function. Case 1: fn.u_mul_e etc. Case 2: fn.copy_u, copy_e. Case 3: the user's."""
        columns = (self.ndata, self.ndata, self.edata)
        if hasattr(func, "binary_op"):  # Case 1
            lhs = self.at_edges(columns[func.lhs][func.lhs_field], func.lhs)
            rhs = self.at_edges(columns[func.rhs][func.rhs_field], func.rhs)
            return {func.out_field: combine(func.binary_op, lhs, rhs)}
        if hasattr(func, "in_field"):  # Case 2
            return {func.out_field: self.at_edges(columns[func.target][func.in_field], func.target)}
        return func(EdgeBatch(self))  # Case 3

    # ---- derived graphs -------------------------------------------------------------------------------------------

    def reverse(self, copy_ndata: bool = True, copy_edata: bool = False) -> RecordingGraph:
        """Every edge turned round, in the same order."""
        ndata, edata = self.ndata if copy_ndata else {}, self.edata if copy_edata else {}
        return RecordingGraph(self.dst, self.src, self._num_nodes, ndata, edata)

    def add_self_loop(
        self, edge_feat_names: Any = None, fill_data: float | str = 1.0, etype: Any = None
    ) -> RecordingGraph:
        """One more edge v -> v for every node, after the others.

        Features of the new edges: `fill_data`, or with "sum", "mean", "max", "min" a fold of the node's in-edges; 0 for
        columns that are not in `edge_feat_names`.
        """
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        edata = {}
        for name, column in self.edata.items():
            if edge_feat_names is not None and name not in edge_feat_names:
                loops = column.new_zeros((self._num_nodes, *column.shape[1:]))
            elif isinstance(fill_data, str):
                loops = fold(fill_data, column, self.dst, self._num_nodes)
            else:
                loops = column.new_full((self._num_nodes, *column.shape[1:]), fill_data)
            edata[name] = torch.cat([column, loops])
        nodes = self._node_ids()
        src, dst = torch.cat([self.src, nodes]), torch.cat([self.dst, nodes])
        return RecordingGraph(src, dst, self._num_nodes, self.ndata, edata, zero_in_degree=False)

    def remove_self_loop(self, etype: Any = None) -> RecordingGraph:
        """The edges u -> v with u != v, in the same order. Their number depends on the edges' values."""
        _check_type(etype, (ETYPE, CANONICAL_ETYPE))
        kept = (self.src != self.dst).nonzero().squeeze(1)
        edata = {name: gather(column, kept) for name, column in self.edata.items()}
        return RecordingGraph(gather(self.src, kept), gather(self.dst, kept), self._num_nodes, self.ndata, edata)

    # ---- what DGL's own functions look at ---------------------------------------------------------------------------

    @property
    def _graph(self) -> RecordingGraph:
        return self  # dgl.ops passes graph._graph on to the functions that redirect_dgl() replaces

    def number_of_etypes(self) -> int:
        return 1

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise unsupported(f"DGLGraph.{name}", INSTEAD.get(name, OTHERWISE))

    def _node_ids(self, ntype: Any = None) -> Tensor:
        _check_type(ntype, (NTYPE,))
        return torch.arange(cast(int, self._num_nodes), dtype=torch.int64, device=self.device)

    def _select(self, column: Tensor, nodes: Any) -> Tensor:
        if is_all(nodes):
            return column
        if isinstance(nodes, Tensor):
            return gather(column, nodes)
        raise unsupported("degrees of single nodes", "ask for all, or pass a tensor of node ids")


class TypeView:
    """`g.nodes` and `g.edges`: called, they give ids; indexed with the only type, its columns."""

    def __init__(self, data: dict[str, Tensor], names: tuple[Any, ...], ids: Callable[..., Any]) -> None:
        self.data = data
        self._names = names
        self._ids = ids

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ids(*args, **kwargs)

    def __getitem__(self, key: Any) -> TypeView:
        if isinstance(key, slice) and key == slice(None):
            return self
        _check_type(key, self._names)
        return self


class GraphSizes(tuple[Any, ...]):
    """Sizes of the graphs of a batch, here always of one; in DGL an int64 tensor."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise unsupported(f"batch_num_nodes().{name}", "the batch holds one graph: use g.num_nodes() or g.num_edges()")


def _check_type(name: Any, known: tuple[Any, ...]) -> None:
    if name is not None and not (isinstance(name, (str, tuple)) and name in known):
        raise unsupported(
            f"node or edge type, or selection, {name!r}", f"the graph has one node and one edge type: {known[-1]!r}"
        )


def is_all(selection: Any) -> bool:
    return isinstance(selection, str) and selection == ALL
