"""Variants: captures of a model for the shapes, modes and gradients it is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.fx as fx
from torch import Tensor, nn

from sarc.errors import UnsupportedModelError
from sarc.ir.program import Input, Program
from sarc.ir.schedule import Schedule
from sarc.runtime.agreement import Settled
from sarc.runtime.binding import (
    Binding,
    Structure,
    Values,
    bind,
    make_structure,
    measure_halos,
    structural_tensors,
)
from sarc.runtime.budget import fit_budget, least_peak, send_less
from sarc.runtime.host import Host
from sarc.runtime.memory_plan import make_memory_plans, spare_bytes
from sarc.runtime.plan import log_binding


class Compiler(Protocol):
    """What a compiled module asks of the floors above (`sarc.pipeline.Pipeline`)."""

    objective: str

    def copy_module(self, module: nn.Module) -> nn.Module: ...

    def take_apart(self, module: nn.Module, args: tuple, kwargs: dict, graph_kind: str) -> Any: ...

    def check_arguments(
        self, module: nn.Module, call: Any, rows: dict[str, int], named: dict, offloads: bool
    ) -> None: ...

    def find_graph(self, args: tuple, kwargs: dict) -> tuple[Any, int | None]: ...

    def candidates(self, leaf: Any, rows: dict[str, int], named: dict) -> tuple[str, ...]: ...

    def choose(self, leaf: Any, options: Sequence[Sequence[str]], rows: dict[str, int]) -> str: ...

    def check_ranks(self, shapes: Sequence[dict[str, tuple]], kinds: dict[str, str]) -> None: ...

    def check_graph(self, call: Any, kinds: Sequence[str], held_edges: int, known: Tensor | None) -> None: ...

    def argument(self, leaf: Any, rows: str) -> Any: ...

    def fill_results(self, structure: Any, values: Sequence[Tensor]) -> Any: ...

    def front(
        self, module: nn.Module, arguments: Sequence[Any], call: Any, answers: Sequence[object], counts: dict[str, int]
    ) -> Any: ...

    def back(self, stages: Any, wrt: frozenset[Input], halos: dict[str, int], rows: dict[str, int]) -> Any: ...

    def divide(self, stages: Any, rows: Mapping[str, int] | None = None, most_bytes: float | None = None) -> Any: ...

    def narrow(self, program: Program, remote: frozenset[str], device: torch.device) -> Program: ...

    def needs(self, program: Program, remote: frozenset[str], columns: Any) -> Any: ...

    def sites(self, needs: Any) -> Any: ...

    def choose_sites(self, needs: Any, numbers: Any, num_parts: int, named: Any) -> Any: ...

    def place(self, program: Program, row_sets: Any) -> Program: ...

    def partition(
        self, program: Program, remote: frozenset[str], columns: Any, choices: Any, device: torch.device
    ) -> Program: ...

    def exchange_in_chunks(self) -> bool: ...

    def columns(self, program: Program) -> list[tuple[fx.Node, str | int]]: ...

    def kernels(self, program: Program, device: torch.device) -> Any: ...

    def sources(
        self, program: Program, remote: frozenset[str], columns: Any, choices: Any, target: str
    ) -> list[tuple[Any, list[str] | str]]: ...

    def runs(self, program: Program, kernels: Any, device: torch.device) -> Any: ...

    def cost(self, program: Program) -> Any: ...

    def schedule(self, program: Program, rank: int, num_parts: int, columns: Any, prefetch: int) -> Schedule: ...


@dataclass
class Variant:
    """One capture of the model: a mode, shapes, dtypes, and which gradients are asked for.

    Attributes:
        number: in the order of capture, the same on every rank.
        stages: its programs.
        wrt: inputs that receive gradients, in the order of the backward program's outputs.
        binding: to the graph of the latest call.
        compiled: the stages before any binding chose among them: each starts from these.
    """

    number: int
    stages: Any
    wrt: tuple[Input, ...]
    binding: Binding | None = None
    compiled: Any = field(init=False)

    def __post_init__(self) -> None:
        self.compiled = self.stages

    @property
    def bound(self) -> Binding:
        """`binding`, of a variant that has been called."""
        assert self.binding is not None
        return self.binding

    def has_data(self, values: Values) -> bool:
        """Whether what the bound variant made of data is of these."""
        prologue = self.bound.prologue
        return prologue is None or prologue.holds(values)

    def is_bound(self, values: Values) -> bool:
        """Whether the binding holds for a call with these arguments."""
        return self.binding is not None and self.binding.fits(structural_tensors(self.stages.programs, values))


@dataclass
class Variants:
    """The variants of one model.

    Attributes:
        prefetch: chunks posted ahead, in every schedule.
        memory_budget: bytes of a step on one part, or None.
        tight: whether memory counts more than time: a run keeps no freed memory beyond its predicted peak.
    """

    compiler: Compiler
    prefetch: int
    memory_budget: int | None = None
    tight: bool = False
    _by_key: dict[object, Variant] = field(default_factory=dict)
    _made: int = 0

    def find(self, settled: Settled, arguments: Sequence[Any]) -> Variant | None:
        return self._by_key.get(_key(settled, arguments))

    def get(
        self,
        model: nn.Module,
        host: Host,
        call,
        settled: Settled,
        arguments: tuple,
        values: Values,
        device: torch.device,
        is_bound: bool,
    ) -> Variant:
        """The variant for a call, bound to its structure; every rank calls it alike.

        Args:
            device: of the call's tensors.
            is_bound: whether every rank has the variant bound to this call's structure already.
        """
        key = _key(settled, arguments)
        variant = self._by_key.get(key)
        if variant is not None and variant.stages.captured_answers and not is_bound:
            variant = None  # Numbers taken from structural tensors were baked in: ask again.
        made = None
        if variant is None:
            variant, made = self._compile(model, host, call, settled.wrt, arguments, values, device)
            self._by_key[key] = variant
        if variant.binding is None or not is_bound:
            variant.stages = variant.compiled
            variant.binding = bind(self.compiler, host, variant.stages, values, self.prefetch, device, made)
            place = (self.compiler, host, variant.stages, values, variant.binding, self.prefetch)
            if self._sends_least(host, variant):
                variant.stages = send_less(*place)
                place = (self.compiler, host, variant.stages, values, variant.binding, self.prefetch)
            if self.memory_budget is not None:
                variant.stages = fit_budget(*place, self.memory_budget)
            elif "joint" in variant.stages.programs:
                variant.stages = least_peak(*place)
            if self.tight and len(host.partitions.parts) == 1:  # the parts of a process share their pool
                variant.binding.spare = spare_bytes(make_memory_plans(variant.binding)[0])
            log_binding(variant.binding, self.compiler.cost, self.compiler.runs)
        return variant

    def _sends_least(self, host: Host, variant: Variant) -> bool:
        """Whether a training step between parts is to send as little as can be."""
        trains = "joint" in variant.stages.programs
        return trains and self.compiler.objective == "bytes" and host.partitions.num_parts > 1

    def _compile(
        self, model, host: Host, call, wrt: frozenset[Input], arguments: tuple, values: Values, device: torch.device
    ) -> tuple[Variant, Structure]:
        """A new variant, and what its structure program made."""
        answers: list[object] = []
        counts = {"N": host.partitions.num_nodes, "E": host.partitions.num_edges}
        while True:
            stages = self.compiler.front(model, arguments, call.rebuild(host.zero_in_degree), answers, counts)
            if not stages.captured.question:
                break
            answers.append(self._answer(stages, host, values, device))
        made = make_structure(host, stages, values, device)
        halos, rows = measure_halos(self.compiler, host, stages, values, made)
        stages = self.compiler.back(stages, wrt & frozenset(stages["step"].inputs), halos, rows)
        stages.captured_answers.extend(answers)
        self._made += 1
        by_text = {str(e): e for e in wrt}
        outputs = stages["backward"].outputs if "backward" in stages.programs else ()
        return Variant(self._made, stages, tuple(by_text[o.name] for o in outputs)), made

    def _answer(self, stages, host: Host, values: Values, device: torch.device) -> object:
        """The value of a number that the model takes from a tensor, when it depends on structure alone."""
        step = stages["step"]
        result = step.returned[0]
        entry = step.inputs[step.placeholders.index(result)] if result.op == "placeholder" else None
        of_rows = bool(result.meta["type"].spaces)
        if entry is None or entry.kind == "param" or of_rows or result.meta["type"].dtype.is_floating_point:
            raise UnsupportedModelError(
                f"{stages.captured.question}: a Python number is taken from a tensor that depends on features, "
                f"parameters or single rows (int(), float(), bool(), .item() or an if on a tensor): data-dependent "
                f"control flow cannot be compiled; use torch.where, or compute the number outside the model "
                f"and pass it as an argument"
            )
        binding = bind(self.compiler, host, stages, values, self.prefetch, device)
        value = binding.bound[0][entry.name] if entry.kind == "bound" else values[entry]
        assert value is not None
        return value.item() if value.numel() == 1 else value.tolist()


def _key(settled: Settled, arguments: Sequence[Any]) -> object:
    return settled.header, tuple((a.path, a.type) for a in arguments), settled.wrt
