"""The passes, in order, and the programs they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from sarc.backend import Backend, has_kernels, kernel_texts
from sarc.codegen.coverage import Run
from sarc.codegen.cuda_kernels import CudaKernel
from sarc.codegen.kernels import CppKernel, has_kernel
from sarc.codegen.overwrite import overwritable
from sarc.cost import program_cost
from sarc.frontends.capture import Argument, Captured, capture, fill_results
from sarc.frontends.check_inputs import check_arguments, check_graph, check_ranks, find_graph
from sarc.frontends.copy_module import copy_module
from sarc.frontends.inputs import argument, candidates, choose, take_apart
from sarc.frontends.placeholders import graph_spaces, input_names, placeholder_types
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.exchange import ExchangeOptions
from sarc.ir.placement import Choice, Need, RowSet, Site
from sarc.ir.print import format_program
from sarc.ir.program import Input, Program
from sarc.ir.schedule import Schedule
from sarc.ir.space import ValueType
from sarc.ir.verify import verify
from sarc.partition.columns import ColumnMap
from sarc.passes.forward.bind import bind
from sarc.passes.forward.bind_data import bind_data
from sarc.passes.forward.canonicalise import Canonicalise
from sarc.passes.forward.compute_halos import ComputeHalos
from sarc.passes.forward.data_price import DataPrice
from sarc.passes.forward.factor_folds import FactorFolds
from sarc.passes.forward.hoist_rowwise import HoistRowwise
from sarc.passes.forward.order_dense import OrderDense
from sarc.passes.forward.raise_graph_ops import RaiseGraphOps
from sarc.passes.forward.split_attention import SplitAttention
from sarc.passes.joint.differentiate import differentiate
from sarc.passes.joint.factor_gradients import FactorGradients
from sarc.passes.joint.fold_products import FoldProducts
from sarc.passes.joint.fuse_edge_programs import FuseEdgePrograms
from sarc.passes.joint.rematerialise import WORTH, Limits, Rematerialise
from sarc.passes.joint.simplify import Simplify
from sarc.passes.joint.split import split
from sarc.passes.partitioned.add_products import AddProducts
from sarc.passes.partitioned.build_schedule import build_schedule, column_targets
from sarc.passes.partitioned.choose_sites import Numbers, choose_sites, sites_to_count
from sarc.passes.partitioned.exchange_whole import ExchangeWhole, choose_exchange, is_whole
from sarc.passes.partitioned.find_needs import Reading, find_needs
from sarc.passes.partitioned.fuse_rows import FuseRows
from sarc.passes.partitioned.merge_fold_states import MergeFoldStates
from sarc.passes.partitioned.merge_row_phases import MergeRowPhases
from sarc.passes.partitioned.narrow_fetches import NarrowFetches
from sarc.passes.partitioned.narrow_gathers import NarrowGathers
from sarc.passes.partitioned.narrow_products import NarrowProducts
from sarc.passes.partitioned.order_lifetimes import OrderLifetimes
from sarc.passes.partitioned.partition_program import PartitionProgram
from sarc.passes.partitioned.place_edge_programs import PlaceEdgePrograms
from sarc.passes.partitioned.repeat_rows import RepeatRows
from sarc.passes.partitioned.reuse_storage import ReuseStorage
from sarc.runtime.logs import log

DEFAULT_BACKEND = "auto"
DEFAULT_PLACEMENT = "auto"
DEFAULT_OBJECTIVE = "time"

Observer = Callable[[str, Program], None]


@dataclass(frozen=True)
class Stages:
    """Every program of one captured variant of a model.

    Attributes:
        captured: structure of the user's result and what the capture asked for.
        programs: by stage: "raised", "structure", "step"; where something is made of data alone, "data" and "bound
            step", which reads it; then "joint", "forward" and "backward" when gradients are
            asked for; "forward" alone otherwise.
        captured_answers: Python numbers taken from structural tensors that the capture has baked in; a variant that has
            any is captured again when the structure changes.
    """

    captured: Captured
    programs: Mapping[str, Program] = field(default_factory=dict)
    captured_answers: list[object] = field(default_factory=list)

    def __getitem__(self, stage: str) -> Program:
        return self.programs[stage]

    def having(self, programs: Mapping[str, Program]) -> Stages:
        """These stages with more programs, or others."""
        return replace(self, programs={**self.programs, **programs})


class Pipeline:
    """The passes, in order. Each line is a pass or a stage in a file of its own.

    The first block reads calls; the runtime reaches it through here, since it stands on the frontends' floor.

    Args:
        backend: one of `BACKENDS` (see `compile`).
        observe: called with every pass's name and the program it made, in order; it must not alter the program.
        exchange: how rows travel between parts.
        placement, objective: where edge programs run, and what decides it (see `compile`).
    """

    def __init__(
        self,
        backend: str = DEFAULT_BACKEND,
        observe: Observer | None = None,
        exchange: ExchangeOptions | None = None,
        placement: str = DEFAULT_PLACEMENT,
        objective: str = DEFAULT_OBJECTIVE,
    ):
        self.backend = Backend(backend)
        self.exchange = exchange or ExchangeOptions()
        self.observe = observe
        self.placement, self.objective = placement, objective

    def after(self, name: str, program: Program) -> Program:
        """`program`, which the pass `name` made: checked, and shown to the observer."""
        verify(program)
        log("passes", lambda: f"after {name}\n{format_program(program)}")
        if self.observe is not None:
            self.observe(name, program)
        return program

    copy_module = staticmethod(copy_module)
    take_apart = staticmethod(take_apart)
    check_arguments = staticmethod(check_arguments)
    find_graph = staticmethod(find_graph)
    candidates = staticmethod(candidates)
    choose = staticmethod(choose)
    check_ranks = staticmethod(check_ranks)
    check_graph = staticmethod(check_graph)
    argument = staticmethod(argument)
    fill_results = staticmethod(fill_results)
    cost = staticmethod(program_cost)

    def front(
        self,
        module: nn.Module,
        arguments: Sequence[Argument],
        call: Callable,
        answers: Sequence[object],
        counts: Mapping[str, int],
    ) -> Stages:
        """Capture to binding times: what does not depend on which gradients are asked for."""
        captured = capture(module, arguments, call, graph_spaces(), answers, counts)
        inputs, outputs = captured.inputs, captured.outputs
        if self.observe is not None:  # not typed yet: nothing to verify
            self.observe("capture", Program(captured.graph, captured.spaces, inputs, outputs, "captured"))
        canonicalise = Canonicalise(captured.spaces, captured.symbols)
        canonical = canonicalise.run(captured.graph, input_names(captured.inputs))
        types = placeholder_types(canonical, captured, arguments)
        if canonicalise.rng is not None:
            inputs = (*inputs, Input("rng", "rng"))
            types.append(ValueType((2,), torch.int64))
        if self.observe is not None:
            self.observe("canonicalise", Program(canonical, captured.spaces, inputs, outputs, "canonical"))
        graph = RaiseGraphOps(captured.spaces, types).run(canonical)
        raised = Program(graph, captured.spaces, inputs, outputs, "raised", captured.constants)
        rewritten = self.after("raise-graph-ops", raised)
        for algebra in (SplitAttention(), HoistRowwise(), FactorFolds(), OrderDense()):
            rewritten = self.after(algebra.name, algebra.run(rewritten))
        structure, step = (self.after("bind", program) for program in bind(rewritten))
        return Stages(captured, {"raised": raised, "structure": structure, "step": step})

    def back(self, stages: Stages, wrt: frozenset[Input], halos: Mapping[str, int], rows: Mapping[str, int]) -> Stages:
        """What is bound to data, differentiation, edge programs.

        Args:
            wrt: inputs that need gradients.
            halos: most rows of other parts that a part reads through each column that reaches them.
            rows: most rows of each space on a part.
        """
        step = stages["step"]
        if wrt and self.objective == "memory":
            step = self.after(OrderDense.name, OrderDense(wrt, tight=True).run(step))
            stages = stages.having({"step": step})
        if self.exchange.exchange != "sar":
            stages, step = self._bind_data(stages, wrt, halos, rows)
        if not wrt:
            simplified = self.after(Simplify.name, Simplify().run(step.at("forward")))
            forward = self.after(FuseEdgePrograms.name, FuseEdgePrograms().run(simplified))
            return stages.having({"forward": forward})
        joint = self.after("differentiate", differentiate(step, wrt))
        joint = self.after(Simplify.name, Simplify().run(joint))
        known = {**rows, "halo": max(halos.values(), default=0)}
        return self.divide(stages.having({"joint": joint}), known)

    def divide(
        self,
        stages: Stages,
        rows: Mapping[str, int] | None = None,
        most_bytes: float | None = None,
        worth: float = WORTH,
    ) -> Stages:
        """The forward and the backward program of a joint one.

        Args:
            most_bytes: of the values kept between them, on one part; None: as `Rematerialise` finds fit.
            worth: what a value made again must save (see `Limits`).
        """
        planner = Rematerialise(rows, Limits(most_bytes=most_bytes, worth=worth))
        joint = self.after(Rematerialise.name, planner.run(stages["joint"]))
        forward, backward = (self.after("split", program) for program in split(joint))
        forward, backward = (self.after(FuseEdgePrograms.name, FuseEdgePrograms().run(p)) for p in (forward, backward))
        return stages.having({"joint": joint, "forward": forward, "backward": backward})

    def factored(self, stages: Stages, rows: Mapping[str, int]) -> Stages | None:
        """The stages with gradients of rows made of the forward pass's sums (`FactorGradients`); None where none is."""
        joint = FactorGradients().run(stages["joint"])
        if joint is stages["joint"]:
            return None
        joint = self.after(FactorGradients.name, joint)
        return self.divide(stages.having({"joint": joint}), rows)

    def fewer_tables(self, stages: Stages, rows: Mapping[str, int]) -> list[Stages]:
        """Stages whose backward pass reads fewer tables of the forward pass and gathers more (`FoldProducts`), with
        more kept and with less; none where it reads no table for a product alone."""
        joint = FoldProducts().run(stages["joint"])
        if joint is stages["joint"]:
            return []
        joint = self.after(Simplify.name, Simplify().run(self.after(FoldProducts.name, joint)))
        folded = stages.having({"joint": joint})
        return [self.divide(folded, rows, worth=worth) for worth in (2 * WORTH, WORTH)]

    def _bind_data(
        self, stages: Stages, wrt: frozenset[Input], halos: Mapping[str, int], rows: Mapping[str, int]
    ) -> tuple[Stages, Program]:
        """The stages with a data program, where there is one, and the step that reads what it makes."""
        price = DataPrice(self.exchange, self.objective, stages["step"].spaces, halos, rows, bool(wrt))
        step = self.after(OrderDense.name, OrderDense(wrt).run(stages["step"]))
        step = self.after(ComputeHalos.name, ComputeHalos(wrt, halos, price.halo).run(step))
        data, step = bind_data(step, wrt, price.keep)
        if data is None:
            return stages, stages["step"]
        data, step = self.after("bind-data", data), self.after("bind-data", step)
        fused = self.after(FuseEdgePrograms.name, FuseEdgePrograms().run(data))
        return stages.having({"data": fused, "bound step": step}), step

    def narrow(self, program: Program, remote: frozenset[str], device: torch.device) -> Program:
        """The program of a stage whose edge programs read the narrowest rows of other parts, on a device."""
        has = has_kernels(self.target(device))
        if has is None or not remote or self.exchange.exchange == "sar":
            return program
        return self.after(NarrowGathers.name, NarrowGathers(has, remote=remote).run(program))

    def needs(
        self, program: Program, remote: frozenset[str], columns: Mapping[tuple[str, str | int], ColumnMap]
    ) -> list[Need]:
        """What each edge program needs of other parts, for columns known to reach them, and the maps of all columns."""

        def whole(column: fx.Node, space: str, row_bytes: int) -> bool:
            return is_whole(self.exchange, columns[column.name, space], row_bytes)

        home = "exchange='sar'" if self.exchange.exchange == "sar" else ""
        return find_needs(program, remote, Reading(whole, self.objective == "bytes", self.exchange.comm_dtype, home))

    def sites(self, needs: Sequence[Need]) -> list[Site]:
        """The sites whose rows must be counted before `choose_sites`."""
        return sites_to_count(needs, self.placement)

    def choose_sites(
        self, needs: Sequence[Need], numbers: Numbers, num_parts: int, named: dict[Site, RowSet]
    ) -> list[Choice]:
        """Where each edge program runs; `named` gains the row sets."""
        return choose_sites(needs, numbers, num_parts, self.placement, self.objective, named)

    def place(self, program: Program, row_sets: Mapping[str, Sequence[RowSet]]) -> Program:
        """The program over the chosen row sets, by edge call."""
        return self.after(PlaceEdgePrograms.name, PlaceEdgePrograms(row_sets).run(program)) if row_sets else program

    def target(self, device: torch.device) -> str | None:
        """Whose kernels run on a device (see `Backend.target`)."""
        return self.backend.target(device)

    def partition(
        self,
        program: Program,
        remote: frozenset[str],
        columns: Mapping[tuple[str, str | int], ColumnMap],
        choices: Sequence[Choice],
        device: torch.device,
    ) -> Program:
        """The program of one part, for columns known to reach other parts, maps of all columns, sites, a device."""
        return self._partition(program, remote, columns, choices, has_kernels(self.target(device)), self.after)

    def _partition(
        self,
        program: Program,
        remote: frozenset[str],
        columns: Mapping[tuple[str, str | int], ColumnMap],
        choices: Sequence[Choice],
        has: Callable[[EdgeProgram], bool] | None,
        after: Callable[[str, Program], Program],
    ) -> Program:
        """The passes of a part's program; those for kernels where `has` tells which edge programs have one."""
        program = after(PartitionProgram.name, PartitionProgram(remote).run(program))
        together = {name: k for k, choice in enumerate(choices) if choice.chosen for name in choice.visits}
        decided = {name: choices[k].need.whole for name, k in together.items()}
        choose = partial(choose_exchange, self.exchange, program.spaces, columns, decided)
        program = after(ExchangeWhole.name, ExchangeWhole(choose).run(program))
        if self.exchange.comm_dtype is None:
            program = after(MergeFoldStates.name, MergeFoldStates().run(program))
        if self.exchange.exchange != "sar":
            narrow = NarrowFetches(self.objective == "bytes", self.exchange.comm_dtype, together)
            program = after(NarrowFetches.name, narrow.run(program))
        program = after(RepeatRows.name, RepeatRows().run(program))
        program = after(AddProducts.name, AddProducts().run(program))
        if has is not None:
            tight = self.objective == "memory"
            # CUDA kernels share a row between threads as it is.
            on_cpu = has is has_kernel
            hubs = frozenset(name for (name, _), column in columns.items() if column.has_hub and on_cpu)
            program = after(NarrowGathers.name, NarrowGathers(has).run(program))
            program = after(NarrowProducts.name, NarrowProducts().run(program))
            program = after(MergeRowPhases.name, MergeRowPhases(has, tight, hubs).run(program))
            program = after(FuseRows.name, FuseRows(has).run(program))
        program = after(OrderLifetimes.name, OrderLifetimes().run(program))
        over = ReuseStorage(overwritable if has is has_kernel else None, self.objective == "memory")
        return after(ReuseStorage.name, over.run(program))

    def exchange_in_chunks(self) -> bool:
        """From now on rows travel chunk by chunk, where nothing else was asked for; returns whether that is news."""
        if self.exchange.exchange != "auto":
            return False
        self.exchange = replace(self.exchange, exchange="ring")
        return True

    def columns(self, program: Program) -> list[tuple[fx.Node, str | int]]:
        """The columns of a program and the spaces whose rows they name."""
        return column_targets(program)

    def schedule(
        self,
        program: Program,
        rank: int,
        num_parts: int,
        columns: Mapping[tuple[str, str | int], ColumnMap],
        prefetch: int,
    ) -> Schedule:
        return build_schedule(program, rank, num_parts, columns, prefetch, self.exchange.comm_dtype)

    def kernels(self, program: Program, device: torch.device) -> dict[str, CppKernel] | dict[str, CudaKernel]:
        """Kernels of a partitioned program's edge programs (see `Backend.kernels`)."""
        return self.backend.kernels(program, device)

    def sources(
        self,
        program: Program,
        remote: frozenset[str],
        columns: Mapping[tuple[str, str | int], ColumnMap],
        choices: Sequence[Choice],
        target: str,
    ) -> list[tuple[EdgeProgram, list[str] | str]]:
        """The text of every kernel of a program on a part, or why an edge program has none; nothing is compiled.

        Args:
            program: of a stage, placed, before it is partitioned.
            remote: columns known to reach other parts.
            columns: maps of all columns.
            choices: sites of its edge programs.
            target: "cpp" or "cuda", whether this machine has its compiler or not.
        """
        partitioned = self._partition(program, remote, columns, choices, has_kernels(target), lambda name, made: made)
        return kernel_texts(partitioned, target)

    def runs(self, program: Program, kernels: Mapping[str, Any], device: torch.device) -> dict[str, Run]:
        """How each edge program of a partitioned program runs on a device, by name."""
        return self.backend.runs(program, kernels, device)
