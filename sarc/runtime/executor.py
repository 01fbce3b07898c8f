"""Executor: runs one part's schedule."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.fx as fx
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.ir import schedule as ins
from sarc.ir.collective import tuple_of
from sarc.ir.dialect import GATHER, MM_OVER, OWN_ROWS, REDUCE, UNIFORM, fold_rows, start_value
from sarc.ir.draws import keyed_uniform
from sarc.ir.ops import resolve_sizes
from sarc.ir.products import add_product, scratch_bytes
from sarc.ir.space import Rows, ValueType, lengths
from sarc.runtime.check_sent import check_sent
from sarc.runtime.host_tier import place_of
from sarc.runtime.memory import compute_into
from sarc.runtime.run_edge_calls import EdgeCalls
from sarc.runtime.run_messages import Messages
from sarc.runtime.structure import run_local
from sarc.runtime.work import AllReduce, Wait, Work

aten = torch.ops.aten


class Executor(EdgeCalls, Messages):
    """One run of a schedule on one part (see `RunState`): the loop over its instructions, and operators."""

    def run(self) -> Work:
        """A `Work` (see `run_parts`) that returns the program's results in order."""
        for place, instruction in enumerate(self.schedule.instructions):
            self.workspace = 0
            if self.spare:
                self.pool.keep_free(self.spare[place])
            step = getattr(self, self._STEPS[type(instruction)])(instruction)
            if self.tier is not None:
                step = self._visit(instruction, step)
            yield from step if self.recorder is None else self.recorder.watch(self, place, step)
        if self.chunks:
            left = ", ".join(sorted(self.chunks))
            raise ExchangeError(f"part {self.state.rank}: chunks left at the end of the schedule: {left}")
        check_sent(self.schedule, self.sent)
        self._leave()
        return [self.env[n.name] for n in self.program.returned]

    # --- tables that wait in a tier

    def _visit(self, instruction: ins.Instruction, step: Work) -> Work:
        """An instruction's step: what it reads is on the device, and everything waits elsewhere while the part does."""
        assert self.tier is not None
        _ = self._shared  # before any of it is freed
        self._come_in(instruction)
        answer = None
        while True:
            try:
                request = step.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(request, Wait) and request.handle.done():
                continue
            if not self.tier.alone:
                self._go_out({place_of(request.tensor)} if isinstance(request, AllReduce) else set())
            answer = yield request
            self._come_in(instruction)

    def _come_in(self, instruction: ins.Instruction) -> None:
        assert self.tier is not None
        if isinstance(instruction, ins.Free):
            return
        made: list[str] = []
        for name in operands_of(instruction, self.nodes):
            value = self.env.get(name)
            if self.nodes[name].op != "placeholder":
                made.append(name)
            elif name in self._waiting and isinstance(value, Tensor) and self.tier.holds(value):
                self.at_home[name] = value
                self.env[name] = self.tier.copy(value, self.device)
        self.tier.bring(self.env, made, self.device)

    def _go_out(self, busy: set[int]) -> None:
        assert self.tier is not None
        self.env.update({name: value for name, value in self.at_home.items() if name in self.env})
        self.at_home.clear()
        self.tier.send(self.env, [name for name in self.env if name in self._movable], self._shared | busy)

    def _leave(self) -> None:
        """The run is over: what is handed to the caller is on the device, what is kept waits."""
        if self.tier is None:
            return
        returned = zip(self.program.returned, self.program.outputs, strict=True)
        given = {n.name for n, o in returned if o.kind in ("result", "grad", "buffer")}
        kept = [n.name for n in self.program.returned if n.name in self._movable - given]
        self.tier.send(self.env, kept, self._shared)
        self.tier.bring(self.env, given, self.device)

    @cached_property
    def _movable(self) -> set[str]:
        """Names of the values that the run has made, and of those of its inputs that are its own."""
        own = [n for n, e in zip(self.program.placeholders, self.program.inputs, strict=True)
               if e.kind in ("arg", "tangent") and n.meta["type"].dtype.is_floating_point]  # fmt: skip
        return {n.name for n in self.program.graph.nodes if n.op == "call_function"} | {n.name for n in own}

    @cached_property
    def _waiting(self) -> set[str]:
        """Names of the inputs that may wait: seed and step of draws are the CPU's wherever the rows are."""
        named = zip(self.program.placeholders, self.program.inputs, strict=True)
        return {n.name for n, entry in named if entry.kind != "rng"}

    @cached_property
    def _shared(self) -> set[int]:
        """Where inputs lie that other runs read too: they stay, and so do views of them."""
        names = [n.name for n in self.program.placeholders if n.name not in self._movable]
        return {place_of(v) for name in names if isinstance(v := self.env.get(name), Tensor)}

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
        self.workspace = self._product_scratch(node)
        if node.target is aten.addmm_.default:
            return add_product(*(env[n] for n in node.args))
        return self._into_pool(node, env)

    def _product_scratch(self, node: fx.Node) -> int:
        """Bytes that a product of rows needs beside its operands and its result; 0 for any other operator."""
        if node.target not in (aten.mm.default, aten.addmm_.default, MM_OVER) or not node.meta["type"].spaces:
            return 0
        x, matrix = (self.env[n.name] for n in node.args[-2:])
        return scratch_bytes(x, matrix, self.device.type, over=node.target is MM_OVER)

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


def operands_of(instruction: ins.Instruction, nodes: Mapping[str, fx.Node]) -> list[str]:
    """Names of the values that an instruction may read or write."""
    named = [getattr(instruction, key, "") for key in ("call", "node")] + list(getattr(instruction, "nodes", ()))
    found: dict[str, None] = {}
    for node in (nodes[name] for name in named if name):
        found.update(dict.fromkeys(n.name for n in (node, *node.all_input_nodes)))
    return list(found)


class _ByNode:
    """An environment by name, read by node."""

    def __init__(self, env: Mapping[str, Any]):
        self._env = env

    def __getitem__(self, node: fx.Node):
        return self._env[node.name]
