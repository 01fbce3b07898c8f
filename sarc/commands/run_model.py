"""Compile a model for a command: one call and one backward pass, with every pass's program kept."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from sarc.backend import find_lack
from sarc.codegen.warn_once import warn_once
from sarc.commands.find_model import Found, find_model
from sarc.commands.make_inputs import GENERATED, Inputs, make_inputs
from sarc.frontends.check_options import budget_bytes, check_options, offload_directory
from sarc.ir.exchange import ExchangeOptions
from sarc.ir.print import format_program
from sarc.ir.program import Program
from sarc.partition import Partitions, partition
from sarc.pipeline import Pipeline
from sarc.runtime.logs import logs_from_environment
from sarc.runtime.module import CompiledModule


@dataclass(frozen=True)
class Wanted:
    """The options that all commands about a model share.

    Attributes:
        model: FILE.py:ModelOrFactory.
        specs: of `--input`.
        data, nodes: the graph, by name or generated.
        parts, method: how it is cut.
        backend: as for `sarc.compile`.
        training: train mode with gradients, or eval mode without.
        prefetch, spaces, exchange, placement, objective, memory_budget, offload: as for `sarc.compile`.
    """

    model: str
    specs: tuple[str, ...] = ()
    data: str = GENERATED
    nodes: int = 400
    parts: int = 4
    method: str | None = None
    backend: str = "reference"
    training: bool = True
    prefetch: int = 1
    spaces: Mapping[str, str | None] = field(default_factory=dict)
    exchange: str = "auto"
    placement: str = "auto"
    objective: str = "time"
    memory_budget: str | None = None
    offload: str | None = None


@dataclass(frozen=True)
class Seen:
    """The program that one pass made, as it was then.

    Attributes:
        name: of the pass.
        program: it; of the last pass on a program, not altered any more.
        text: as printed when the pass had run.
    """

    name: str
    program: Program
    text: str


@dataclass
class Session:
    """A compiled model, the call it was compiled for, and what the passes made."""

    found: Found
    inputs: Inputs
    partitions: Partitions
    compiled: CompiledModule
    seen: list[Seen] = field(default_factory=list)

    def call(self) -> Any:
        """One call, which compiles; without gradients in eval mode."""
        with nullcontext() if self.compiled.training else torch.no_grad():
            return self.compiled(*self.inputs.arguments)

    def step(self) -> Any:
        """One call, and in train mode one backward pass; returns the result."""
        out = self.call()
        results = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        if results:
            self.compiled.zero_grad(set_to_none=True)
            torch.autograd.backward(results, [torch.ones_like(t) for t in results])
        return out


def start(wanted: Wanted) -> Session:
    """The session of a model, before its first call."""
    found = find_model(wanted.model)
    inputs = make_inputs(found, wanted.specs, wanted.data, wanted.nodes)
    nodes = inputs.num_nodes
    partitions = partition(inputs.partitioned, num_nodes=nodes, num_parts=wanted.parts, method=wanted.method)
    seen: list[Seen] = []

    def observe(name: str, program: Program) -> None:
        seen.append(Seen(name, program, format_program(program)))

    lack = find_lack(wanted.backend)
    if lack:
        warn_once(lack)
    logs_from_environment()
    check_options(found.model, wanted.spaces, wanted.prefetch, 0)
    compiled = CompiledModule(
        found.model,
        partitions,
        Pipeline(wanted.backend, observe, ExchangeOptions(wanted.exchange), wanted.placement, wanted.objective),
        spaces=wanted.spaces,
        prefetch=wanted.prefetch,
        seed=0,
        memory_budget=budget_bytes(wanted.memory_budget),
        offload_dir=offload_directory(wanted.offload, None),
    )
    compiled.train(wanted.training)
    return Session(found, inputs, partitions, compiled, seen)
