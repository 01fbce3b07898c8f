"""build-schedule: one part's program as explicit instructions.

Exchanges go in a ring: in round r part p receives from p - r and sends to p + r, chunk by chunk; receives and sends are
posted `prefetch` chunks ahead and nothing ends in a barrier. Every value is freed after its last use.

Before:
    program forward
    space N = nodes
    space E = edges on edges
    edges @edges0 over E remote #0
      %m: f32[E] = gather $0 by #0 axis 0
      reduce sum by #1 axis 0 %m: f32[N]
    %z: f32[N] = input arg z
    %src: i64[E] = input bound src
    %dst: i64[E] = input bound dst
    %edge_call: (f32[N]) = edge_call(@edges0, [%z], [%src, %dst])
    %getitem: f32[N] = getitem(%edge_call, 0)
    return result 0 = %getitem
After:
    schedule forward part 0: at most 2 chunks alive, sends 8 B
      begin      %edge_call
      recv       edge_call.in1.0 <- part 1, 2 rows, 8 B
      send       edge_call.out1.0 -> part 1, 2 rows, 8 B (fetch)
      block      %edge_call part 0 chunk 0
      wait       edge_call.in1.0
      wait       edge_call.out1.0
      free       edge_call.out1.0
      block      %edge_call part 1 chunk 0 from edge_call.in1.0
      free       edge_call.in1.0
      free       z, src, dst
      launch     %getitem
      free       edge_call
Needs a partitioned program and the part's column maps; gives instructions in which what two parts send each other is in
one order on both sides, and which keep at most 2 (1 + prefetch) chunks alive.
It does nothing about an edge program whose rows are all owned: it is one block without messages.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import torch
import torch.fx as fx

from sarc.ir.collective import all_reduce, fetch, give_back
from sarc.ir.dialect import GATHER, REDUCE
from sarc.ir.edge_program import EdgeProgram, edge_call, fetch_layout, return_layout, whole_layout
from sarc.ir.program import Program
from sarc.ir.schedule import (
    AllReduce,
    AllToAll,
    Begin,
    Combine,
    Finish,
    Free,
    Instruction,
    Launch,
    Message,
    PostRecv,
    RunBlock,
    Schedule,
    Send,
    Wait,
)
from sarc.ir.space import Rows, Spaces
from sarc.partition.columns import ColumnMap

# An all-reduce of several values packs no more than this.
_BUCKET_BYTES = 16 << 20


def build_schedule(
    program: Program,
    rank: int,
    num_parts: int,
    columns: Mapping[tuple[str, str | int], ColumnMap],
    prefetch: int,
    wire: torch.dtype | None = None,
) -> Schedule:
    """The schedule of part `rank`.

    Args:
        program: a partitioned program.
        columns: map of each column, by (value name, target space).
        prefetch: chunks posted ahead of the one in use.
        wire: dtype of wider floating-point numbers on the way; None: their own.
    """
    instructions: list[Instruction] = []
    last_use = _last_uses(program)
    waiting: dict[fx.Node, list[fx.Node]] = {}  # exchanges on their way, and what is read of each
    shares: dict[tuple[str, object], list[fx.Node]] = {}  # contractions that wait for company
    calls = 0

    def free(node: fx.Node) -> None:
        if last_use.get(node):
            instructions.append(Free(tuple(n.name for n in last_use[node])))

    def finish(exchange: fx.Node) -> None:
        instructions.append(Finish(exchange.name, (calls, 0, 0, 0)))
        for read in waiting.pop(exchange):
            instructions.append(Launch(read.name))
            free(read)

    def complete(key: tuple[str, object]) -> None:
        for bucket in _buckets(shares.pop(key)):
            instructions.append(AllReduce(tuple(n.name for n in bucket), key[0]))
            for node in bucket:
                free(node)

    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is operator.getitem and node.args[0] in waiting:
            waiting[node.args[0]].append(node)
            continue
        needed = node.all_input_nodes
        for exchange in [e for e, reads in waiting.items() if any(n in reads for n in needed)]:
            finish(exchange)
        for key in [k for k, nodes in shares.items() if any(n in nodes for n in needed)]:
            complete(key)
        if node.target is all_reduce:
            shares.setdefault((node.args[1], node.meta["type"].dtype), []).append(node)
            continue
        if node.target in (fetch, give_back):
            instructions.append(_all_to_all(node, rank, columns, program, wire))
            waiting[node] = []
        elif node.target is edge_call:
            instructions += _edge_call(node, rank, num_parts, columns, prefetch, calls, program.spaces, wire)
        else:
            instructions.append(Launch(node.name))
        calls += node.target in (edge_call, fetch, give_back)
        free(node)
    for exchange in list(waiting):
        finish(exchange)
    for key in list(shares):
        complete(key)
    return Schedule(rank, program.stage, tuple(instructions), 2 * (1 + prefetch), wire)


def _buckets(nodes: list[fx.Node]) -> list[list[fx.Node]]:
    """All-reduces in messages of at most `_BUCKET_BYTES`, as far as one fits."""
    found: list[list[fx.Node]] = []
    room = 0
    for node in nodes:
        type_ = node.meta["type"]
        nbytes = math.prod(type_.dims) * type_.dtype.itemsize
        if not found or nbytes > room:
            found.append([])
            room = _BUCKET_BYTES
        found[-1].append(node)
        room -= nbytes
    return found


def _all_to_all(
    node: fx.Node, p: int, columns: Mapping[tuple[str, str | int], ColumnMap], program: Program,
    wire: torch.dtype | None,
) -> AllToAll:
    """The exchange of a fetch or a give-back on part p; peers in order."""
    parent = next(s.parents[0] for s in program.spaces if s.kind == "reach" and s.mask == node.args[1].name)
    column = columns[node.args[1].name, parent]
    layout = whole_layout(node, wire)
    reads = tuple(Message(q, n, layout.message_bytes(n)) for q, n in enumerate(map(sum, column.needs)) if n)
    serves = [(q, sum(c.numel() for c in chunks)) for q, chunks in enumerate(column.serves)]
    owes = tuple(Message(q, n, layout.message_bytes(n)) for q, n in serves if n)
    if node.target is fetch:
        return AllToAll(node.name, "fetch", owes, reads)
    return AllToAll(node.name, "return", reads, owes)


def column_targets(program: Program) -> list[tuple[fx.Node, str | int]]:
    """Every column of `program` with the space whose rows it names, or the length of a replicated dimension."""
    found: dict[tuple[fx.Node, str | int], None] = {}

    def parent(space: str | int) -> str | int:
        """Rows of a reach are named as those of its parent are."""
        reach = isinstance(space, str) and program.spaces[space].kind == "reach"
        return program.spaces[space].parents[0] if reach else space  # type: ignore[index]

    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is edge_call:
            edges, values, columns = node.args
            for operand in edges.operands:
                if operand.column is not None:
                    found[columns[operand.column], parent(_space(values[operand.value], operand.axis))] = None
            for result in edges.results:
                if result.kind == "reduce":
                    dim = result.type.dims[result.axis]
                    found[columns[result.column], parent(dim.space)] = None
        elif node.target in (GATHER, REDUCE):
            holder = node.args[0] if node.target is GATHER else node
            found[node.args[1], parent(_space(holder, node.args[2]))] = None
        elif node.target in (fetch, give_back):
            held = next(s for s in program.spaces if s.kind == "reach" and s.mask == node.args[1].name)
            found[node.args[1], held.parents[0]] = None
    return list(found)


def _space(node: fx.Node, axis: int) -> str | int:
    dim = node.meta["type"].dims[axis]
    return dim.space if isinstance(dim, Rows) else dim


def _last_uses(program: Program) -> dict[fx.Node, list[fx.Node]]:
    """For each call, the values whose last reader it is (results of the program and inputs are kept)."""
    kept = set(program.returned)
    last: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        for operand in node.all_input_nodes:
            last[operand] = node
        last.setdefault(node, node)
    freed: dict[fx.Node, list[fx.Node]] = {}
    for value, reader in last.items():
        if value not in kept:
            freed.setdefault(reader, []).append(value)
    return freed


def _edge_call(
    node: fx.Node, p: int, num_parts: int, columns: Mapping[tuple[str, str | int], ColumnMap], prefetch: int, call: int,
    spaces: Spaces, wire: torch.dtype | None,
) -> list[Instruction]:
    """Instructions of one edge call on part p."""
    edges, values, names = node.args
    out: list[Instruction] = [Begin(node.name)]
    if edges.remote is None:
        return [*out, RunBlock(node.name, p, 0)]
    fetched = fetch_layout(edges, [v.meta["type"] for v in values], spaces, wire).row_bytes
    back = return_layout(edges, spaces, wire).row_bytes
    target = _remote_target(edges, values, spaces)
    column = columns[names[edges.remote].name, target]
    if not column.remote:
        return [*out, RunBlock(node.name, p, 0)]
    rounds = _rounds(column, p, num_parts)
    name = node.name

    def tag(direction: str, r: int, c: int) -> str:
        return f"{name}.{direction}{r}.{c}"

    def post_fetch(k: int) -> None:
        if not fetched or k >= len(rounds):
            return
        r, c, source, dest, incoming, outgoing = rounds[k]
        if incoming:
            out.append(PostRecv(tag("in", r, c), name, source, incoming, incoming * fetched))
        if outgoing:
            out.append(Send(tag("out", r, c), name, dest, c, outgoing, outgoing * fetched, "fetch"))

    def finish_return(k: int) -> None:
        r, c, _, dest, incoming, outgoing = rounds[k]
        if outgoing:
            buffer = tag("sum_in", r, c)
            out.extend([Wait(buffer, (call, r, c, 1)), Combine(name, buffer, dest, c), Free((buffer,))])
        if incoming:
            buffer = tag("sum_out", r, c)
            out.extend([Wait(buffer, (call, r, c, 1)), Free((buffer,))])

    for k in range(min(1 + prefetch, len(rounds))):
        post_fetch(k)
    out.append(RunBlock(name, p, 0))
    for k, (r, c, source, dest, incoming, outgoing) in enumerate(rounds):
        received, partial = "", ""
        if fetched and incoming:
            received = tag("in", r, c)
            out.append(Wait(received, (call, r, c, 0)))
        if fetched and outgoing:
            out.extend([Wait(tag("out", r, c), (call, r, c, 0)), Free((tag("out", r, c),))])
        if back and incoming:
            partial = tag("sum_out", r, c)
        if incoming:
            out.append(RunBlock(name, source, c, received, partial))
        if received:
            out.append(Free((received,)))
        if back and incoming:
            out.append(Send(partial, name, source, c, incoming, incoming * back, "return"))
        if back and outgoing:
            out.append(PostRecv(tag("sum_in", r, c), name, dest, outgoing, outgoing * back))
        # With rows fetched as well, the returns of a round end before the next fetch is posted: the number of chunks
        # alive stays within 2 (1 + prefetch).
        if back and fetched:
            finish_return(k)
        elif back and k >= prefetch:
            finish_return(k - prefetch)
        post_fetch(k + 1 + prefetch)
    if back and not fetched:
        for k in range(max(0, len(rounds) - prefetch), len(rounds)):
            finish_return(k)
    return out


def _remote_target(edges: EdgeProgram, values: Sequence[fx.Node], spaces: Spaces) -> str | int:
    """The space whose rows the remote column names: those of a reach are named as its parent's are."""
    ends = [(values[o.value].meta["type"], o.axis) for o in edges.operands if o.column == edges.remote]
    ends += [(r.type, r.axis) for r in edges.results if r.column == edges.remote]
    type_, axis = ends[0]
    dim = type_.dims[axis]
    if not isinstance(dim, Rows):
        return dim
    return spaces[dim.space].parents[0] if spaces[dim.space].kind == "reach" else dim.space


def _rounds(column: ColumnMap, p: int, num_parts: int) -> list[tuple[int, int, int, int, int, int]]:
    """(round, chunk, source, destination, rows received, rows sent) in ring order; empty chunks have no message.

    All parts list the same rounds, empty ones too. So what one part sends to another, fetches of one round and returns
    of another among them, is posted in one order on both sides: messages are matched by order alone.
    """
    found = []
    for r in range(1, num_parts):
        source, dest = (p - r) % num_parts, (p + r) % num_parts
        needs, serves = column.needs[source], column.serves[dest]
        for c in range(column.round_chunks[r]):
            incoming = needs[c] if c < len(needs) else 0
            outgoing = serves[c].numel() if c < len(serves) else 0
            found.append((r, c, source, dest, incoming, outgoing))
    return found
