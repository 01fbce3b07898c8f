"""reuse-storage: a fold or a chain of row operations is written over a table of its own rows that nothing reads again.

The derivative of attention reads each source's features and folds to the same rows; a kernel that visits edges by
source has read a row's features when it writes the row's fold. An activation is made of its row, entry by entry. Where
that read is the last one, one table does.

Before:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E
      %a: f32[E, 4] = gather $0 by #0 axis 0
      %m: f32[E, 4] = aten.exp(%a)
      reduce sum by #0 axis 0 %m: f32[N, 4]
    %x: f32[N, 4] = input arg x
    %src: i64[E] = input bound src
    %z: f32[N, 4] = aten.exp(%x)
    %edge_call: (f32[N, 4]) = edge_call(@edges0, [%z], [%src])
    %out: f32[N, 4] = getitem(%edge_call, 0)
    return result 0 = %out
After:
    program backward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E
      %a: f32[E, 4] = gather $0 by #0 axis 0
      %m: f32[E, 4] = aten.exp(%a)
      reduce sum by #0 axis 0 over $0 %m: f32[N, 4]
    %x: f32[N, 4] = input arg x
    %src: i64[E] = input bound src
    %z: f32[N, 4] = aten.exp(%x)
    %edge_call: (f32[N, 4]) = edge_call(@edges0, [%z], [%src])
    %out: f32[N, 4] = getitem(%edge_call, 0)
    return result 0 = %out
Needs a partitioned program in its final order, and what a kernel may write over; gives one whose schedule needs less.
It does nothing to inputs and results of the program, which others hold, to what a later call reads, and to edge
programs that fetch rows: the same object comes back when no table is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.fx as fx

from sarc.ir.collective import all_reduce, fetch, give_back
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.lifetimes import Lifetimes
from sarc.ir.program import Program


class ReuseStorage:
    """Lets folds and stored rows of a program take the place of tables that go.

    Args:
        overwritable: pairs (result, place among a call's values) that an edge program's kernel may write over.
    """

    name = "reuse-storage"

    def __init__(self, overwritable: Callable[[EdgeProgram], list[tuple[int, int]]]):
        self.overwritable = overwritable

    def run(self, program: Program) -> Program:
        own = program.copy()
        free = find_free(own)
        changed = False
        for call in [n for n in own.graph.nodes if n.target is edge_call]:
            edges, values, columns = call.args
            results, taken = list(edges.results), {r.over for r in edges.results}
            for k, value in self.overwritable(edges) if edges.remote is None else ():
                if results[k].over is None and value not in taken and call in free.get(values[value], ()):
                    results[k] = replace(results[k], over=value)
                    taken.add(value)
            if results != list(edges.results):
                call.args = (replace(edges, results=tuple(results)), values, columns)
                changed = True
        return own if changed else program


def find_free(program: Program) -> dict[fx.Node, set[fx.Node]]:
    """For each value that a call of this program makes, the edge call behind which nothing reads its storage.

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
    return found
