"""fuse-rows: chains of operations on rows become edge programs over the rows themselves.

Between two matrix products, and around edge programs, stand bias, activation, dropout, normalisation and their
derivatives: each would read and write whole tables. As one program over rows they read each operand once, write only
what is read elsewhere, and sum over rows (a bias gradient, a batch mean) in passing.

Before:
    program forward
    space N = nodes
    %x: f32[N, 16] = input arg x
    %h: f32[N, 16] = aten.exp(%x)   # model.py:8
    %y: f32[N, 16] = aten.relu(%h)   # model.py:9
    return result 0 = %y
After:
    program forward
    space N = nodes
    edges @rows0 over N   # model.py:8
      %x: f32[N, 16] = rows $0 axis 0
      %h: f32[N, 16] = aten.exp(%x)   # model.py:8
      %y: f32[N, 16] = aten.relu(%h)   # model.py:9
      store axis 0 %y: f32[N, 16]
    %x: f32[N, 16] = input arg x
    %rows_y: (f32[N, 16]) = edge_call(@rows0, [%x], [])   # model.py:8
    %y: f32[N, 16] = getitem(%rows_y, 0)   # model.py:9
    return result 0 = %y
Needs a partitioned program and whether an edge program has a kernel; gives one in which chains of two and more
operations on rows are edge programs.
It does nothing to single operations, to views, and to chains that have no kernel: the same object comes back when
there are no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.fx as fx

from sarc.ir.cluster import ROW_VIEWS, Cluster, Merger, is_row_operation, is_row_sum, plain_space, replace_clusters
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.program import Program
from sarc.ir.space import Rows, ValueType


class FuseRows:
    """Fuses operations on rows of a program, as far as they have kernels.

    Args:
        has_kernel: whether an edge program has a compiled form.
    """

    name = "fuse-rows"

    def __init__(self, has_kernel: Callable[[EdgeProgram], bool]):
        self.has_kernel = has_kernel

    def run(self, program: Program) -> Program:
        # What is fused may free the way for the rest of a chain.
        while (fused := self._once(program)) is not program:
            program = fused
        return program

    def _once(self, program: Program) -> Program:
        made = [n.args[0].name for n in program.graph.nodes if n.target is edge_call]
        numbers = [int(name[4:]) for name in made if name[:4] == "rows" and name[4:].isdigit()]
        mergers = []
        for number, chain in enumerate(find_chains(program), max(numbers, default=-1) + 1):
            space = next(s for n in chain if (s := plain_space(n.meta["type"])))
            merger = Merger(program, Cluster(f"rows{number}", space, space, None, dict.fromkeys(chain)))
            if merger.program.results and self.has_kernel(merger.program):
                mergers.append(merger)
        return replace_clusters(program, mergers) if mergers else program


def find_chains(program: Program) -> list[list[fx.Node]]:
    """The values of each chain, in order; no value is in two.

    Values belong together that read each other without a detour through anything but operations on rows. What a
    backward pass makes again does not stand with what gradients enter: one would wait for the other.
    """
    late = behind_tangents(program)
    level = _levels(program)
    while _wait_for_readers(program, level, late):
        pass
    chain: dict[fx.Node, list[fx.Node]] = {}
    for node in level:
        joined = [node]
        for operand in node.all_input_nodes:
            if (operand in late) != (node in late) or level.get(operand) != level[node]:
                continue
            if _space_of(operand) == _space_of(node) and not is_row_sum(operand, _space_of(node)):
                joined = _merged(chain, operand, joined)
        for member in joined:
            chain[member] = joined
    order = {n: k for k, n in enumerate(program.graph.nodes)}
    found = {id(c): sorted(c, key=order.__getitem__) for c in chain.values()}
    chains = [c for c in found.values() if sum(n.target not in ROW_VIEWS for n in c) > 1]
    return sorted(chains, key=lambda c: order[c[0]])


def _levels(program: Program) -> dict[fx.Node, int]:
    """Of each operation on rows, how often what it is made of leaves such operations, in the program's order."""
    level: dict[fx.Node, int] = {}
    behind: dict[fx.Node, int] = {}  # highest level that any other value depends on
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        operands = node.all_input_nodes
        if _space_of(node):
            found = [level.get(n, 0) for n in operands] + [behind.get(n, -1) + 1 for n in operands]
            level[node] = max(found, default=0)
        else:
            behind[node] = max([behind.get(n, -1) for n in operands] + [level.get(n, -1) for n in operands], default=-1)
    return level


def _wait_for_readers(program: Program, level: dict[fx.Node, int], late: set[fx.Node]) -> bool:
    """Raise operations that only later operations on the same rows read to the level of the first of these, and behind
    the tangents with them.

    Not where a wider operand would have to wait with them that nothing else at that level reads. Whether any moved.
    """
    moved = False
    for node in reversed(level):
        space = _space_of(node)
        readers = list(node.users)
        if not readers or any(_space_of(u) != space for u in readers):
            continue
        first = min(level[u] for u in readers)
        read_late = node not in late and all(u in late for u in readers)
        wider = [n for n in node.all_input_nodes if _row_bytes(n) > _row_bytes(node)]
        others = [[u for u in n.users if u is not node and (u in late or not read_late)] for n in wider]
        stays = all(any(level.get(u, -1) >= first for u in found) for found in others)
        if (first > level[node] or read_late) and stays:
            level[node] = first
            moved = True
            if read_late:
                late.add(node)
    return moved


def behind_tangents(program: Program) -> set[fx.Node]:
    """Values that gradients of results enter, and operations on rows that only such operations read.

    An operation whose rows are narrower than its operand's is done early: the operand may go.
    """
    late = {n for n, e in zip(program.placeholders, program.inputs, strict=True) if e.kind == "tangent"}
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    for node in calls:
        if any(n in late for n in node.all_input_nodes):
            late.add(node)
    if late:
        for node in reversed(calls):
            space = _space_of(node)
            read_late = space and node.users and all(u in late and _space_of(u) == space for u in node.users)
            if read_late and _row_bytes(node) >= max(map(_row_bytes, node.all_input_nodes), default=0):
                late.add(node)
    return late


def _row_bytes(node: fx.Node) -> int:
    """Bytes of one row; 0 without rows."""
    type_ = node.meta["type"]
    if not isinstance(type_, ValueType) or not type_.spaces:
        return 0
    return type_.dtype.itemsize * math.prod(d.before * d.after if isinstance(d, Rows) else d for d in type_.dims)


def _merged(chain: dict[fx.Node, list[fx.Node]], operand: fx.Node, joined: list[fx.Node]) -> list[fx.Node]:
    other = chain[operand]
    return joined if other is joined or operand in joined else other + joined


def _space_of(node: fx.Node) -> str:
    """The space of an operation on rows, or of the rows that a sum contracts; "" for any other value."""
    if node.op != "call_function":
        return ""
    space = plain_space(node.meta["type"])
    if space:
        return space if is_row_operation(node, space) else ""
    operand = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    space = plain_space(operand.meta["type"]) if operand is not None else ""
    return space if space and is_row_sum(node, space) else ""
