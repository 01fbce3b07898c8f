"""One call of a compiled model as a node of PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sarc.errors import UnsupportedModelError
from sarc.ir.program import Input, Program
from sarc.runtime.executor import Executor
from sarc.runtime.transport import Transport, run_parts


@dataclass
class Step:
    """What a forward leaves for its backward.

    Attributes:
        variant: the compiled variant, with its binding.
        transport: of the process.
        rng: int64 [2], seed and step of the call's draws.
        cut: each hosted part's placeholders of a program, except saved values and tangents.
    """

    variant: Any
    transport: Transport
    rng: Tensor
    cut: Callable[[Program], list[dict[str, Tensor]]] | None = None


def run_program(step: Step, forward: Program, binding, values, state) -> list[Tensor]:
    """Results of the forward program for this process, differentiable where gradients were asked for."""
    variant = step.variant
    if "backward" not in binding.programs:
        return _forward(step, forward)[0]
    wrt = [entry for entry in _ordered(variant, binding)]
    inputs = [state[e.name] if e.kind == "param" else values[e] for e in wrt]
    return list(_Call.apply(step, wrt, *inputs))


def _ordered(variant, binding) -> list[Input]:
    """The inputs that receive gradients, in the order of the backward program's outputs."""
    del binding
    by_text = {str(e): e for e in variant.wrt}
    return [by_text[o.name] for o in variant.stages["backward"].outputs]


def _execute(step: Step, program: Program, stage: str, values: list[dict[str, Tensor]]) -> list[list[Tensor]]:
    binding = step.variant.binding
    works = {}
    executors = []
    for k, state in enumerate(binding.order.states):
        executor = Executor(program, binding.schedules[stage][k], state, step.transport, values[k])
        executors.append(executor)
        works[state.rank] = executor.run()
    results = run_parts(works, step.transport)
    return [results[s.rank] for s in binding.order.states]


def _forward(step: Step, program: Program) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The process's results, and each hosted part's saved values."""
    binding = step.variant.binding
    by_part = _execute(step, program, "forward", step.cut(program))
    joined, saved = [], [[] for _ in by_part]
    for k, (node, output) in enumerate(zip(program.returned, program.outputs, strict=True)):
        if output.kind == "saved":
            for part, results in enumerate(by_part):
                saved[part].append(results[k])
        else:
            joined.append(binding.order.join([r[k] for r in by_part], node.meta["type"]))
    return joined, saved


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx, step: Step, wrt: list[Input], *inputs: Tensor):
        program = step.variant.binding.programs["forward"]
        results, saved = _forward(step, program)
        ctx.step, ctx.wrt = step, wrt
        ctx.binding = step.variant.binding
        ctx.save_for_backward(*(t for each in saved for t in each))
        # A result that is an input itself must not be returned as such: autograd would see an in-place view of it.
        given = {t.data_ptr() for t in inputs}
        results = [r.clone() if r.numel() and r.data_ptr() in given else r for r in results]
        ctx.mark_non_differentiable(*(r for r in results if not r.is_floating_point()))
        outputs = [o for o in program.outputs if o.kind != "saved"]
        late = {o.name for o in outputs if o.kind == "buffer"}
        ctx.mark_non_differentiable(*(r for r, o in zip(results, outputs, strict=True) if o.name in late))
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        if torch.is_grad_enabled():
            raise UnsupportedModelError(
                "double backward (create_graph=True) through a compiled model: expected first-order gradients only; use "
                "the plain model for gradient penalties"
            )
        step, binding = ctx.step, ctx.binding
        program: Program = binding.programs["backward"]
        forward: Program = binding.programs["forward"]
        saved_names = [f"saved_{o.name}" for o in forward.outputs if o.kind == "saved"]
        count = len(saved_names)
        values = step.cut(program)
        for k, each in enumerate(values):
            stored = ctx.saved_tensors[k * count : (k + 1) * count]
            each.update(zip(saved_names, stored, strict=True))
        outputs = [(n, o) for n, o in zip(forward.returned, forward.outputs, strict=True) if o.kind != "saved"]
        tangents = {o.name: (n, g) for (n, o), g in zip(outputs, grads, strict=True) if o.kind == "result"}
        for node, entry in zip(program.placeholders, program.inputs, strict=True):
            if entry.kind == "tangent":
                _, grad = tangents[entry.name]
                for each, piece in zip(values, binding.order.cut(grad, node.meta["type"]), strict=True):
                    each[node.name] = piece
        by_part = _execute(step, program, "backward", values)
        found = []
        for k, node in enumerate(program.returned):
            found.append(binding.order.join([r[k] for r in by_part], node.meta["type"]))
        needs = ctx.needs_input_grad[2:]
        return (None, None, *(g if need else None for g, need in zip(found, needs, strict=True)))
