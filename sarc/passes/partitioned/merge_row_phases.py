"""merge-row-phases: edge programs over the rows of one column become one, with the row operations between them.

A softmax is three folds over the same rows: a maximum, a sum of exponentials shifted by it, a weighted sum divided by
that. Where a part holds every edge of a row, one visit of the row does all of it, and what follows row by row (a
division, a bias, an activation) as well: a fold read back by its own rows never leaves the kernel.

Before:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:8
      %s: f32[E] = gather $0 by #0 axis 0
      reduce sum by #1 axis 0 %s: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N]) = edge_call(@edges0, [%z], [%src, %dst])   # model.py:8
    %total: f32[N] = getitem(%edge_call, 0)   # model.py:8
    %out: f32[N] = aten.relu(%total)   # model.py:9
    return result 0 = %out
After:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E   # model.py:8
      %s: f32[E] = gather $0 by #0 axis 0
      %total: f32[N] = fold_to_rows(%s, 1, 0, 'sum')   # model.py:8
      %out: f32[N] = aten.relu(%total)   # model.py:9
      rows by #1 axis 0 %out: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N]) = edge_call(@edges0, [%z], [%src, %dst])   # model.py:8
    %out: f32[N] = getitem(%edge_call, 0)   # model.py:9
    return result 0 = %out
Needs a partitioned program and whether an edge program has a kernel; gives one with fewer edge programs.
What is folded to another column as well joins where its kernel gathers no wide row a second time (`codegen/divide.py`).
It does nothing to programs that exchange rows, that fold to other columns alone or from nodes to nodes, or whose merger
has no kernel: the same object comes back when nothing merges.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch.fx as fx

from sarc.ir.cluster import ROW_VIEWS, Cluster, Merger, behind_views, is_row_operation, plain_space, replace_clusters
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.frontier import row_width
from sarc.ir.program import Program
from sarc.passes.base import merge_common


class MergeRowPhases:
    """Merges edge programs of one program, as far as the merged ones have kernels.

    Args:
        has_kernel: whether an edge program has a compiled form.
        tight: memory counts more than time: a table that is made of another one that stays is made behind the edge
            program, whose operands are gone by then.
        hubs: names of columns with a row that several threads should share: what is merged visits a row in one go.
    """

    name = "merge-row-phases"

    def __init__(
        self, has_kernel: Callable[[EdgeProgram], bool], tight: bool = False, hubs: frozenset[str] = frozenset()
    ):
        self.has_kernel, self.tight, self.hubs = has_kernel, tight, hubs

    def run(self, program: Program) -> Program:
        # A merger may free the way for an earlier call.
        while (merged := self._once(program)) is not program:
            program = merged
        return program

    def _once(self, program: Program) -> Program:
        """Each edge call, in order, with what can be merged into it."""
        tried: set[str] = set()
        while True:
            calls = [n for n in program.graph.nodes if n.target is edge_call and n.name not in tried]
            if not calls:
                return program
            tried.add(calls[0].name)
            program = self._grow(program, calls[0])

    def _grow(self, program: Program, call: fx.Node) -> Program:
        """`program` with what can be merged into `call` merged, or as it is."""
        cluster, wider = find_cluster(program, call), find_cluster(program, call, elsewhere=True)
        if cluster is None or wider is None:
            return program
        if cluster.column is not None and cluster.column.name in self.hubs and not self.tight:
            return program
        found = [without_rows_behind(wider)] if len(wider.calls) > len(cluster.calls) else []
        for candidate in (*found, cluster, without_rows_behind(cluster)):
            if self.tight:
                candidate = without_second_tables(candidate, program.returned)
            joined = [n for n in candidate.members if n is not call and n.target is not operator.getitem]
            if any(n.target not in ROW_VIEWS for n in joined):  # a view alone is made again outside
                merger = Merger(program, candidate)
                merge_common(merger.program.body)
                if self.has_kernel(merger.program):
                    return replace_clusters(program, [merger])
        return program


def find_cluster(program: Program, first: fx.Node, elsewhere: bool = False) -> Cluster | None:
    """The largest cluster that starts with the edge call `first`.

    Args:
        elsewhere: whether edge calls join it that fold to other columns as well.

    Returns:
        None when `first` does not fold to one column's rows, or visits rows of their own space.
    """
    start = _row_column(first)
    edges: EdgeProgram = first.args[0]
    # Nodes that are rearranged are the rows of both sides: inside, a row operation's operand would read as an edge's.
    if start is None or start[1] == edges.space:
        return None
    cluster = Cluster(edges.name, edges.space, start[1], start[0], {first: None})
    after: set[fx.Node] = set()  # values that depend on the cluster from outside
    apart: set[fx.Node] = set()  # what is folded by another column
    for node in program.graph.nodes:
        operands = node.all_input_nodes if node.op == "call_function" else []
        if any(n in after or n in apart for n in operands):
            after.add(node)
        elif any(n in cluster.members for n in operands):
            if _joins(node, cluster, elsewhere):
                cluster.members[node] = None
                if node.target is operator.getitem and not _is_row_fold(node, cluster):
                    apart.add(node)
            else:
                after.add(node)
    return cluster


def without_rows_behind(cluster: Cluster) -> Cluster:
    """The cluster with only those operations on rows that an edge call of it reads."""
    needed: set[fx.Node] = set()
    stack = list(cluster.calls)
    while stack:
        for node in stack.pop().all_input_nodes:
            if node in cluster.members and node not in needed:
                needed.add(node)
                stack.append(node)
    kept = {n: None for n in cluster.members if n in needed or n.target in (operator.getitem, edge_call)}
    return Cluster(cluster.name, cluster.space, cluster.row_space, cluster.column, kept)


def without_second_tables(cluster: Cluster, returned: Sequence[fx.Node]) -> Cluster:
    """The cluster without results of operations on rows that are as wide as an operand which is a result as well."""
    kept = dict(cluster.members)
    for node in reversed(cluster.members):
        # Views that are read outside are made again there.
        if node.target in (operator.getitem, edge_call, *ROW_VIEWS) or any(u in kept for u in node.users):
            continue
        rows = [n for n in map(behind_views, node.all_input_nodes) if n in kept and plain_space(n.meta["type"])]
        stay = [n for n in rows if n in returned or any(u not in kept for u in n.users)]
        if any(row_width(n.meta["type"]) >= row_width(node.meta["type"]) for n in stay):
            del kept[node]
    return replace(cluster, members=kept)


def _row_column(call: fx.Node) -> tuple[fx.Node, str] | None:
    """The column, and the space, to whose rows all results of a local edge call are folded."""
    edges, _, columns = call.args
    found: set[tuple[int, str] | None] = set()
    for result in edges.results:
        space = plain_space(result.type)
        folded = result.kind in ("reduce", "rows") and result.axis == 0 and result.column is not None and space
        found.add((result.column, space) if folded else None)  # type: ignore[arg-type]
    only = found.pop() if len(found) == 1 else None
    return (columns[only[0]], only[1]) if only and edges.remote is None else None


def _is_row_fold(node: fx.Node, cluster: Cluster) -> bool:
    """Whether a result of an edge call is folded to the cluster's rows."""
    call, k = node.args
    return call.args[2][call.args[0].results[k].column] is cluster.column


def _joins(node: fx.Node, cluster: Cluster, elsewhere: bool) -> bool:
    """Whether a value that depends on the cluster can be made inside it."""
    if node.target is operator.getitem:
        return True
    if node.target is edge_call:
        edges, values, columns = node.args
        if edges.space != cluster.space or edges.remote is not None:
            return False
        mine = [r for r in edges.results if r.column is not None and columns[r.column] is cluster.column]
        if not all(r.axis == 0 and plain_space(r.type) == cluster.row_space for r in mine):
            return False
        folds = all(r.kind == "reduce" for r in edges.results)
        if not (elsewhere and folds) and _row_column(node) != (cluster.column, cluster.row_space):
            return False
        read = [o for o in edges.operands if values[o.value] in cluster.members]
        return all(o.column is not None and columns[o.column] is cluster.column and o.axis == 0 for o in read)
    return is_row_operation(node, cluster.row_space)
