"""What DGL hands to user-defined functions, recorded: `edges` for messages, `nodes` for reduce and apply functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import SymInt, Tensor

from sarc.frontends.dgl_mailbox import Mailbox
from sarc.frontends.dgl_mailbox_size import MailboxSpace
from sarc.frontends.dgl_messages import broadcast_rows, degrees, gather
from sarc.frontends.dgl_refusal import unsupported

if TYPE_CHECKING:
    from sarc.frontends.dgl_graph import RecordingGraph


class GatheredColumns(Mapping[str, Tensor]):
    """Node columns seen from the edges: `columns["h"]` is [E, *F], gathered at the first look."""

    def __init__(self, columns: Mapping[str, Tensor], index: Tensor) -> None:
        self._columns = columns
        self._index = index
        self._gathered: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._gathered:
            self._gathered[name] = gather(self._columns[name], self._index)
        return self._gathered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class EdgeBatch:
    """All edges: `src` and `dst` columns [E, *F] of their ends, `data` their own."""

    canonical_etype = ("_N", "_E", "_N")

    def __init__(self, graph: RecordingGraph) -> None:
        self._graph = graph
        self.src = GatheredColumns(dict(graph.ndata), graph.src)
        self.dst = GatheredColumns(dict(graph.ndata), graph.dst)
        self.data = dict(graph.edata)

    def edges(self) -> Any:
        return self._graph.edges(form="all")

    def batch_size(self) -> int | SymInt:
        return self._graph.num_edges()

    def __len__(self) -> int:
        return python_length(self.batch_size(), "edges")


class NodeBatch:
    """All nodes: `data` their columns [N, *F]; in a reduce function also `mailbox`, see dgl_mailbox."""

    ntype = "_N"

    def __init__(
        self, graph: RecordingGraph, data: dict[str, Tensor], mailbox: dict[str, Mailbox] | None = None
    ) -> None:
        self._graph = graph
        self.data = data
        self.mailbox = mailbox

    def nodes(self) -> Tensor:
        return self._graph.nodes()

    def batch_size(self) -> int | SymInt:
        return self._graph.num_nodes()

    def __len__(self) -> int:
        return python_length(self.batch_size(), "nodes")


def python_length(size: int | SymInt, rows: str) -> int:
    """`size` for a len(), which Python wants as an int. Raises UnsupportedModelError for a symbolic one."""
    if isinstance(size, int):
        return size
    raise unsupported(f"len({rows})", f"use {rows}.batch_size(), or g.num_nodes() and g.num_edges()")


def reduce_messages(
    graph: RecordingGraph, function: Callable[[NodeBatch], dict[str, Tensor]], messages: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Runs a user-defined reduce function on `messages` [E, *F]: columns [N, *F], 0 for nodes without in-edges."""
    space = MailboxSpace(graph.dst, graph.num_nodes())
    mailbox = {name: Mailbox(values, space) for name, values in messages.items()}
    columns = function(NodeBatch(graph, dict(graph.ndata), mailbox))
    for name, column in columns.items():
        if not isinstance(column, Tensor):
            raise unsupported(
                f"a reduce function that returns {name!r} as {type(column).__name__}",
                "reduce the mailbox axis: m.sum(1), m.mean(1), m.max(1).values",
            )
    if graph.zero_in_degree is False:
        return columns
    no_messages = degrees(graph.dst, graph.num_nodes()) == 0
    return {
        name: torch.where(broadcast_rows(no_messages, column.dim()), torch.zeros_like(column), column)
        for name, column in columns.items()
    }
