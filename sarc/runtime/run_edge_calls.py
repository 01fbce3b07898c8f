"""EdgeCalls: how a run makes the instructions of edge calls: begin, block, combine."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
import torch.fx as fx
from torch import Tensor

from sarc.ir import schedule as ins
from sarc.ir.dialect import fold_rows, start_value
from sarc.ir.edge_program import EdgeProgram, Operand, Result, is_reach, new_accumulator, return_layout
from sarc.ir.space import Rows, ValueType, lengths
from sarc.partition.columns import Block
from sarc.runtime.edge_block import EdgeBlock, run_in_torch, sub_block_bytes
from sarc.runtime.run_state import Kernel, RunState
from sarc.runtime.work import Work

_NO_KEYS = torch.empty(0, dtype=torch.int64)  # of spaces over which nothing is drawn


class EdgeCalls(RunState):
    """A run's steps for edge calls."""

    def _begin(self, step: ins.Begin) -> Work:
        edges: EdgeProgram = self.nodes[step.call].args[0]
        fresh = self._is_fresh(self.nodes[step.call])
        self.env[step.call] = [self._new_result(self.nodes[step.call], r, fresh) for r in edges.results]
        return
        yield

    def _new_result(self, call: fx.Node, result: Result, fresh: bool) -> Tensor:
        """Where a result is folded; over an operand only if one launch makes the whole of it."""
        if not fresh or result.kind == "contract":
            empty = self.pool.empty if self.device.type == "cpu" else None
            return new_accumulator(result, self.local, self.device, empty)
        shape = lengths(result.type, self.local)
        if result.over is not None:
            table = self.env[call.args[1][result.over].name]
            if table.is_contiguous():
                return table.view(shape)
        return self.pool.empty(shape, result.type.dtype, self.device)

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
            if key in kept and not kernel.fits(order, kept[key]):
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
