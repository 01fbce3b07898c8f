"""Dry run: the memory of one run of a schedule, from sizes alone.

The executor's own instructions run on tensors of the meta device, which have shapes, strides and storages but no
memory: what shares memory, what a reshape copies and what is freed when come out as they do in a real run. Messages
are not sent, blocks not computed. Nothing is measured and nothing fitted.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor

from sarc.ir import schedule as ins
from sarc.ir.collective import fetch, tuple_of
from sarc.ir.dialect import GATHER, REDUCE, UNIFORM
from sarc.ir.edge_program import Result
from sarc.ir.live_bytes import DRAW_BYTES
from sarc.ir.ops import contracted, resolve_sizes
from sarc.ir.program import Input, Program
from sarc.ir.space import ValueType, lengths
from sarc.runtime.edge_block import sub_block_bytes
from sarc.runtime.executor import Executor
from sarc.runtime.memory import SMALLEST, writing_form
from sarc.runtime.memory_log import MemoryLog
from sarc.runtime.part_state import PartState
from sarc.runtime.run_state import Kernel, RunState
from sarc.runtime.transport import Transport
from sarc.runtime.work import Work

META = torch.device("meta")


def dry_run(
    program: Program,
    schedule: ins.Schedule,
    state: PartState,
    kernels: Mapping[str, Kernel],
    given: dict[Input, Tensor],
) -> tuple[MemoryLog, dict[int, int]]:
    """Bytes alive in every instruction of one part's schedule; and those of its workspace that one more edge of the
    block would need, by the instruction's place.

    Args:
        kernels: compiled edge programs, by name.
        given: stand-ins of inputs; gains those of this program's inputs, and of the values that it saves.
    """
    log = MemoryLog(program)
    values = {}
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        if entry not in given:
            given[entry] = _stand_in(node.meta["type"], state.sizes_of(program.spaces)[0])
        values[node.name] = given[entry]
    nobody = Transport(1, (state.rank,))
    run = _DryExecutor(program, schedule, state, nobody, values, kernels=kernels, recorder=_Note(log))
    log.start(run.env)
    for _ in run.run():
        raise AssertionError("a dry run waits for nobody")
    for node, output in zip(program.returned, program.outputs, strict=True):
        if output.kind == "saved":
            given[Input("saved", output.name)] = run.env[node.name]
    log.finish()
    return log, run.bytes_per_edge


def _stand_in(type_: ValueType, sizes: Mapping[str, int]) -> Tensor:
    return torch.empty(lengths(type_, sizes), dtype=type_.dtype, device=META)


class _Note:
    """Enters every instruction into a log."""

    def __init__(self, log: MemoryLog):
        self.log = log

    def watch(self, executor: RunState, place: int, step: Work) -> Work:
        yield from step
        self.log.after(executor.schedule.instructions[place], executor.env, executor.chunks, executor.workspace)


class _DryExecutor(Executor):
    """Allocates what an executor allocates, and computes nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.bytes_per_edge: dict[int, int] = {}

    def _compute(self, node: fx.Node) -> Any:
        if node.target is operator.getitem or node.target is tuple_of:
            return super()._compute(node)
        type_ = node.meta["type"]
        if node.target in (GATHER, REDUCE, UNIFORM):
            if node.target is UNIFORM:
                self.workspace = DRAW_BYTES * math.prod(lengths(type_, self.local))
            return _stand_in(type_, self.local)
        if isinstance(type_, ValueType) and contracted(node, type_):
            return _stand_in(type_, self.local)
        env = {n: self.env[n.name] for n in node.all_input_nodes}
        args, kwargs = resolve_sizes(
            node, fx.map_arg(node.args, env.__getitem__), fx.map_arg(node.kwargs, env.__getitem__),
            self.local, self.total,
        )  # fmt: skip
        if not env or "device" in kwargs:
            kwargs = {**kwargs, "device": META}
        self.workspace = self._product_scratch(node)
        made = node.target(*args, **kwargs)
        # A large result is written into memory of the pool, rows in order, whatever the operator would have chosen.
        if isinstance(made, Tensor) and isinstance(type_, ValueType) and type_.spaces and made.nbytes >= SMALLEST:
            return made if writing_form(node.target) is None else _stand_in(type_, self.local)
        return made

    def _all_reduce(self, step: ins.AllReduce) -> Work:
        shares = [self.env[self.nodes[name].args[0].name] for name in step.nodes]
        total = torch.cat([s.reshape(-1) for s in shares]) if len(shares) > 1 else torch.empty_like(shares[0])
        pieces = total.view(-1).split([s.numel() for s in shares])
        for name, share, made in zip(step.nodes, shares, pieces, strict=True):
            self.env[name] = made.view(share.shape)
        return
        yield

    def _all_to_all(self, step: ins.AllToAll) -> Work:
        values = [self.env[v.name] for v in self.nodes[step.node].args[0]]
        messages = [self._allocate((sum(m.nbytes for m in each),), torch.uint8) for each in (step.sends, step.receives)]
        self.env[step.node] = [*messages, *values]
        for message in step.sends:
            self.sent[step.node, message.peer] += message.nbytes
        return
        yield

    def _finish(self, step: ins.Finish) -> Work:
        node = self.nodes[step.node]
        if node.target is fetch:
            self.env[step.node] = tuple(_stand_in(t, self.local) for t in node.meta["type"])
            return
        tables = self.env[step.node][2:]
        owned = [(t.row_axis or 0, lengths(t, self.local)) for t in node.meta["type"]]
        made = (v.narrow(axis, 0, shape[axis]).contiguous() for v, (axis, shape) in zip(tables, owned, strict=True))
        self.env[step.node] = tuple(made)
        return
        yield

    def _allocate(self, lengths: Any, dtype: torch.dtype) -> Tensor:
        return torch.empty(lengths, dtype=dtype, device=META)

    def _post_recv(self, step: ins.PostRecv) -> Work:
        self._new_chunk(step.buffer, step.nbytes)
        return
        yield

    def _send(self, step: ins.Send) -> Work:
        if step.what == "fetch":
            self._new_chunk(step.buffer, step.nbytes)
        self.sent[step.call, step.peer] += step.nbytes
        return
        yield

    def _wait(self, step: ins.Wait) -> Work:
        return
        yield

    def _begin(self, step: ins.Begin) -> Work:
        call = self.nodes[step.call]
        fresh = self._is_fresh(call)
        self.env[step.call] = [self._new_result(call, r, fresh) for r in call.args[0].results]
        return
        yield

    def _new_result(self, call: fx.Node, result: Result, fresh: bool) -> Tensor:
        if fresh and result.over is not None and self.env[call.args[1][result.over].name].is_contiguous():
            return super()._new_result(call, result, fresh)
        return _stand_in(result.type, self.local)

    def _run_block(self, step: ins.RunBlock) -> Work:
        node = self.nodes[step.call]
        edges, values, _ = node.args
        chunk = self._block(node, step)
        if step.partial:
            self._new_partial(edges, node, step)
        length = self.local[edges.space] if chunk is None else chunk.rows.numel()
        kernel = self.kernels.get(edges.name)
        if not length and not edges.own_columns:
            return
        tables = [self.env[values[o.value].name] for o in edges.operands]

        def workspace(length: int) -> int:
            made = self.env[node.name]
            return sub_block_bytes(edges, length) if kernel is None else kernel.workspace(length, tables, made)

        self.workspace = workspace(length)
        self.bytes_per_edge[self.schedule.instructions.index(step)] = workspace(length + 1) - self.workspace
        return
        yield

    def _combine(self, step: ins.Combine) -> Work:
        return
        yield
