"""Messages: how a run makes the instructions that move rows between parts."""

from __future__ import annotations

import torch
import torch.fx as fx
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.ir import schedule as ins
from sarc.ir.collective import fetch
from sarc.ir.edge_program import whole_layout
from sarc.runtime.run_state import RunState
from sarc.runtime.whole_exchange import WholeExchange
from sarc.runtime.work import AllReduce, Wait, Work


class Messages(RunState):
    """A run's steps for chunks, for exchanges with every peer at once and for all-reduces."""

    # --- chunks

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

    def _what(self, name: str, peer: int) -> str:
        call, place, chunk = name.rsplit(".", 2)  # call.direction round.chunk, as the schedule names its buffers
        kind, round_ = place.rstrip("0123456789"), place.lstrip("_abcdefghijklmnopqrstuvwxyz")
        return (
            f"buffer {call}.{kind} of round {round_}, chunk {chunk}, between part {self.state.rank} and peer part "
            f"{peer} ({self.schedule.stage})"
        )

    # --- exchanges with every peer at once

    def _all_to_all(self, step: ins.AllToAll) -> Work:
        node = self.nodes[step.node]
        values = [self.env[v.name] for v in node.args[0]]
        parent = self._parent(node)
        column = self.state.columns[node.args[1].name, parent]
        layout = whole_layout(node, self.schedule.wire)
        sent = self.transport.outbox(step, self.device, self._empty)
        exchange = WholeExchange(layout, column, self.local[parent], values, step, sent, self.pool)
        at = f"part {self.state.rank} ({self.schedule.stage})"
        what = f"buffer {step.node} ({step.what}), the round of all peers, of {at}"
        planned = sum(m.nbytes for m in step.sends)
        if exchange.sent.nbytes != planned:
            raise ExchangeError(f"{what}: {exchange.sent.nbytes} bytes, planned {planned}")
        for message in step.sends:
            self.sent[step.node, message.peer] += message.nbytes
        arrival = self.transport.all_to_all(self.state.rank, step, exchange.sent, self._empty, what, self.number)
        self.env[step.node] = [exchange.sent, arrival.received, *values]  # what is alive meanwhile
        if self.tier is not None:  # values may leave the device, and the messages are not there
            self.env[step.node], exchange.values = list(values), ()
        self.exchanges[step.node] = exchange, arrival
        return
        yield

    def _finish(self, step: ins.Finish) -> Work:
        exchange, arrival = self.exchanges.pop(step.node)
        yield Wait(arrival.handle, step.clock)
        if self.tier is not None:
            exchange.values = self.env[step.node]
        node, received = self.nodes[step.node], arrival.pieces(self.device)
        self.env[step.node] = (
            exchange.tables(received) if node.target is fetch else exchange.fold(received, node.args[2])
        )
        arrival.release()

    def _empty(self, nbytes: int) -> Tensor:
        if self.tier is not None:
            return self.tier.empty(nbytes)
        return self.pool.empty([nbytes], torch.uint8, self.device)

    def _parent(self, node: fx.Node) -> str:
        """The space whose rows an exchange's column names."""
        name = node.args[1].name
        return next(s.parents[0] for s in self.program.spaces if s.kind == "reach" and s.mask == name)

    def _all_reduce(self, step: ins.AllReduce) -> Work:
        shares = [self.env[self.nodes[name].args[0].name] for name in step.nodes]
        if len(shares) == 1:
            self.env[step.node] = yield AllReduce(shares[0], step.op)
            return
        total = yield AllReduce(torch.cat([s.reshape(-1) for s in shares]), step.op)
        for name, share, made in zip(step.nodes, shares, total.split([s.numel() for s in shares]), strict=True):
            self.env[name] = made.view(share.shape)
