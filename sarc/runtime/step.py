"""One call of a compiled model as a node of PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sarc.errors import UnsupportedModelError
from sarc.ir.program import Input, Program
from sarc.ir.schedule import Schedule
from sarc.runtime.binding import Binding, Values, cut_inputs
from sarc.runtime.executor import Executor
from sarc.runtime.host_tier import HostTier
from sarc.runtime.memory import Pool
from sarc.runtime.run_state import Recorder
from sarc.runtime.transport import Transport
from sarc.runtime.work import run_parts


@dataclass(frozen=True)
class Step:
    """One call: what its forward runs on, and leaves for its backward.

    Attributes:
        stages: programs of the variant.
        binding: to the graph of this call.
        wrt: inputs that receive gradients, in the order of the backward program's outputs.
        transport: of the process.
        number: of the call; its messages meet no other call's.
        rng: int64 [2], seed and step of the call's draws.
        values: arguments of the call.
        state: parameters and buffers by name.
        pool: memory of large tensors.
        recorder: watches the instructions of its forward and its backward, or None.
        check: compares what the backward found with the plain module's gradients, or None.
        tier: where tables wait while other parts of this process run, or None.
        data: what the prologue made, of each hosted part, by name; this step's backward reads it too.
    """

    stages: Any
    binding: Binding
    wrt: tuple[Input, ...]
    transport: Transport
    number: int
    rng: Tensor
    values: Values
    state: Mapping[str, Tensor]
    pool: Pool
    recorder: Recorder | None = None
    check: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None] | None = None
    tier: HostTier | None = None
    data: list[dict[str, Tensor]] = field(default_factory=list)

    def run(self, has_data: bool) -> dict[str, Tensor]:
        """The user's results by number, differentiable where gradients were asked for; buffers are updated.

        Args:
            has_data: whether what the prologue has made is of this call's data, on every rank.
        """
        prologue = self.binding.prologue
        if prologue is not None:
            if not has_data:
                prologue.values.clear()  # not both at once
                made = self._execute(
                    prologue.program, prologue.schedules, prologue.kernels, self._inputs(prologue.program), -self.number
                )
                prologue.enter(self.values, made)
            self.data.extend(prologue.values)
        forward = self.binding.programs["forward"]
        if "backward" in self.binding.programs:
            results = _Call.apply(self, *(self._tensor(e) for e in self.wrt))
        else:
            results, _ = self.run_forward()
        outputs = [o for o in forward.outputs if o.kind != "saved"]
        found = {}
        for output, value in zip(outputs, results, strict=True):
            if output.kind == "result":
                found[output.name] = value
            elif value is not self.state[output.name]:
                with torch.no_grad():
                    self.state[output.name].copy_(value)
        return found

    def _tensor(self, entry: Input) -> Tensor:
        found = self.values[entry] if entry.kind == "arg" else self.state[entry.name]
        assert found is not None, f"{entry} has no value"
        return found

    def run_forward(self) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The process's results, and each hosted part's saved values."""
        program = self.binding.programs["forward"]
        by_part = self.execute("forward", self.inputs("forward"))
        joined: list[Tensor] = []
        saved: list[list[Tensor]] = [[] for _ in by_part]
        for k, (node, output) in enumerate(zip(program.returned, program.outputs, strict=True)):
            if output.kind == "saved":
                for part, results in enumerate(by_part):
                    saved[part].append(results[k])
            else:
                joined.append(self.binding.order.join([r[k] for r in by_part], node.meta["type"]))
        return joined, saved

    def execute(self, stage: str, values: list[dict[str, Tensor]]) -> list[list[Tensor]]:
        """Run a stage on all hosted parts: each one's results, from its value of every placeholder."""
        run = 2 * self.number + (stage == "backward")
        binding = self.binding
        spare = binding.spare.get(stage, ())
        return self._execute(
            binding.programs[stage], binding.schedules[stage], binding.kernels[stage], values, run, spare
        )

    def _execute(
        self, program: Program, schedules: Sequence[Schedule], kernels: Mapping[str, Any],
        values: list[dict[str, Tensor]], run: int, spare: Sequence[int] = (),
    ) -> list[list[Tensor]]:  # fmt: skip
        states = self.binding.order.states
        works = {
            state.rank: Executor(
                program, schedule, state, self.transport, each, run, kernels, self.pool, self.recorder, spare, self.tier
            ).run()
            for state, schedule, each in zip(states, schedules, values, strict=True)
        }
        # Here and not in the executors: parts are stepped in turn, and modes set inside one would leak into the others.
        # The casts of autocast are in the program already.
        with torch.no_grad(), torch.autocast(states[0].device.type, enabled=False):
            results = run_parts(works, self.transport)
        return [results[s.rank] for s in states]

    def inputs(self, stage: str) -> list[dict[str, Tensor]]:
        """Each hosted part's value of every placeholder but the saved ones and the tangents."""
        return self._inputs(self.binding.programs[stage])

    def _inputs(self, program: Program) -> list[dict[str, Tensor]]:
        binding = self.binding
        cuts = cut_inputs(program, self.values, binding.order, binding.constants)
        pieces: list[dict[str, Tensor]] = [{} for _ in cuts]
        for node, entry in zip(program.placeholders, program.inputs, strict=True):
            if entry.kind in ("param", "buffer"):
                each = [self.state[entry.name].detach()] * len(pieces)
            elif entry.kind == "bound":
                each = [bound[entry.name] for bound in binding.bound]
            elif entry.kind == "data":
                each = [made[entry.name] for made in self.data]
            elif entry.kind == "rng":
                each = [self.rng] * len(pieces)
            elif entry in cuts[0]:
                each = [cut[entry] for cut in cuts]
            else:
                continue
            for piece, value in zip(pieces, each, strict=True):
                piece[node.name] = value
        return pieces

    def read_again(self) -> list[tuple[str, Tensor]]:
        """The parameters, buffers and arguments that the backward reads, with their names."""
        entries = [e for e in self.binding.programs["backward"].inputs if e.kind in ("param", "buffer", "arg")]
        entries = [e for e in entries if e.kind != "arg" or self.values[e] is not None]
        found = [(e.name, self._tensor(e)) for e in entries]
        return [(name, t) for name, t in found if not t.is_inference()]


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx, step: Step, *inputs: Tensor):
        program: Program = step.binding.programs["forward"]
        results, saved = step.run_forward()
        ctx.step = step
        ctx.versions = [t._version for _, t in step.read_again()]
        # Not save_for_backward: autograd would hold every value to the end of the backward pass. Aliases, since a
        # result of this call must not refer to itself.
        step.pool.rest()
        ctx.saved = [[t.detach() for t in each] for each in saved]
        ctx.saved_versions = [[t._version for t in each] for each in ctx.saved]
        # A result that is an input itself must not be returned as such: autograd would see an in-place view of it.
        given = {t.data_ptr() for t in inputs}
        results = [r.clone() if r.numel() and r.data_ptr() in given else r for r in results]
        outputs = [o for o in program.outputs if o.kind != "saved"]
        fixed = [r for r, o in zip(results, outputs, strict=True) if o.kind == "buffer" or not r.is_floating_point()]
        ctx.mark_non_differentiable(*fixed)
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        if torch.is_grad_enabled():
            raise UnsupportedModelError(
                "double backward (create_graph=True) through a compiled model: expected first-order gradients only; "
                "use the plain model for gradient penalties"
            )
        step: Step = ctx.step
        if ctx.saved is None:
            raise RuntimeError(
                "Trying to backward through a compiled model's call a second time: its saved values were freed as the "
                "first backward pass used them; pass retain_graph=True to the first one"
            )
        _check_versions(step, ctx.versions)
        forward, backward = step.binding.programs["forward"], step.binding.programs["backward"]
        saved_names = [f"saved_{o.name}" for o in forward.outputs if o.kind == "saved"]
        values = step.inputs("backward")
        for each, saved, known in zip(values, ctx.saved, ctx.saved_versions, strict=True):
            _check_saved(saved_names, saved, known)
            each.update(zip(saved_names, saved, strict=True))
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.saved = None  # each value goes with its last use
            del saved
        results = [o for o in forward.outputs if o.kind != "saved"]
        tangents = {o.name: g for o, g in zip(results, grads, strict=True) if o.kind == "result"}
        order = step.binding.order
        for node, entry in zip(backward.placeholders, backward.inputs, strict=True):
            if entry.kind == "tangent":
                for each, piece in zip(values, order.cut(tangents[entry.name], node.meta["type"]), strict=True):
                    each[node.name] = piece
        by_part = step.execute("backward", values)
        found = [order.join([r[k] for r in by_part], node.meta["type"]) for k, node in enumerate(backward.returned)]
        found = [g.to(step._tensor(e).device) for g, e in zip(found, step.wrt, strict=True)]
        if step.check is not None:
            step.check(tangents, {str(e): g for e, g in zip(step.wrt, found, strict=True)})
        return (None, *(g if need else None for g, need in zip(found, ctx.needs_input_grad[1:], strict=True)))


def _check_versions(step: Step, versions: list[int]) -> None:
    for (name, tensor), version in zip(step.read_again(), versions, strict=True):
        if tensor._version != version:
            raise RuntimeError(
                f"{name} was modified in place between the forward and the backward of a compiled model (version "
                f"{tensor._version}, expected {version}): the gradient needs its earlier value; call backward() before "
                f"optimizer.step(), or clone the tensor first"
            )


def _check_saved(names: list[str], saved: list[Tensor], versions: list[int]) -> None:
    for name, tensor, version in zip(names, saved, versions, strict=True):
        if tensor._version != version:
            raise RuntimeError(
                f"a result of a compiled model was modified in place (%{name.removeprefix('saved_')}, version "
                f"{tensor._version}, expected {version}): the gradient needs its earlier value; clone it first"
            )
