"""Executor: runs one part's schedule."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar

import torch.fx as fx

from sarc.errors import ExchangeError
from sarc.ir import schedule as ins
from sarc.ir.collective import tuple_of
from sarc.ir.dialect import GATHER, OWN_ROWS, REDUCE, UNIFORM, fold_rows, start_value
from sarc.ir.draws import keyed_uniform
from sarc.ir.ops import resolve_sizes
from sarc.ir.space import Rows, ValueType, lengths
from sarc.runtime.check_sent import check_sent
from sarc.runtime.memory import compute_into
from sarc.runtime.run_edge_calls import EdgeCalls
from sarc.runtime.run_messages import Messages
from sarc.runtime.structure import run_local
from sarc.runtime.work import Work


class Executor(EdgeCalls, Messages):
    """One run of a schedule on one part (see `RunState`): the loop over its instructions, and operators."""

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

    def _free(self, step: ins.Free) -> Work:
        for name in step.names:
            if name in self.chunks:
                del self.chunks[name]
                self.messages.pop(name, None)
            else:
                self.env.pop(name, None)
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
