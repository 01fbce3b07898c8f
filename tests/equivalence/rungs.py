"""The stages of a compiled call, each run by the interpreter on whole-graph tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sarc.ir.interpret import interpret
from sarc.ir.program import Input, Output, Program
from sarc.runtime.module import CompiledModule
from sarc.runtime.replay import whole_row_keys
from tests.equivalence.case import Case
from tests.equivalence.compare import Observed, cotangents


class Stages:
    """Interprets the programs of the last call of a compiled module.

    Args:
        case: of the call.
        module: with the parameters and buffers that the call started from.
        values: the call's tensors.
    """

    def __init__(self, case: Case, compiled: CompiledModule, module: nn.Module, values: dict[str, object]):
        variant = compiled._called()
        assert variant.binding is not None
        states = variant.binding.order.states
        self.stages = variant.stages
        self.columns = case.columns_by_name(module)
        self.sizes = states[0].total_sizes()
        self.keys = {s.name: whole_row_keys(s.name, states) for s in states[0].spaces}
        self.known: dict[Input, Tensor] = {
            **{Input("param", n): p.detach() for n, p in module.named_parameters()},
            **{Input("buffer", n): b for n, b in module.named_buffers()},
            **{Input("constant", n): t for n, t in self.stages.captured.constants.items()},
            **{Input("rows", n): torch.empty(k, dtype=torch.uint8) for n, k in self.sizes.items()},
            **{Input("arg", name): values[column] for name, column in self.columns.items() if column != "graph"},
            Input("rng", "rng"): torch.tensor([compiled.seed, compiled.step - 1]),
        }

    def observed(self, names: set[str]) -> Iterator[tuple[str, Observed]]:
        """(stage, what `observe` would find) with an entry for each of `names` that the stage computes or keeps."""
        yield "raised", self._observed(self._run("raised"))
        for output, value in self._run("structure"):
            self.known[Input("bound", output.name)] = value
        if "data" in self.stages.programs:
            for output, value in self._run("data"):
                self.known[Input("data", output.name)] = value
        step = self._run("step")
        yield "step", self._observed(step)
        if "joint" not in self.stages.programs:
            yield "forward", self._observed(self._run("forward"))
            return
        results = [value for output, value in step if output.kind == "result"]
        for k, cotangent in enumerate(cotangents(results)):
            self.known[Input("tangent", str(k))] = cotangent
        joint = self._observed(self._run("joint"))
        missing = {n for n in names if n.startswith("gradient")} - joint.keys()
        absent: Observed = dict.fromkeys(sorted(missing))
        yield "joint", {**joint, **absent}
        forward = self._run("forward")
        for output, value in forward:
            if output.kind == "saved":
                self.known[Input("saved", output.name)] = value
        both = [*forward, *self._run("backward")]
        yield "forward and backward", {**self._observed(both), **absent}

    def _run(self, stage: str) -> list[tuple[Output, Tensor]]:
        program: Program = self.stages[stage]
        values = [self.known[entry] for entry in program.inputs]
        found = interpret(program, values, dict(self.sizes), self.keys)
        return list(zip(program.outputs, found, strict=True))

    def _observed(self, results: list[tuple[Output, Tensor]]) -> Observed:
        found: Observed = {f"buffer {e.name}": t for e, t in self.known.items() if e.kind == "buffer"}
        for output, value in results:
            if output.kind == "result":
                found[f"output {output.name}"] = value
            elif output.kind == "buffer":
                found[f"buffer {output.name}"] = value
            elif output.kind == "grad":
                kind, name = output.name.split(" ", 1)
                known = f"parameter {name}" if kind == "param" else f"input {self.columns[name]}"
                found[f"gradient of {known}"] = value
        return found
