"""Executor: runs one part's schedule."""

from __future__ import annotations

import operator
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.fx as fx
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.ir import schedule as ins
from sarc.ir.collective import fetch, tuple_of
from sarc.ir.dialect import GATHER, OWN_ROWS, REDUCE, UNIFORM, fold_rows, start_value
from sarc.ir.draws import keyed_uniform
from sarc.ir.edge_program import (
    ChunkLayout,
    EdgeProgram,
    Operand,
    Result,
    fetch_layout,
    is_reach,
    new_accumulator,
    return_layout,
    whole_layout,
)
from sarc.ir.ops import resolve_sizes
from sarc.ir.program import Program
from sarc.ir.space import Rows, ValueType, lengths
from sarc.partition.columns import Block, ColumnMap
from sarc.runtime.check_sent import check_sent
from sarc.runtime.edge_block import EdgeBlock, run_in_torch, sub_block_bytes
from sarc.runtime.memory import Pool, compute_into
from sarc.runtime.messages import Handle
from sarc.runtime.part_state import PartState
from sarc.runtime.structure import run_local
from sarc.runtime.transport import Transport
from sarc.runtime.whole_exchange import WholeExchange
from sarc.runtime.work import AllReduce, Wait, Work

_NO_KEYS = torch.empty(0, dtype=torch.int64)  # of spaces over which nothing is drawn


class Kernel(Protocol):
    """A compiled edge program (`sarc.codegen.kernels.CppKernel`)."""

    @property
    def orders(self) -> list[int | None]: ...

    def fits(self, order: Any) -> bool: ...

    def traverse(
        self,
        order: int | None,
        edges: Tensor | None,
        length: int,
        columns: Mapping[int, Tensor],
        rows: int | None,
        device: torch.device | str = "cpu",
    ) -> object: ...

    def launch(
        self,
        traversals: Sequence[object],
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        keys: Tensor,
        fresh: bool,
        empty: Callable[..., Tensor],
    ) -> None: ...

    def workspace(self, edges: int, operands: Sequence[Tensor], results: Sequence[Tensor]) -> int: ...


class Recorder(Protocol):
    """Runs each instruction's step on the executor's behalf, and notes what it likes."""

    def watch(self, executor: Executor, place: int, step: Work) -> Work: ...


class Executor:
    """One run of a schedule on one part.

    Args:
        program: the partitioned program the schedule was built from.
        schedule: the part's instructions.
        state: the part's rows and column maps.
        transport: sends and receives.
        values: the part's rows of each input, by placeholder name; emptied as values are freed.
        run: number of the run, common to all parts; messages of different runs never meet.
        kernels: compiled edge programs, by name; the others run in plain torch.
        pool: memory of large results.
        recorder: watches every instruction (`sarc.runtime.profile.Profile`), or None.
    """

    def __init__(
        self,
        program: Program,
        schedule: ins.Schedule,
        state: PartState,
        transport: Transport,
        values: dict[str, Tensor],
        run: int = 0,
        kernels: Mapping[str, Kernel] | None = None,
        pool: Pool | None = None,
        recorder: Recorder | None = None,
    ):
        self.kernels = kernels or {}
        self.pool = pool or Pool()
        self.recorder = recorder
        self.program, self.schedule, self.state, self.transport = program, schedule, state, transport
        self.env: dict[str, Any] = values
        self.number = run
        self.nodes = {n.name: n for n in program.graph.nodes}
        self.local, self.total = state.sizes_of(program.spaces)
        self.chunks: dict[str, Tensor] = {}
        self.messages: dict[str, Handle] = {}
        self.exchanges: dict[str, WholeExchange] = {}
        self.narrowed: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.most_chunks = 0
        self.sent: Counter[tuple[str, int]] = Counter()
        self.workspace = 0  # most bytes that the present instruction alone needs
        self._scratch_alive = 0
        self.keys = state.all_keys()
        self.device = state.device

    def run(self) -> Work:
        """A `Work` (see `run_parts`) that returns the program's results in order."""
        for place, instruction in enumerate(self.schedule.instructions):
            self.workspace = 0
            step = getattr(self, self._STEPS[type(instruction)])(instruction)
            yield from step if self.recorder is None else self.recorder.watch(self, place, step)
        if self.chunks:
            left = ", ".join(sorted(self.chunks))
            raise ExchangeError(f"part {self.state.rank}: chunks left at the end of the schedule: {left}")
        check_sent(self.schedule, self.sent)
        return [self.env[n.name] for n in self.program.returned]

    # --- operators

    def _launch(self, step: ins.Launch) -> Work:
        node = self.nodes[step.node]
        self.env[node.name] = self._compute(node)
        return
        yield

    def _compute(self, node: fx.Node):
        env = _ByNode(self.env)
        if node.target is operator.getitem:
            return env[node.args[0]][node.args[1]]
        if node.target is tuple_of:
            return tuple(env[v] for v in node.args[0])
        if node.target is UNIFORM:
            args, _ = resolve_sizes(node, fx.map_arg(node.args, env.__getitem__), {}, self.local, self.total)
            return keyed_uniform(node, args, self.keys)
        if node.target is OWN_ROWS:  # a view where the operator itself copies
            x, axis, _ = node.args
            return env[x].narrow(axis, 0, self.local[node.meta["type"].dims[axis].space])
        if node.target is GATHER:
            x, column, axis = node.args
            return env[x].index_select(axis, self._map(column, x.meta["type"].dims[axis]).own_index)
        if node.target is REDUCE:
            rows, column, axis, size, kind = node.args
            dim = node.meta["type"].dims[axis]
            shape = list(env[rows].shape)
            shape[axis] = self.local[dim.space] if isinstance(dim, Rows) else size
            out = env[rows].new_full(shape, start_value(kind, env[rows].dtype))
            fold_rows(out, axis, self._map(column, dim).own_index, env[rows], kind)
            return out
        return self._into_pool(node, env)

    def _into_pool(self, node: fx.Node, env):
        """A plain operator; a large result goes to memory of the pool."""
        type_ = node.meta["type"]
        if isinstance(type_, ValueType) and type_.spaces and self.device.type == "cpu":
            args, kwargs = resolve_sizes(
                node, fx.map_arg(node.args, env.__getitem__), fx.map_arg(node.kwargs, env.__getitem__),
                self.local, self.total,
            )  # fmt: skip
            made = compute_into(node, args, kwargs, self.pool, lengths(type_, self.local))
            if made is not None:
                return made
        return run_local(node, env, self.local, self.total, self.device)

    def _map(self, column: fx.Node, dim) -> ColumnMap:
        if isinstance(dim, Rows) and self.program.spaces[dim.space].kind == "reach":
            return self.state.reach(column.name, self.program.spaces[dim.space].parents[0])
        return self.state.columns[column.name, dim.space if isinstance(dim, Rows) else dim]

    def _all_reduce(self, step: ins.AllReduce) -> Work:
        shares = [self.env[self.nodes[name].args[0].name] for name in step.nodes]
        if len(shares) == 1:
            self.env[step.node] = yield AllReduce(shares[0], step.op)
            return
        total = yield AllReduce(torch.cat([s.reshape(-1) for s in shares]), step.op)
        for name, share, made in zip(step.nodes, shares, total.split([s.numel() for s in shares]), strict=True):
            self.env[name] = made.view(share.shape)

    def _free(self, step: ins.Free) -> Work:
        for name in step.names:
            if name in self.chunks:
                del self.chunks[name]
                self.messages.pop(name, None)
            else:
                self.env.pop(name, None)
        return
        yield

    # --- messages

    def _allocate(self, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.pool.empty(lengths, dtype, self.device)

    def _new_chunk(self, name: str, nbytes: int) -> Tensor:
        self.chunks[name] = self._allocate((nbytes,), torch.uint8)
        self.most_chunks = max(self.most_chunks, len(self.chunks))
        if len(self.chunks) > self.schedule.chunk_limit:
            raise ExchangeError(
                f"part {self.state.rank}: {len(self.chunks)} chunks alive, the schedule allows "
                f"{self.schedule.chunk_limit}: {sorted(self.chunks)}"
            )
        return self.chunks[name]

    def _what(self, name: str, peer: int) -> str:
        call, place, chunk = name.rsplit(".", 2)  # call.direction round.chunk, as the schedule names its buffers
        kind, round_ = place.rstrip("0123456789"), place.lstrip("_abcdefghijklmnopqrstuvwxyz")
        return (
            f"buffer {call}.{kind} of round {round_}, chunk {chunk}, between part {self.state.rank} and peer part "
            f"{peer} ({self.schedule.stage})"
        )

    def _post_recv(self, step: ins.PostRecv) -> Work:
        buffer = self._new_chunk(step.buffer, step.nbytes)
        what = self._what(step.buffer, step.peer)
        self.messages[step.buffer] = self.transport.receive(step.peer, self.state.rank, buffer, what, self.number)
        return
        yield

    def _send(self, step: ins.Send) -> Work:
        if step.what == "fetch":
            buffer = self._new_chunk(step.buffer, step.nbytes)
            self._pack(step, buffer)
        for segment, share in self.narrowed.pop(step.buffer, ()):
            segment.copy_(share)
        buffer = self.chunks[step.buffer]
        if buffer.nbytes != step.nbytes:
            raise ExchangeError(f"{self._what(step.buffer, step.peer)}: {buffer.nbytes} bytes, planned {step.nbytes}")
        self.sent[step.call, step.peer] += buffer.nbytes
        what = self._what(step.buffer, step.peer)
        self.messages[step.buffer] = self.transport.send(self.state.rank, step.peer, buffer, what, self.number)
        return
        yield

    def _wait(self, step: ins.Wait) -> Work:
        yield Wait(self.messages[step.buffer], step.clock)

    def _pack(self, step: ins.Send, buffer: Tensor) -> None:
        node = self.nodes[step.call]
        values, layout = node.args[1], self._fetch_layout(node)
        rows = self._remote_map(node).serves[step.peer][step.chunk]
        for key, segment in layout.segments(buffer, step.rows).items():
            axis = next(a for k, a, _, _ in layout.entries if k == key)
            table = self.env[values[key].name]
            if axis == 0 and table.dtype == segment.dtype:
                torch.index_select(table, 0, rows, out=segment)
            else:
                segment.copy_(table.index_select(axis, rows).movedim(axis, 0))

    # --- exchanges with every peer at once

    def _all_to_all(self, step: ins.AllToAll) -> Work:
        node = self.nodes[step.node]
        values = [self.env[v.name] for v in node.args[0]]
        parent = self._parent(node)
        column = self.state.columns[node.args[1].name, parent]
        layout = whole_layout(node, self.schedule.wire)
        exchange = WholeExchange(layout, column, self.local[parent], values, step, self.pool)
        self.env[step.node] = [exchange.sent, exchange.received, *values]  # what is alive meanwhile
        at = f"part {self.state.rank} ({self.schedule.stage})"
        what = f"buffer {step.node} ({step.what}), the round of all peers, of {at}"
        planned = sum(m.nbytes for m in step.sends)
        if exchange.sent.nbytes != planned:
            raise ExchangeError(f"{what}: {exchange.sent.nbytes} bytes, planned {planned}")
        for message in step.sends:
            self.sent[step.node, message.peer] += message.nbytes
        self.messages[step.node] = self.transport.all_to_all(
            self.state.rank, step, exchange.sent, exchange.received, what, self.number
        )
        self.exchanges[step.node] = exchange
        return
        yield

    def _finish(self, step: ins.Finish) -> Work:
        yield Wait(self.messages.pop(step.node), step.clock)
        exchange, node = self.exchanges.pop(step.node), self.nodes[step.node]
        self.env[step.node] = exchange.tables() if node.target is fetch else exchange.fold(node.args[2])

    def _parent(self, node: fx.Node) -> str:
        """The space whose rows an exchange's column names."""
        name = node.args[1].name
        return next(s.parents[0] for s in self.program.spaces if s.kind == "reach" and s.mask == name)

    # --- edge calls

    def _fetch_layout(self, node: fx.Node) -> ChunkLayout:
        edges, values, _ = node.args
        return fetch_layout(edges, [v.meta["type"] for v in values], self.program.spaces, self.schedule.wire)

    def _remote_map(self, node: fx.Node) -> ColumnMap:
        edges, values, columns = node.args
        ends = [(values[o.value].meta["type"], o.axis) for o in edges.operands if o.column == edges.remote]
        ends += [(r.type, r.axis) for r in edges.results if r.column == edges.remote]
        type_, axis = ends[0]
        space = self.program.spaces[type_.dims[axis].space]
        return self.state.columns[columns[edges.remote].name, space.parents[0] if space.kind == "reach" else space.name]

    def _begin(self, step: ins.Begin) -> Work:
        edges: EdgeProgram = self.nodes[step.call].args[0]
        fresh = self._is_fresh(self.nodes[step.call])
        self.env[step.call] = [
            self.pool.empty(lengths(r.type, self.local), r.type.dtype, self.device)
            if fresh and r.kind != "contract"
            else new_accumulator(r, self.local, self.device, self.pool.empty if self.device.type == "cpu" else None)
            for r in edges.results
        ]
        return
        yield

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether one kernel launch makes the whole of a call's results: their accumulators need not be filled."""
        edges: EdgeProgram = node.args[0]
        alone = edges.remote is None or not self._remote_map(node).remote
        return alone and edges.name in self.kernels and (self.local[edges.space] > 0 or bool(edges.own_columns))

    def _run_block(self, step: ins.RunBlock) -> Work:
        node = self.nodes[step.call]
        edges: EdgeProgram = node.args[0]
        values = node.args[1]
        chunk = self._block(node, step)
        fetched: dict[int, Tensor] = {}
        if step.fetched:
            rows = self._remote_map(node).needs[step.peer][step.chunk]
            found = self._fetch_layout(node).table(self.chunks[step.fetched], rows)
            fetched = {k: t.to(self.env[values[k].name].dtype) for k, t in found.items()}
        partial = self._new_partial(edges, node, step) if step.partial else {}
        block = self._edge_block(node, chunk)
        if not block.length and not edges.own_columns:
            return
        remote = edges.remote if chunk is not None and chunk.peer != self.state.rank else None
        tables = []
        for operand in edges.operands:
            far = operand.column is not None and operand.column == remote
            if far and operand.value in fetched:
                tables.append(fetched[operand.value])
                continue
            table = self.env[values[operand.value].name]
            if operand.column is not None and operand.column == edges.remote and chunk is not None:
                table = self._reached(node, operand, values[operand.value].meta["type"], table, step)
            tables.append(table)
        into = []
        for k, (result, whole) in enumerate(zip(edges.results, self.env[node.name], strict=True)):
            if result.kind == "reduce" and result.column == edges.remote and chunk is not None:
                whole = partial[k] if k in partial else self._reached(node, result, result.type, whole, step)
            into.append(whole)
        keys = self.keys.get(edges.space, _NO_KEYS).to(self.device)
        kernel = self.kernels.get(edges.name)
        if kernel is None:
            self.workspace = sub_block_bytes(edges, block.length)
            run_in_torch(edges, block, tables, into, keys, self.local, self.total)
        else:
            traversals = self._traversals(kernel, block, chunk)
            kernel.launch(traversals, tables, into, keys, chunk is None, self._scratch)
        return
        yield

    def _scratch(self, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
        made = self.pool.empty(lengths, dtype, self.device)
        if self.recorder is not None:
            self._scratch_changes(made.nbytes)
            weakref.finalize(made, self._scratch_changes, -made.nbytes)
        return made

    def _scratch_changes(self, nbytes: int) -> None:
        self._scratch_alive += nbytes
        self.workspace = max(self.workspace, self._scratch_alive)

    def _reached(
        self, node: fx.Node, end: Operand | Result, type_: ValueType, table: Tensor, step: ins.RunBlock
    ) -> Tensor:
        """A block's rows of a table: those of one chunk, or the owned ones, where it has rows of a reach."""
        axis = end.axis
        assert axis is not None
        dim = type_.dims[axis]
        if not isinstance(dim, Rows) or not is_reach(dim, self.program.spaces):
            return table
        column, owned = self._remote_map(node), self.local[self.program.spaces[dim.space].parents[0]]
        if step.peer == self.state.rank:
            return table.narrow(axis, 0, owned)
        start = owned + column.halo_start(step.peer, step.chunk)
        return table.narrow(axis, start, column.needs[step.peer][step.chunk])

    def _traversals(self, kernel: Kernel, block: EdgeBlock, chunk: Block | None) -> list[object]:
        """The block's edges in each order that the kernel visits them, made once a graph for all who need them."""
        state = self.state
        kept = state.known.traversals(block.maps.values()) if block.maps else state.known.without_columns
        place = (block.length,) if chunk is None else (block.remote, chunk.peer, chunk.chunk)
        found = []
        for order in kernel.orders:
            key: tuple = (tuple(block.maps), place, order)
            if key in kept and not kernel.fits(kept[key]):
                key = (*key, "rows in one piece")
            if key not in kept:
                targets = {c: block.targets(c) for c in block.maps}
                rows = None if chunk is not None or order is None else block.named_rows[order]
                kept[key] = kernel.traverse(order, block.rows, block.length, targets, rows, self.device)
            found.append(kept[key])
        return found

    def _edge_block(self, node: fx.Node, chunk: Block | None) -> EdgeBlock:
        """The edges of a chunk (None: all edges of the part)."""
        edges, values, columns = node.args
        remote = edges.remote if chunk is not None else None
        targets: dict[int, str | int | Rows] = {}
        for operand in edges.operands:
            if operand.column is not None:
                targets[operand.column] = values[operand.value].meta["type"].dims[operand.axis]
        targets |= {r.column: r.type.dims[r.axis] for r in edges.results if r.column is not None}
        maps = {c: self._map(columns[c], targets[c]) for c in sorted(targets)}
        rows = {c: self.local[t.space] if isinstance(t, Rows) else int(t) for c, t in targets.items()}
        if chunk is None:
            return EdgeBlock(self.local[edges.space], None, None, maps, rows)
        return EdgeBlock(chunk.rows.numel(), chunk.rows, remote, maps, rows, chunk.index)

    def _block(self, node: fx.Node, step: ins.RunBlock) -> Block | None:
        edges = node.args[0]
        if edges.remote is None:
            return None
        column = self._remote_map(node)
        if not column.remote:
            return None
        return next(b for b in column.blocks if b.peer == step.peer and b.chunk == step.chunk)

    def _new_partial(self, edges: EdgeProgram, node: fx.Node, step: ins.RunBlock) -> dict[int, Tensor]:
        layout = return_layout(edges, self.program.spaces, self.schedule.wire)
        rows = self._remote_map(node).needs[step.peer][step.chunk]
        buffer = self._new_chunk(step.partial, rows * layout.row_bytes)
        found = {}
        for key, segment in layout.segments(buffer, rows).items():
            result = edges.results[key]
            assert result.axis is not None
            if segment.dtype != result.type.dtype:  # folded as it is, narrowed when it is sent
                share = torch.empty(segment.shape, dtype=result.type.dtype, device=self.device)
                self.narrowed.setdefault(step.partial, []).append((segment, share))
                segment = share
            segment.fill_(start_value(result.fold, segment.dtype))
            found[key] = segment.movedim(0, result.axis)
        return found

    def _combine(self, step: ins.Combine) -> Work:
        node = self.nodes[step.call]
        edges: EdgeProgram = node.args[0]
        rows = self._remote_map(node).serves[step.peer][step.chunk]
        layout = return_layout(edges, self.program.spaces, self.schedule.wire)
        axes = {key: axis for key, axis, _, _ in layout.entries}
        for key, share in layout.table(self.chunks[step.buffer], rows.numel()).items():
            into = self.env[step.call][key]
            fold_rows(into, axes[key], rows, share.to(into.dtype), edges.results[key].fold)
        return
        yield

    _STEPS: ClassVar[dict[type, str]] = {
        ins.Launch: "_launch",
        ins.AllReduce: "_all_reduce",
        ins.AllToAll: "_all_to_all",
        ins.Finish: "_finish",
        ins.Begin: "_begin",
        ins.PostRecv: "_post_recv",
        ins.Send: "_send",
        ins.Wait: "_wait",
        ins.RunBlock: "_run_block",
        ins.Combine: "_combine",
        ins.Free: "_free",
    }


class _ByNode:
    """An environment by name, read by node."""

    def __init__(self, env: Mapping[str, Any]):
        self._env = env

    def __getitem__(self, node: fx.Node):
        return self._env[node.name]
