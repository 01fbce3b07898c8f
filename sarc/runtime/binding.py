"""Binding: a variant of a model bound to the graph.

Made once a graph: every hosted part's bound values (degrees, norms, self loops), column maps, partitioned programs and
schedules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.fx as fx
from torch import Tensor

from sarc.errors import PartitionError
from sarc.ir.call import location
from sarc.ir.program import Input, Program
from sarc.ir.schedule import Schedule
from sarc.ir.space import ValueType
from sarc.runtime.check_messages import check_messages
from sarc.runtime.check_sent import check_planned
from sarc.runtime.host import Host
from sarc.runtime.known_columns import KnownColumns
from sarc.runtime.part_state import PartState
from sarc.runtime.placing import Placing, place
from sarc.runtime.prologue import Prologue
from sarc.runtime.rows import RowOrder
from sarc.runtime.run_state import Kernel
from sarc.runtime.structure import run_structure
from sarc.runtime.work import AllGather, Work, run_parts

# Kernels number edges and rows in int32.
MOST_ROWS = 2**31 - 1

Values = Mapping[Input, Tensor | None]


@dataclass
class Binding:
    """What is known once the graph is.

    Attributes:
        structural: the integer and boolean tensors it was made from, with their versions; kept, so that their storage
            is not reused.
        order: rows of this process and its parts.
        bound: bound values of each hosted part, by name.
        programs: partitioned programs by stage.
        schedules: schedule of each hosted part, by stage.
        kernels: compiled edge programs by name, by stage; the others run in plain torch.
        remote: names of the columns that reach other parts, by stage.
        constants: of the captured program, on the device of its rows.
        placing: where edge programs run, and the row sets made for them.
        prologue: what is made of data, once a feature matrix; None where nothing is.
        notes: choices between whole programs, with their prices.
        spare: by stage, bytes of free memory that may be kept in each instruction; empty where it may always be.
    """

    structural: list[tuple[Tensor, int]]
    order: RowOrder
    bound: list[dict[str, Tensor]]
    programs: dict[str, Program] = field(default_factory=dict)
    schedules: dict[str, list[Schedule]] = field(default_factory=dict)
    kernels: dict[str, Mapping[str, Kernel]] = field(default_factory=dict)
    remote: dict[str, frozenset[str]] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    placing: Placing = field(default_factory=Placing)
    prologue: Prologue | None = None
    notes: tuple[str, ...] = ()
    spare: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def fits(self, structural: Sequence[Tensor]) -> bool:
        """Whether it was made from tensors of these values."""
        return len(structural) == len(self.structural) and all(
            _unchanged(now, *then) for now, then in zip(structural, self.structural, strict=True)
        )


def _unchanged(now: Tensor, then: Tensor, version: int) -> bool:
    if _version(then) != version or now.shape != then.shape or now.dtype != then.dtype or now.device != then.device:
        return False
    same_memory = now.data_ptr() == then.data_ptr() and now.stride() == then.stride()
    return same_memory or torch.equal(now, then)


def _version(tensor: Tensor) -> int:
    """Number of in-place changes; inference tensors are not counted."""
    return -1 if tensor.is_inference() else tensor._version


def structural_tensors(programs: Mapping[str, Program], values: Values) -> list[Tensor]:
    """The integer and boolean arguments that a binding depends on."""
    wanted = {e: None for stage in ("structure", "step") for e in programs[stage].inputs if e.kind == "arg"}
    found = [values[e] for e in wanted]
    return [v for v in found if v is not None and not v.dtype.is_floating_point]


@dataclass(frozen=True)
class Structure:
    """What the structure program made.

    Attributes:
        order: rows of this process and its parts.
        bound: bound values of each hosted part, by name.
    """

    order: RowOrder
    bound: list[dict[str, Tensor]]


def make_structure(host: Host, stages, values: Values, device: torch.device) -> Structure:
    """Run the structure program on every hosted part, whose rows are on a device."""
    structure: Program = stages["structure"]
    states = [_state(host, structure, rank, device) for rank in sorted(host.partitions.parts)]
    order = RowOrder(host.whole, states)
    constants = _placed_constants(stages, device)
    cuts = cut_inputs(structure, values, order, constants)
    bound = run_parts(
        {s.rank: run_structure(structure, s, cut) for s, cut in zip(states, cuts, strict=True)}, host.transport
    )
    return Structure(order, [bound[s.rank] for s in states])


def _placed_constants(stages, device: torch.device) -> dict[str, Tensor]:
    """The constants of the captured program on a device."""
    return {name: value.to(device) for name, value in stages.captured.constants.items()}


def measure_halos(
    compiler, host: Host, stages, values: Values, made: Structure
) -> tuple[dict[str, int], dict[str, int]]:
    """Most halo rows through each column of a step that reaches other parts; most rows of each space on a part.

    The same on all parts, which all call it.
    """
    step: Program = stages["step"]
    cuts = cut_inputs(step, values, made.order, _placed_constants(stages, made.order.states[0].device))
    _map_columns(compiler, host, step, made, cuts, Placing())
    columns = made.order.states[0].columns
    wanted = [(c, t) for c, t in compiler.columns(step) if columns[c.name, t].remote]
    found = {c.name: columns[c.name, t].most_halo_rows for c, t in wanted}

    def share(state: PartState) -> Work:
        everyone = yield AllGather(state.local_sizes())
        return {name: max(sizes[name] for sizes in everyone) for name in everyone[0]}

    rows = run_parts({s.rank: share(s) for s in made.order.states}, host.transport)
    return found, rows[made.order.states[0].rank]


def bind(
    compiler, host: Host, stages, values: Values, prefetch: int, device: torch.device, made: Structure | None = None
) -> Binding:
    """Run the structure program and schedule the others on every hosted part.

    Args:
        compiler: the passes (`sarc.runtime.variants.Compiler`).
        stages: programs of one variant.
        values: this process's arguments.
        prefetch: chunks posted ahead.
        device: of this process's rows.
        made: by the structure program, where it has run.
    """
    made = made or make_structure(host, stages, values, device)
    structural = [(t, _version(t)) for t in structural_tensors(stages.programs, values)]
    binding = Binding(structural, made.order, made.bound, constants=_placed_constants(stages, device))
    schedule_stages(compiler, host, stages, values, binding, prefetch)
    return binding


def schedule_stages(compiler, host: Host, stages, values: Values, binding: Binding, prefetch: int) -> None:
    """Enter the partitioned programs of `stages`, their schedules and kernels into a binding."""
    constants = binding.constants
    for stage in ("data", "forward", "backward"):
        if stage in stages.programs:
            _schedule(compiler, host, stage, stages[stage], values, constants, binding, prefetch)
    if "data" in stages.programs:
        program, schedules = binding.programs.pop("data"), binding.schedules.pop("data")
        binding.prologue = Prologue(program, schedules, binding.kernels.pop("data"))


def _state(host: Host, structure: Program, rank: int, device: torch.device) -> PartState:
    parts = host.partitions
    part = host.part_on(rank, device)
    return PartState(
        part,
        structure.spaces.copy(),
        {"N": part.node_ids.numel(), "E": part.edge_ids.numel()},
        {"N": parts.num_nodes, "E": parts.num_edges},
        {"N": part.node_ids, "E": part.edge_ids},
        host.assignment_on(device),
        host.known.setdefault((rank, device), KnownColumns()),
    )


def cut_inputs(
    program: Program, values: Values, order: RowOrder, constants: Mapping[str, Tensor]
) -> list[dict[Input, Tensor]]:
    """Each hosted part's rows of the program's arguments, constants and row anchors."""
    cuts: list[dict[Input, Tensor]] = [{} for _ in order.states]
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        if entry.kind == "arg":
            type_ = node.meta["type"]
            pieces = _cut_argument(values[entry], type_, order)
            if not (type_.dtype.is_floating_point and type_.spaces):  # others may wait in a tier
                pieces = [piece.to(s.device) for piece, s in zip(pieces, order.states, strict=True)]
        elif entry.kind == "constant":
            pieces = [constants[entry.name]] * len(order.states)
        elif entry.kind == "rows":
            pieces = [torch.empty(s.local[entry.name], dtype=torch.uint8, device=s.device) for s in order.states]
        else:
            continue
        for cut, piece in zip(cuts, pieces, strict=True):
            cut[entry] = piece
    return cuts


def _cut_argument(value: Tensor | None, type_: ValueType, order: RowOrder) -> list[Tensor]:
    is_edge_index = (
        len(type_.dims) == 2 and type_.dims[0] == 2 and type_.spaces == ("E",) and type_.dtype == torch.int64
    )
    if value is None or is_edge_index:
        return [s.part.edge_index for s in order.states]
    return order.cut(value.detach(), type_)


def _schedule(
    compiler, host: Host, stage: str, program: Program, values: Values, constants, binding: Binding, prefetch: int
) -> None:
    """Map the program's columns, partition it and build every hosted part's schedule."""
    states = binding.order.states
    device = states[0].device
    cuts = cut_inputs(program, values, binding.order, constants)
    remote = _map_columns(compiler, host, program, binding, cuts, binding.placing)
    program = compiler.narrow(program, remote, device)
    for space in program.spaces:
        if space.kind == "reach":
            run_parts({s.rank: s.add_reach_keys(space) for s in states}, host.transport)
    homes = [{**{Input("bound", n): v for n, v in b.items()}, **c} for b, c in zip(binding.bound, cuts, strict=True)]
    placed = place(compiler, host.transport, program, remote, states, homes, binding.placing)
    if placed is not program:
        program = placed
        for bound, made in zip(binding.bound, binding.placing.values, strict=True):
            bound.update(made)
        remote = _map_columns(compiler, host, program, binding, cuts, binding.placing)
    binding.remote[stage], binding.placing.programs[stage] = remote, program
    choices = binding.placing.choices[stage]
    partitioned = compiler.partition(program, remote, states[0].columns, choices, device)
    for state in states:
        state.spaces = partitioned.spaces.copy()
        binding.placing.enter_spaces(state)
        for space in partitioned.spaces:
            if space.kind == "reach":
                state.add_reach(space)
    binding.programs[stage] = partitioned
    kernels = compiler.kernels(partitioned, device)
    run_parts({s.rank: check_sizes(s, bool(kernels)) for s in states}, host.transport)
    binding.kernels[stage] = kernels
    binding.schedules[stage] = [
        compiler.schedule(partitioned, s.rank, s.part.num_parts, s.columns, prefetch) for s in states
    ]
    check_planned(partitioned, binding.schedules[stage], binding.placing.choices[stage])
    run_parts({s.rank: check_messages(s) for s in binding.schedules[stage]}, host.transport)


def _map_columns(
    compiler, host: Host, program: Program, made: Structure | Binding, cuts, placing: Placing
) -> frozenset[str]:
    """Map the program's columns on every hosted part; the names of those that reach other parts."""
    states = made.order.states
    for state in states:
        state.spaces = program.spaces.copy()
        placing.enter_spaces(state)
    wanted: list[tuple[fx.Node, str | int]] = compiler.columns(program)
    entries = dict(zip(program.placeholders, program.inputs, strict=True))

    def map_all(state: PartState, bound: Mapping[str, Tensor], cut: Mapping[Input, Tensor]):
        for column, target in wanted:
            if (column.name, target) in state.columns:
                continue
            entry = entries[column]
            ids = bound[entry.name] if entry.kind == "bound" else cut[entry]
            found = yield from state.map_column(ids, target, location(column), state.owners.get(entry.name))
            state.columns[column.name, target] = found

    works = {s.rank: map_all(s, bound, cut) for s, bound, cut in zip(states, made.bound, cuts, strict=True)}
    run_parts(works, host.transport)
    return frozenset(c.name for c, t in wanted if states[0].columns[c.name, t].remote)


def check_sizes(state: PartState, has_kernels: bool) -> Work:
    """PartitionError, on every part, where kernels cannot number the rows of one."""
    sizes = state.local_sizes()
    name = max(sizes, key=lambda space: sizes[space])
    problem = None
    if has_kernels and sizes[name] > MOST_ROWS:
        parts = state.part.num_parts * -(-sizes[name] // MOST_ROWS)
        problem = PartitionError(
            f"part {state.rank} holds {sizes[name]} rows of {name}: kernels number the rows of a part in 32 bits, at "
            f"most {MOST_ROWS}; partition into at least {parts} parts, or use backend='reference'"
        )
    for found in (yield AllGather(problem)):
        if found:
            raise found
