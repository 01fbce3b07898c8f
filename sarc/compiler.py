"""The compiler: `compile()` and the list of its passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn

from sarc.codegen.build import compiler, require_compiler
from sarc.codegen.coverage import Run, require_kernels, runs
from sarc.codegen.cuda_kernels import CudaKernel, build_ahead, compile_cuda_kernels, has_cuda_kernel
from sarc.codegen.explain import try_emit, why_no_kernel
from sarc.codegen.kernels import CppKernel, compile_kernels, has_kernel
from sarc.codegen.nvcc import NO_NVCC, nvcc
from sarc.codegen.warn_once import warn_once
from sarc.cost import program_cost
from sarc.errors import CodegenError, OptionError, PartitionError
from sarc.frontends.capture import Argument, Captured, capture, fill_results
from sarc.frontends.check_inputs import check_arguments, check_graph, check_ranks, find_graph
from sarc.frontends.check_options import budget_bytes, check_exchange, check_options, offload_directory
from sarc.frontends.copy_module import copy_module
from sarc.frontends.inputs import argument, candidates, choose, take_apart
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.exchange import ExchangeOptions
from sarc.ir.placement import OBJECTIVES, PLACEMENTS, Choice, Need, RowSet, Site
from sarc.ir.print import format_program
from sarc.ir.program import Input, Program
from sarc.ir.schedule import Schedule
from sarc.ir.space import Rows, Space, Spaces, ValueType
from sarc.ir.verify import verify
from sarc.partition.columns import ColumnMap
from sarc.partition.layout import Partitions
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
from sarc.passes.joint.fuse_edge_programs import FuseEdgePrograms
from sarc.passes.joint.rematerialise import Limits, Rematerialise
from sarc.passes.joint.simplify import Simplify
from sarc.passes.joint.split import split
from sarc.passes.partitioned.build_schedule import build_schedule, column_targets
from sarc.passes.partitioned.choose_sites import Numbers, choose_sites, sites_to_count
from sarc.passes.partitioned.exchange_whole import ExchangeWhole, choose_exchange, is_whole
from sarc.passes.partitioned.find_needs import Reading, find_needs
from sarc.passes.partitioned.fuse_rows import FuseRows
from sarc.passes.partitioned.merge_row_phases import MergeRowPhases
from sarc.passes.partitioned.narrow_fetches import NarrowFetches
from sarc.passes.partitioned.order_lifetimes import OrderLifetimes
from sarc.passes.partitioned.partition_program import PartitionProgram
from sarc.passes.partitioned.place_edge_programs import PlaceEdgePrograms
from sarc.runtime.logs import log, logs_from_environment
from sarc.runtime.module import CompiledModule

BACKENDS = ("auto", "cpp", "cuda", "reference")
TARGETS = {"cpu": "cpp", "cuda": "cuda"}  # by type of device
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
        self.backend = backend
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

    def back(
        self, stages: Stages, wrt: frozenset[Input], halos: Mapping[str, int], rows: Mapping[str, int]
    ) -> Stages:
        """What is bound to data, differentiation, edge programs.

        Args:
            wrt: inputs that need gradients.
            halos: most rows of other parts that a part reads through each column that reaches them.
            rows: most rows of each space on a part.
        """
        step = stages["step"]
        if self.exchange.exchange != "sar":
            stages, step = self._bind_data(stages, wrt, halos, rows)
        if not wrt:
            simplified = self.after(Simplify.name, Simplify().run(step.at("forward")))
            forward = self.after(FuseEdgePrograms.name, FuseEdgePrograms().run(simplified))
            return Stages(stages.captured, {**stages.programs, "forward": forward}, stages.captured_answers)
        joint = self.after("differentiate", differentiate(step, wrt))
        joint = self.after(Simplify.name, Simplify().run(joint))
        known = {**rows, "halo": max(halos.values(), default=0)}
        return self.divide(Stages(stages.captured, {**stages.programs, "joint": joint}, stages.captured_answers), known)

    def divide(self, stages: Stages, rows: Mapping[str, int] | None = None, most_bytes: float | None = None) -> Stages:
        """The forward and the backward program of a joint one.

        Args:
            most_bytes: of the values kept between them, on one part; None: as `Rematerialise` finds fit.
        """
        planner = Rematerialise(rows, Limits(most_bytes=most_bytes))
        joint = self.after(Rematerialise.name, planner.run(stages["joint"]))
        forward, backward = (self.after("split", program) for program in split(joint))
        forward, backward = (self.after(FuseEdgePrograms.name, FuseEdgePrograms().run(p)) for p in (forward, backward))
        made = {"joint": joint, "forward": forward, "backward": backward}
        return Stages(stages.captured, {**stages.programs, **made}, stages.captured_answers)

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
        made = {"data": fused, "bound step": step}
        return Stages(stages.captured, {**stages.programs, **made}, stages.captured_answers), step

    def needs(
        self, program: Program, remote: frozenset[str], columns: Mapping[tuple[str, str | int], ColumnMap]
    ) -> list[Need]:
        """What each edge program needs of other parts, for columns known to reach them, and the maps of all columns."""

        def whole(column: fx.Node, space: str, row_bytes: int) -> bool:
            return is_whole(self.exchange, columns[column.name, space], row_bytes)

        home = "exchange='sar'" if self.exchange.exchange == "sar" else ""
        return find_needs(
            program, remote, Reading(whole, self.objective == "bytes", self.exchange.comm_dtype, home)
        )

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
        """Whose kernels run on a device, "cpp" or "cuda"; None where plain torch runs everything.

        Raises:
            CodegenError: the backend makes kernels for another device, or this machine lacks nvcc for it.
        """
        name = TARGETS.get(device.type)
        if self.backend == "reference" or name is None:
            return None
        if self.backend not in ("auto", name):
            raise CodegenError(
                f"backend={self.backend!r}: the model and its tensors are on {device}, which runs {name!r} kernels: "
                f"move them with .to({'cuda' if self.backend == 'cuda' else 'cpu'!r}), or use backend='auto'"
            )
        if name == "cpp":
            return name if compiler() is not None else None
        if nvcc() is not None:
            return name
        if self.backend == "cuda":
            raise CodegenError(NO_NVCC)
        warn_once(f"{NO_NVCC.partition(':')[0]}: edge programs run in plain torch on the GPU, which is slower")
        return None

    def partition(
        self,
        program: Program,
        remote: frozenset[str],
        columns: Mapping[tuple[str, str | int], ColumnMap],
        choices: Sequence[Choice],
        device: torch.device,
    ) -> Program:
        """The program of one part, for columns known to reach other parts, maps of all columns, sites, a device."""
        target = self.target(device)
        has = None if target is None else has_cuda_kernel if target == "cuda" else has_kernel
        return self._partition(program, remote, columns, choices, has, self.after)

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
        if self.exchange.exchange != "sar":
            narrow = NarrowFetches(self.objective == "bytes", self.exchange.comm_dtype, together)
            program = after(NarrowFetches.name, narrow.run(program))
        if has is not None:
            program = after(MergeRowPhases.name, MergeRowPhases(has).run(program))
            program = after(FuseRows.name, FuseRows(has).run(program))
        return after(OrderLifetimes.name, OrderLifetimes().run(program))

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
        """Edge programs of a partitioned program, compiled for a device, by name; the others run in plain torch.

        Raises:
            CodegenError: backend "cpp" or "cuda", and one that should have a kernel has none.
        """
        programs = edge_programs(program)
        log("kernels", lambda: "\n".join(f"{program.stage} {e}: {why_no_kernel(e) or 'a kernel'}" for e in programs))
        target = self.target(device)
        if target is None:
            return {}
        if target == "cuda":
            build_ahead(programs)
        compile_all: Callable[..., dict[str, Any]] = compile_cuda_kernels if target == "cuda" else compile_kernels
        if self.backend == target:
            made = compile_all(programs)
            require_kernels(programs, made, target)
            return made
        made = {}
        for edges in programs:
            try:
                made |= compile_all([edges])
            except CodegenError as error:
                warn_once(f"a kernel could not be built, plain torch runs in its place: {error}")
        return made

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
        has = has_cuda_kernel if target == "cuda" else has_kernel
        partitioned = self._partition(program, remote, columns, choices, has, lambda name, made: made)
        found = [(edges, try_emit(edges, target)) for edges in edge_programs(partitioned)]
        return [(edges, made if isinstance(made, str) else [s.text for s in made]) for edges, made in found]

    def runs(self, program: Program, kernels: Mapping[str, Any], device: torch.device) -> dict[str, Run]:
        """How each edge program of a partitioned program runs on a device, by name."""
        programs = edge_programs(program)
        target = TARGETS.get(device.type, "cpp")
        there, what = (nvcc(), "nvcc") if target == "cuda" else (compiler(), "C++ compiler")
        found = runs(programs, kernels, self.backend, target, "" if there else what)
        return {edges.name: run for edges, run in zip(programs, found, strict=True)}


def edge_programs(program: Program) -> list[EdgeProgram]:
    """The edge programs of a program, in order."""
    return [n.args[0] for n in program.graph.nodes if n.target is edge_call]


def graph_spaces() -> Spaces:
    """The spaces every program starts from: nodes N and edges E of the one relation."""
    spaces = Spaces()
    spaces.add(Space("N", "nodes"))
    spaces.add(Space("E", "edges", on_edges=True))
    return spaces


def input_names(inputs: Sequence[Input]) -> list[str]:
    """Readable, valid and distinct names for placeholders."""
    names: list[str] = []
    for entry in inputs:
        stem = "".join(c if c.isalnum() else "_" for c in entry.name).strip("_") or "value"
        stem = f"rows_{stem}" if entry.kind == "rows" else stem if not stem[0].isdigit() else f"p_{stem}"
        name, k = stem, 1
        while name in names:
            k += 1
            name = f"{stem}_{k}"
        names.append(name)
    return names


def placeholder_types(graph: fx.Graph, captured: Captured, arguments: Sequence[Argument]) -> list[ValueType]:
    given = {a.path: a.type for a in arguments}
    types = []
    for node, entry in zip((n for n in graph.nodes if n.op == "placeholder"), captured.inputs, strict=False):
        if entry.kind == "arg":
            types.append(given[entry.name])
        elif entry.kind == "rows":
            types.append(ValueType((Rows(entry.name),), torch.uint8))
        else:
            value = node.meta["val"]
            types.append(ValueType(tuple(int(n) for n in value.shape), value.dtype))
    return types


def compile(
    model: nn.Module,
    partitions: Partitions | int | Tensor,
    *,
    spaces: Mapping[str, str | None] | None = None,
    memory_budget: int | float | str | None = None,
    offload: str | None = None,
    offload_dir: str | os.PathLike[str] | None = None,
    prefetch: int = 1,
    seed: int | None = None,
    backend: str = DEFAULT_BACKEND,
    placement: str = DEFAULT_PLACEMENT,
    objective: str = DEFAULT_OBJECTIVE,
    verify: bool = False,
    exchange: str = "auto",
    halo_budget: int = ExchangeOptions.halo_budget,
    comm_dtype: torch.dtype | None = None,
) -> CompiledModule:
    """Compile `model` to run full-batch, and exactly, over the partitions of a graph.

    Args:
        model: an ordinary single-graph module: PyG, DGL or plain torch. It is not altered; the compiled module shares
            its parameters and buffers. Its forward, forward hooks of submodules included, runs when a call needs a new
            capture, on a copy and without data: what hooks return counts, what they store elsewhere does not.
        partitions: from `sarc.partition` or a shard; or a number of parts or an assignment int64 [N], with which the
            graph of the first call is cut.
        spaces: for arguments whose rows cannot be told from their shapes: name -> "N", "E" or None (replicated).
        memory_budget: bytes, or text like "8GiB", that a step may take on one part, parameters, features and structure
            included, gradients and optimizer states outside the compiled module not. The plan with the least extra work
            that fits is taken. None: what costs less than it saves is made again in the backward pass, at under 15 %
            extra work; `float("inf")`: nothing is. `plan()` predicts the bytes.
        offload: "disk": tensors of a step of a megabyte and more lie in files of `offload_dir` (None: the system's
            directory for temporary files), mapped into memory; the system holds in memory what is in use. For graphs
            whose activations do not fit: partition them, and one part is in use at a time. The files have no names and
            go with the process.
        prefetch: chunks of rows posted ahead of the one in use; at most 2 (1 + prefetch) are alive on a part.
        seed: of dropout and other random operators; None takes torch's initial seed. All ranks use rank 0's.
        backend: "auto" runs each edge program as a kernel where it has a scalar form, for the device of the call: C++
            on a CPU (built in a fraction of a second, kept in a cache), CUDA on a GPU (built in seconds); and in plain
            torch where it has none or the machine has no compiler, which a warning says once; "cpp" and "cuda" raise
            where "auto" would fall back; "reference" runs all in plain torch. Matrix products of every edge run in
            plain torch under each. `plan()` says how each edge program runs, and why.
        placement: where an edge program runs whose edges join rows of two parts: "dst", at the owner of its
            destination; "src", at the owner of its source; "cover", each edge at either, so that the rows that travel
            are a vertex cover of the least bytes; "auto", at whichever `objective` prices lowest. Results are the same.
            `plan()` lists the candidates.
        objective: of "auto" placement: "time" as predicted for bytes, messages and edges of the slowest part; "bytes"
            sent by all parts; "memory" of the largest part.
        verify: the first call in each mode also runs the plain module, with the same random draws, and prints the
            largest difference of every result, buffer and gradient to stderr. In one process only.
        exchange: how rows travel between parts. "auto": all rows of a step of a layer at once, in one all-to-all, while
            the halo fits `halo_budget`, and beyond it chunk by chunk in a ring, with at most 2 (1 + prefetch) chunks
            alive; "whole" and "ring" force one of them; "sar" is the scheme of the SAR paper, for comparison.
            Under all but "sar", what depends on arguments that need no gradient alone is exchanged and computed once,
            and again when they change: sums over neighbours of a linear first layer, or the halo's rows of x.
        halo_budget: bytes of other parts' rows that a part may hold at once under "auto"; and of what is kept of data.
        comm_dtype: torch.bfloat16 sends rows and partial sums rounded to it, half the bytes; None sends them as they
            are. It changes results: by about 2^-9 of each number sent.

    Returns:
        A module called like `model`: with whole-graph tensors in one process; under torchrun with the rows a rank owns
        (`shard.x`, `shard.graph`), returning its owned rows.

    Raises:
        OptionError: `model` is no module, or an option has a value that it cannot have.
        UnsupportedModelError: at the first call, when the model cannot be captured or partitioned.
        BudgetError: at the first call, when no plan fits the budget; names the least bytes and the largest values.
        PartitionError, GraphError: partitions that do not fit the world or the call.
        OffloadError: the directory for offload cannot be used; at a call, when its disk is full.
        CodegenError: backend "cpp" without a C++ compiler, "cuda" without nvcc; at the first call, with an edge program
            that has no kernel.
        DifferenceError: with verify, when results or gradients differ by more than rounding in their dtype.
    """
    check_options(model, spaces, prefetch, seed)
    check_exchange(exchange, halo_budget, comm_dtype)
    if isinstance(model, CompiledModule):
        raise OptionError("model: expected a plain module, got one that sarc.compile made; compile its .model")
    if isinstance(partitions, bool) or not isinstance(partitions, (Partitions, int, Tensor)):
        raise PartitionError(
            f"expected partitions (sarc.partition(...), shard.partitions), a number of parts or an assignment tensor "
            f"int64 [N], got {type(partitions).__name__}"
        )
    if isinstance(partitions, int) and partitions < 1:
        raise PartitionError(f"expected at least 1 part, got {partitions}")
    _check_word("backend", backend, BACKENDS)
    _check_word("placement", placement, PLACEMENTS)
    _check_word("objective", objective, OBJECTIVES)
    if backend == "cpp":
        require_compiler()
    if backend == "cuda" and nvcc() is None:
        raise CodegenError(NO_NVCC)
    if backend == "auto" and compiler() is None:
        warn_once("no C++ compiler found (CXX, g++, clang++, c++): edge programs run in plain torch, which is slower")
    logs_from_environment()
    pipeline = Pipeline(
        backend,
        exchange=ExchangeOptions(exchange, halo_budget, comm_dtype),
        placement=placement,
        objective=objective,
    )
    return CompiledModule(
        model, partitions, pipeline, spaces=dict(spaces or {}), prefetch=prefetch, seed=seed, verify=bool(verify),
        memory_budget=budget_bytes(memory_budget), offload_dir=offload_directory(offload, offload_dir),
    )  # fmt: skip


def _check_word(name: str, given: object, known: Sequence[str]) -> None:
    """OptionError unless an option is one of the words it may be."""
    if given not in known:
        raise OptionError(f"{name}: expected one of {', '.join(map(repr, known))}, got {given!r}")
