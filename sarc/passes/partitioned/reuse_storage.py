"""reuse-storage: what is made of a table's rows is written over the table, where nothing reads it again.

The derivative of attention reads each source's features and folds to the same rows; a kernel that visits edges by
source has read a row's features when it writes the row's fold. An activation is made of its row, entry by entry. A
product of rows and a square matrix needs a block of rows besides; where memory counts more than time, so does one
whose rows are somewhat narrower and fill the front of the table. Where that read is the last one, one table does.

Before:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E
      %a: f32[E, 4] = gather $0 by #0 axis 0
      reduce sum by #0 axis 0 %a: f32[N, 4]
    %x: f32[N, 4] = input arg x
    %src: i64[E] = input bound src
    %w: f32[4, 4] = input param w
    %z: f32[N, 4] = aten.exp(%x)
    %edge_call: (f32[N, 4]) = edge_call(@edges0, [%z], [%src])
    %h: f32[N, 4] = getitem(%edge_call, 0)
    %out: f32[N, 4] = aten.mm(%h, %w)
    return result 0 = %out
After:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E
      %a: f32[E, 4] = gather $0 by #0 axis 0
      reduce sum by #0 axis 0 over $0 %a: f32[N, 4]
    %x: f32[N, 4] = input arg x
    %src: i64[E] = input bound src
    %w: f32[4, 4] = input param w
    %z: f32[N, 4] = aten.exp(%x)
    %edge_call: (f32[N, 4]) = edge_call(@edges0, [%z], [%src])
    %h: f32[N, 4] = getitem(%edge_call, 0)
    %mm__default: f32[N, 4] = sarc.mm_(%h, %w)
    return result 0 = %mm__default
Needs a partitioned program in its final order, and what a kernel may write over; gives one whose schedule needs less.
It does nothing to inputs and results of the program, which others hold, to what a later call reads, and to edge
programs that fetch rows: the same object comes back when no table is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.fx as fx

from sarc.ir.cluster import ROW_VIEWS, behind_views, plain_space
from sarc.ir.collective import all_reduce, fetch, give_back
from sarc.ir.dialect import MM_OVER
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.layout_rules import static_length
from sarc.ir.lifetimes import Lifetimes, Storage
from sarc.ir.program import Program
from sarc.passes.base import Builder

aten = torch.ops.aten

# Of a table, the least that a product over it fills.
LEAST_FILLED = 0.5


class ReuseStorage:
    """Lets folds and stored rows of a program take the place of tables that go.

    Args:
        overwritable: pairs (result, place among a call's values) that an edge program's kernel may write over; None
            where there are no such kernels.
        tight: memory counts more than time: a product may leave the rest of a table unused while it is there.
    """

    name = "reuse-storage"

    def __init__(self, overwritable: Callable[[EdgeProgram], list[tuple[int, int]]] | None, tight: bool = False):
        self.overwritable = overwritable or (lambda edges: [])
        self.least = LEAST_FILLED if tight else 1.0

    def run(self, program: Program) -> Program:
        own = program.copy()
        free = find_free(own, self.least)
        # Values in the front of a wider table: a result that took their place would hold all of it.
        fronts: set[fx.Node] = set()
        changed = False
        for node in list(own.graph.nodes):
            if node.target is edge_call:
                changed |= self._folds(node, free, fronts, own.returned)
            elif node.target is aten.mm.default and node in free.get(node.args[0], ()):
                rows = node.args[0]
                front = node.meta["type"] != rows.meta["type"] or behind_views(rows) in fronts
                if front and _is_returned(node, own.returned):
                    continue
                with own.graph.inserting_before(node):
                    builder = Builder(own.graph, own.spaces)
                    builder.loc = node.meta.get("loc", "")
                    over = builder.call(MM_OVER, *node.args)
                if node in free:
                    free[over] = free[node]
                if front:
                    fronts.add(over)
                node.replace_all_uses_with(over)
                own.graph.erase_node(node)
                changed = True
        return own if changed else program

    def _folds(
        self, call: fx.Node, free: dict[fx.Node, set[fx.Node]], fronts: set[fx.Node], returned: Sequence[fx.Node]
    ) -> bool:
        """Let results of an edge call take the place of tables; whether any does."""
        edges, values, columns = call.args
        results, taken = list(edges.results), {r.over for r in edges.results}
        for k, value in self.overwritable(edges) if edges.remote is None else ():
            if results[k].over is not None or value in taken or call not in free.get(values[value], ()):
                continue
            made = [u for u in call.users if u.args[1] == k]
            if behind_views(values[value]) in fronts:
                if any(_is_returned(n, returned) for n in made):
                    continue
                fronts.update(made)
            results[k] = replace(results[k], over=value)
            taken.add(value)
        if results == list(edges.results):
            return False
        call.args = (replace(edges, results=tuple(results)), values, columns)
        return True


def _is_returned(node: fx.Node, returned: Sequence[fx.Node]) -> bool:
    """Whether a value or a view of it is a result of the program."""
    return node in returned or any(u.target in ROW_VIEWS and _is_returned(u, returned) for u in node.users)


def find_free(program: Program, least: float = 1.0) -> dict[fx.Node, set[fx.Node]]:
    """For each value that a call of this program makes, the call behind which nothing reads its storage: an edge call,
    or a product that fits into it.

    What is on its way to other parts may be read after its last reader here: such values are in no entry.
    """
    nodes = [n for n in program.graph.nodes if n.op != "output"]
    sizes = program.spaces.numbers({s.name: 1 for s in program.spaces if s.kind != "concat"})
    holds = Lifetimes(nodes, set(), program.returned, sizes).holds
    place = {n: k for k, n in enumerate(nodes)}
    sharing: dict[object, list[fx.Node]] = {}
    for node in nodes:
        for storage in holds[node]:
            sharing.setdefault(storage, []).append(node)
    found: dict[fx.Node, set[fx.Node]] = {}
    returned = set(program.returned)
    for node in nodes:
        if node.op != "call_function" or len(holds[node]) != 1:
            continue
        (storage,) = holds[node]
        aliases = sharing[storage]
        readers = [u for n in aliases for u in n.users if u not in aliases]
        if any(n.op == "placeholder" or n in returned for n in aliases) or not readers:
            continue
        if any(u.target in (all_reduce, fetch, give_back) for u in readers):
            continue
        last = max([*readers, *aliases], key=place.__getitem__)
        # Rows that a call reads under two names (fetched ones, and the owned ones among them) may be asked for again.
        if last.target is edge_call and sum(v in aliases for v in last.args[1]) == 1:
            found[node] = {last}
        if last.target is aten.mm.default and last.args[0] in aliases and _fits(last, storage, least):
            found[node] = {last}
    return found


def _fits(product: fx.Node, storage: Storage, least: float) -> bool:
    """Whether a product of rows and a replicated matrix fills a share of its rows, which fill their storage."""
    rows, matrix = (n.meta["type"] for n in product.args)
    made = product.meta["type"]
    if not plain_space(rows) or matrix.spaces or made.dtype != rows.dtype:
        return False
    owner, k = storage
    types = owner.meta["type"]
    whole = types[k] if isinstance(types, tuple) else types
    fills = static_length(whole.dims) == rows.dims[1]
    fits = least * rows.dims[1] <= made.dims[1] <= rows.dims[1]
    return fits and plain_space(whole) == plain_space(rows) and whole.dtype == rows.dtype and fills
