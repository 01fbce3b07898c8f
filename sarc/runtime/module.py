"""CompiledModule: what `sarc.compile` returns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.fx as fx
from torch import Tensor, nn

from sarc.errors import GraphError, PartitionError, SarcError, UnsupportedModelError
from sarc.frontends.capture import fill_results
from sarc.frontends.inputs import Call, argument, candidates, choose, take_apart
from sarc.ir.print import format_program
from sarc.ir.program import Input, Program
from sarc.ir.schedule import Schedule
from sarc.ir.space import ValueType
from sarc.partition.layout import Partitions
from sarc.partition.methods import partition
from sarc.partition.shard import ranks_of_process
from sarc.runtime.bind import run_structure
from sarc.runtime.part_state import PartState
from sarc.runtime.rows import RowOrder
from sarc.runtime.step import Step, run_program
from sarc.runtime.transport import Transport, run_parts


class Compiler(Protocol):
    """The passes a compiled module calls for (`sarc.compiler.Pipeline`)."""

    def front(self, module, arguments, call, answers): ...

    def back(self, stages, wrt): ...

    def partition(self, program: Program, remote: frozenset[str]) -> Program: ...

    def columns(self, program: Program) -> list[tuple[fx.Node, str | None]]: ...

    def schedule(self, program, rank, num_parts, columns, prefetch) -> Schedule: ...


@dataclass
class Variant:
    """One capture of the model: a mode, shapes, dtypes, and which gradients are asked for."""

    stages: Any
    arguments: tuple
    wrt: frozenset[Input]
    binding: Binding | None = None


@dataclass
class Binding:
    """A variant bound to the graph: every hosted part's bound values, column maps and schedules.

    Attributes:
        structural: the structural input tensors it was made from (kept, so that their storage is not reused).
        bound: bound values of each hosted part, by name.
        programs: partitioned programs by stage.
        schedules: schedule of each hosted part, by stage.
    """

    structural: tuple[Tensor, ...]
    versions: tuple[int, ...]
    order: RowOrder
    bound: list[dict[str, Tensor]]
    programs: dict[str, Program] = field(default_factory=dict)
    schedules: dict[str, list[Schedule]] = field(default_factory=dict)


class CompiledModule(nn.Module):
    """A model compiled over partitions; shares the model's parameters, buffers and submodules.

    Made by `sarc.compile`. `state_dict()` has the model's own keys. `step` and `seed` (readable and settable) key the
    random draws: `step` counts the calls that drew.
    """

    def __init__(self, model: nn.Module, partitions, compiler: Compiler, *, spaces, prefetch: int, seed: int | None):
        super().__init__()
        # The same dictionaries, not copies: parameters(), state_dict(), to() and train() act on the model itself.
        for slot in ("_parameters", "_buffers", "_modules"):
            object.__setattr__(self, slot, getattr(model, slot))
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "training", model.training)
        self._compiler, self._spaces, self._prefetch = compiler, spaces, prefetch
        self._given = partitions
        self._partitions: Partitions | None = None
        self._variants: dict[object, Variant] = {}
        self._last: Variant | None = None
        self.step = 0
        self._distributed = dist.is_available() and dist.is_initialized()
        if not self._distributed and isinstance(partitions, Partitions) and not partitions.is_whole:
            raise PartitionError(
                f"{len(partitions.parts)} of {partitions.num_parts} parts are held by this process and there is no "
                f"process group: start under torchrun and call sarc.init_distributed() first, or load all parts"
            )
        self.seed = torch.initial_seed() if seed is None else seed
        if self._distributed:
            self._agree_at_compile()
        if isinstance(partitions, Partitions):
            self._use(partitions)

    # --- compile time

    def _agree_at_compile(self) -> None:
        """Rank 0's parameters, buffers and seed become everyone's."""
        box = [self.seed]
        dist.broadcast_object_list(box, src=0)
        self.seed = box[0]
        with torch.no_grad():
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                if isinstance(tensor, nn.parameter.UninitializedParameter):
                    continue
                dist.broadcast(tensor.data, src=0)

    def _use(self, partitions: Partitions) -> None:
        hosted = sorted(partitions.parts)
        process_of = None
        if self._distributed:
            process_of = self._processes(partitions)
            if partitions.is_whole and dist.get_world_size() > 1:
                raise PartitionError(
                    f"every rank holds all {partitions.num_parts} parts: expected each rank's own; use "
                    f"shard = partitions.shard(rank, x=x, ...) or sarc.load_shard(folder), and shard.partitions"
                )
        self._partitions = partitions
        self._transport = Transport(partitions.num_parts, hosted, process_of)
        self._whole = partitions.is_whole and not (self._distributed and dist.get_world_size() > 1)
        missing = [p.edge_index[1].unique().numel() < p.node_ids.numel() for p in partitions.parts.values()]
        self._zero_in_degree = any(self._gather_objects(any(missing)))

    def _processes(self, partitions: Partitions) -> list[int]:
        """The process of every part; checks that each part is run once and that all ranks hold one partition."""
        everyone = self._gather_objects((sorted(partitions.parts), partitions.num_parts, partitions.fingerprint))
        owner: dict[int, int] = {}
        for rank, (held, num_parts, fingerprint) in enumerate(everyone):
            if num_parts != partitions.num_parts or fingerprint != everyone[0][2]:
                raise PartitionError(
                    f"rank {rank} holds a partition of {num_parts} parts ({fingerprint[:12]}), this rank one of "
                    f"{partitions.num_parts} ({partitions.fingerprint[:12]}): load the same partition on every rank"
                )
            for part in held:
                owner.setdefault(part, rank)
        if len(everyone) > 1 and all(len(held) == partitions.num_parts for held, _, _ in everyone):
            return [0] * partitions.num_parts
        if len(owner) != partitions.num_parts or sum(len(h) for h, _, _ in everyone) != partitions.num_parts:
            world = len(everyone)
            raise PartitionError(
                f"expected each of the {partitions.num_parts} parts on one of {world} ranks, got {[h for h, _, _ in everyone]}: "
                f"rank r of {world} runs parts {[list(ranks_of_process(partitions.num_parts, r, world)) for r in range(world)] if world <= partitions.num_parts else 'unavailable: more ranks than parts'}"
            )
        return [owner[part] for part in range(partitions.num_parts)]

    def _gather_objects(self, value: object) -> list[Any]:
        if not self._distributed:
            return [value]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, value)
        return everyone

    # --- calls

    def forward(self, *args, **kwargs):
        """The model's forward over the partitions (see `sarc.compile`)."""
        self._refuse_ddp()
        call, rows, problem = None, [], None
        try:
            if self._partitions is None:
                self._partition_by(args, kwargs)
            call = take_apart(self.model, args, kwargs, self._partitions.graph_kind)
            counts = {"N": self._held("node_ids"), "E": self._held("edge_ids")}
            rows = [candidates(leaf, counts, self._spaces) for leaf in call.leaves]
        except (SarcError, TypeError) as error:
            problem = error
        kinds = self._agree_on_call(call, rows, problem)
        self._check_graph(call, kinds)
        arguments = tuple(argument(leaf, kind) for leaf, kind in zip(call.leaves, kinds, strict=True))
        self._check_ranges(call, kinds)
        variant = self._variant(call, arguments)
        self._last = variant
        return self._run(variant, call)

    def _held(self, ids: str) -> int:
        return sum(getattr(part, ids).numel() for part in self._partitions.parts.values())

    def _refuse_ddp(self) -> None:
        parallel = nn.parallel.DistributedDataParallel
        if getattr(parallel, "_get_active_ddp_module", lambda: None)() is not None:
            raise UnsupportedModelError(
                "the compiled module is wrapped in DistributedDataParallel, which would divide its gradients by the "
                "world size: they arrive summed over the ranks already; call the compiled module itself"
            )

    def _partition_by(self, args, kwargs) -> None:
        """Cut the graph of the first call."""
        given = self._given
        if self._distributed and dist.get_world_size() > 1:
            raise PartitionError(
                "under torchrun expected the partitions of this rank's shard: parts = sarc.partition(...); "
                "shard = parts.shard(rank, x=x, ...); sarc.compile(model, shard.partitions)"
            )
        graph, nodes = _find_graph(args, kwargs)
        if isinstance(given, Tensor):
            if nodes is None:
                nodes = given.numel()
            made = partition(graph, num_nodes=nodes, assignment=given)
        else:
            made = partition(graph, num_nodes=nodes, num_parts=given)
        self._use(made)

    def _agree_on_call(self, call: Call | None, rows, problem) -> list[str]:
        """The row interpretation of every leaf; an error of one rank is raised on all of them."""
        mode = (self.training, torch.is_grad_enabled())
        header = (None, mode) if call is None else (call.static, mode)
        note = (str(problem) if problem else "", type(problem), header, rows)
        everyone = self._gather_objects(note)
        if problem is not None:
            raise problem
        for rank, (text, kind, theirs, _) in enumerate(everyone):
            if text:
                raise kind(f"rank {rank}: {text}") if issubclass(kind, SarcError) else GraphError(f"rank {rank}: {text}")
            if theirs != header:
                raise GraphError(
                    f"rank {rank} calls the model differently from this rank: (arguments, (training, grad mode)) are "
                    f"{theirs} there and {header} here; every rank must make the same calls in the same order"
                )
        counts = {"N": self._held("node_ids"), "E": self._held("edge_ids")}
        return [choose(leaf, [e[3][k] for e in everyone], counts) for k, leaf in enumerate(call.leaves)]

    def _check_graph(self, call: Call, kinds: Sequence[str]) -> None:
        """The graph of the call must be the one that was partitioned."""
        for leaf, kind in zip(call.leaves, kinds, strict=True):
            if leaf.value is None:
                continue
            if leaf.value.dim() == 2 and leaf.value.shape[1] == 2 and leaf.value.shape[0] == self._held("edge_ids"):
                if not leaf.value.dtype.is_floating_point and leaf.value.shape[0] != 2 and kind == "E" and "index" in leaf.name:
                    raise GraphError(
                        f"argument {leaf.name} has shape {list(leaf.value.shape)}: expected edge_index of shape [2, E]; "
                        f"pass {leaf.name}.t()"
                    )
            if kind != "graph edges" or not self._whole:
                continue
            known = self._partitions.edge_index
            if leaf.value is known or leaf.value.data_ptr() == known.data_ptr():
                continue
            if not torch.equal(leaf.value.to(known.device, torch.int64), known):
                raise GraphError(
                    f"argument {leaf.name}: the graph has changed since it was partitioned (same number of edges, other "
                    f"edges); partition the new graph and compile again"
                )

    def _check_ranges(self, call: Call, kinds: Sequence[str]) -> None:
        for leaf, kind in zip(call.leaves, kinds, strict=True):
            if kind or leaf.value is None or leaf.value.dim() != 2 or leaf.value.shape[0] != 2:
                continue
            if not leaf.value.dtype.is_floating_point and leaf.value.dtype != torch.bool:
                raise GraphError(
                    f"argument {leaf.name} looks like an edge_index of {leaf.value.shape[1]} edges, but the partitioned "
                    f"graph has {self._held('edge_ids')} (of this process): pass the graph that was partitioned, or name "
                    f"the argument in spaces= if it is something else"
                )

    def _variant(self, call: Call, arguments: tuple) -> Variant:
        wrt = self._differentiable(call, arguments)
        key = (
            call.static,
            tuple((a.path, a.type) for a in arguments),
            wrt,
            _fingerprint(self.model),
            tuple((n, tuple(p.shape), p.dtype) for n, p in self.model.named_parameters()),
            tuple((n, tuple(b.shape), b.dtype) for n, b in self.model.named_buffers()),
            torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        )
        found = self._variants.get(key)
        if found is not None and found.stages.captured_answers and not self._is_bound(found, call):
            # Numbers taken from structural tensors were baked in: ask again.
            found = None
        if found is None:
            found = self._variants[key] = self._compile(call, arguments, wrt)
        return found

    def _differentiable(self, call: Call, arguments: tuple) -> frozenset[Input]:
        if not torch.is_grad_enabled():
            return frozenset()
        wrt = {Input("param", n) for n, p in self.model.named_parameters() if p.requires_grad}
        for leaf, a in zip(call.leaves, arguments, strict=True):
            if leaf.value is not None and leaf.value.requires_grad:
                wrt.add(Input("arg", a.path))
        if self._distributed:
            everyone = self._gather_objects(sorted((i.kind, i.name) for i in wrt))
            wrt = {Input(kind, name) for each in everyone for kind, name in each}
        return frozenset(wrt)

    def _compile(self, call: Call, arguments: tuple, wrt: frozenset[Input]) -> Variant:
        answers: list[object] = []
        while True:
            stages = self._compiler.front(self.model, arguments, call.rebuild(self._zero_in_degree), answers)
            if not stages.captured.question:
                break
            answers.append(self._answer(stages, call, arguments))
        stages = self._compiler.back(stages, wrt & frozenset(stages["step"].inputs))
        stages.captured_answers.extend(answers)
        return Variant(stages, arguments, wrt)

    def _answer(self, stages, call: Call, arguments: tuple) -> object:
        """The value of a number that the model takes from a tensor, when it depends on structure alone."""
        step = stages["step"]
        result = step.returned[0]
        if result.op != "placeholder" or step.inputs[step.placeholders.index(result)].kind == "param":
            raise UnsupportedModelError(
                f"{stages.captured.question}: a Python number is taken from a tensor that depends on features or "
                f"parameters (int(), float(), bool(), .item() or an if on a tensor): data-dependent control flow cannot "
                f"be compiled; use torch.where, or compute the number outside the model and pass it as an argument"
            )
        entry = step.inputs[step.placeholders.index(result)]
        variant = Variant(stages, arguments, frozenset())
        binding = self._bind(variant, call)
        if entry.kind == "bound":
            value = binding.bound[0][entry.name]
        else:
            value = self._values(call, arguments)[entry]
        if value.numel() != 1:
            return value.tolist()
        return value.item()

    # --- binding

    def _values(self, call: Call, arguments: tuple) -> dict[Input, Tensor | None]:
        return {Input("arg", a.path): leaf.value for a, leaf in zip(arguments, call.leaves, strict=True)}

    def _structural(self, variant: Variant, call: Call) -> tuple[Tensor, ...]:
        values = self._values(call, variant.arguments)
        wanted = [e for e in variant.stages["structure"].inputs if e.kind == "arg"]
        wanted += [e for e in variant.stages["step"].inputs if e.kind == "arg" and e not in wanted]
        found = [values[e] for e in wanted]
        return tuple(v for v in found if v is not None and not v.dtype.is_floating_point)

    def _is_bound(self, variant: Variant, call: Call) -> bool:
        binding = variant.binding
        same = binding is not None
        if same:
            now = self._structural(variant, call)
            same = len(now) == len(binding.structural) and all(
                a.data_ptr() == b.data_ptr() and a.shape == b.shape and a._version == v
                for a, b, v in zip(now, binding.structural, binding.versions, strict=True)
            )
        return all(self._gather_objects(same))

    def _bind(self, variant: Variant, call: Call) -> Binding:
        stages = variant.stages
        structure: Program = stages["structure"]
        parts = self._partitions
        states = [self._state(structure, rank) for rank in sorted(parts.parts)]
        order = RowOrder(self._whole, states)
        values = self._cut_values(structure, call, variant.arguments, order, stages)
        works = {s.rank: run_structure(structure, s, values[k]) for k, s in enumerate(states)}
        bound = run_parts(works, self._transport)
        structural = self._structural(variant, call)
        binding = Binding(structural, tuple(t._version for t in structural), order, [bound[s.rank] for s in states])
        for stage in ("forward", "backward"):
            if stage in stages.programs:
                self._schedule(stage, stages[stage], variant, call, binding)
        return binding

    def _state(self, structure: Program, rank: int) -> PartState:
        parts = self._partitions
        part = parts.part(rank)
        return PartState(
            part,
            structure.spaces.copy(),
            {"N": part.node_ids.numel(), "E": part.edge_ids.numel()},
            {"N": parts.num_nodes, "E": parts.num_edges},
            {"N": part.node_ids, "E": part.edge_ids},
            parts.assignment if self._whole else None,
        )

    def _cut_values(self, program: Program, call: Call, arguments: tuple, order: RowOrder, stages) -> list[dict]:
        """Each hosted part's rows of the program's arguments, constants and row anchors."""
        values = self._values(call, arguments)
        cuts: list[dict] = [{} for _ in order.states]
        for node, entry in zip(program.placeholders, program.inputs, strict=True):
            if entry.kind == "arg":
                if node.meta["type"].spaces == ("E",) and values[entry] is None:
                    pieces = [s.part.edge_index for s in order.states]
                elif self._is_edges(entry, arguments, call):
                    pieces = [s.part.edge_index for s in order.states]
                else:
                    pieces = order.cut(values[entry].detach(), node.meta["type"])
            elif entry.kind == "constant":
                pieces = [stages.captured.constants[entry.name]] * len(order.states)
            elif entry.kind == "rows":
                pieces = [torch.empty(s.local[entry.name], dtype=torch.uint8) for s in order.states]
            else:
                continue
            for cut_, piece in zip(cuts, pieces, strict=True):
                cut_[entry] = piece
        return cuts

    def _is_edges(self, entry: Input, arguments: tuple, call: Call) -> bool:
        at = [a.path for a in arguments].index(entry.name)
        type_ = arguments[at].type
        return type_ == ValueType((2, *type_.dims[1:]), torch.int64) and type_.spaces == ("E",) and len(type_.dims) == 2

    def _schedule(self, stage: str, program: Program, variant: Variant, call: Call, binding: Binding) -> None:
        """Map the program's columns, partition it and build every hosted part's schedule."""
        order = binding.order
        for state in order.states:
            state.spaces = program.spaces.copy()
        wanted = self._compiler.columns(program)
        entries = dict(zip(program.placeholders, program.inputs, strict=True))
        cuts = self._cut_values(program, call, variant.arguments, order, variant.stages)

        def map_all(state: PartState, k: int):
            for column, target in wanted:
                if (column.name, target) in state.columns:
                    continue
                entry = entries[column]
                ids = binding.bound[k][entry.name] if entry.kind == "bound" else cuts[k][entry]
                where = f"{column.meta['loc']}: " if column.meta.get("loc") else ""
                state.columns[column.name, target] = yield from state.map_column(ids, target, where)

        run_parts({s.rank: map_all(s, k) for k, s in enumerate(order.states)}, self._transport)
        remote = frozenset(c.name for c, t in wanted if order.states[0].columns[c.name, t].remote)
        partitioned = self._compiler.partition(program, remote)
        binding.programs[stage] = partitioned
        binding.schedules[stage] = [
            self._compiler.schedule(partitioned, s.rank, s.part.num_parts, s.columns, self._prefetch)
            for s in order.states
        ]

    # --- running

    def _run(self, variant: Variant, call: Call):
        if not self._is_bound(variant, call):
            variant.binding = self._bind(variant, call)
        stages, binding = variant.stages, variant.binding
        values = self._values(call, variant.arguments)
        state = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        draws = any(e.kind == "rng" for e in stages["step"].inputs)
        rng = torch.tensor([_signed(self.seed), self.step])
        if draws:
            self.step += 1
        plan = Step(variant, self._transport, rng)

        def cut(program: Program) -> list[dict[str, Tensor]]:
            return self._placeholders(program, values, state, binding, variant, rng)

        plan.cut = cut
        forward = binding.programs["forward"]
        results = run_program(plan, forward, binding, values, state)
        outputs = [o for o in forward.outputs if o.kind != "saved"]
        kept = {o.name: r for o, r in zip(outputs, results, strict=True) if o.kind == "result"}
        for output, value in zip(outputs, results, strict=True):
            if output.kind == "buffer":
                buffer = state[output.name]
                if value is not buffer:
                    with torch.no_grad():
                        buffer.copy_(value)
        return fill_results(stages.captured.structure, [kept[str(k)] for k in range(len(kept))])

    def _placeholders(self, program, values, state, binding: Binding, variant: Variant, rng: Tensor):
        """Each hosted part's value of every placeholder but the saved ones and the tangents."""
        order = binding.order
        pieces: list[dict[str, Tensor]] = [{} for _ in order.states]
        for node, entry in zip(program.placeholders, program.inputs, strict=True):
            if entry.kind in ("param", "buffer"):
                each = [state[entry.name].detach()] * len(pieces)
            elif entry.kind == "arg":
                if self._is_edges(entry, variant.arguments, None):
                    each = [s.part.edge_index for s in order.states]
                else:
                    each = order.cut(values[entry].detach(), node.meta["type"])
            elif entry.kind == "bound":
                each = [bound[entry.name] for bound in binding.bound]
            elif entry.kind == "constant":
                each = [variant.stages.captured.constants[entry.name]] * len(pieces)
            elif entry.kind == "rng":
                each = [rng] * len(pieces)
            elif entry.kind == "rows":
                each = [torch.empty(s.local[entry.name], dtype=torch.uint8) for s in order.states]
            else:
                continue
            for piece, value in zip(pieces, each, strict=True):
                piece[node.name] = value
        return pieces

    # --- the model's own face

    def train(self, mode: bool = True) -> CompiledModule:
        self.model.train(mode)
        object.__setattr__(self, "training", mode)
        return self

    def eval(self) -> CompiledModule:
        return self.train(False)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("model")
            if model is None or name.startswith("__"):
                raise
            return getattr(model, name)

    # --- looking inside

    def traffic(self) -> dict[str, int]:
        """Bytes this process has sent since compile: "sent_bytes" in messages between parts, "all_reduce_bytes"."""
        transport = getattr(self, "_transport", None)
        if transport is None:
            return {"sent_bytes": 0, "all_reduce_bytes": 0, "messages": 0}
        return {
            "sent_bytes": transport.sent_bytes,
            "all_reduce_bytes": transport.all_reduce_bytes,
            "messages": transport.sent_messages,
        }

    def program(self, stage: str = "forward") -> str:
        """Text of the last call's program: "raised", "structure", "step", "joint", "forward", "backward", or
        "partitioned forward", "partitioned backward"."""
        variant = self._called()
        if stage.startswith("partitioned "):
            return format_program(variant.binding.programs[stage.removeprefix("partitioned ")])
        if stage not in variant.stages.programs:
            known = [*variant.stages.programs, *(f"partitioned {s}" for s in variant.binding.programs)]
            raise KeyError(f"no stage {stage!r}: this call has {', '.join(known)}")
        return format_program(variant.stages[stage])

    def schedule(self, rank: int, stage: str = "forward") -> Schedule:
        """The instructions of one hosted part for the last call's program."""
        binding = self._called().binding
        for schedule in binding.schedules[stage]:
            if schedule.rank == rank:
                return schedule
        raise PartitionError(f"part {rank} is not run by this process")

    def _called(self) -> Variant:
        if self._last is None or self._last.binding is None:
            raise RuntimeError("nothing has been compiled yet: call the module once, then look inside")
        return self._last

    def gather(self, rows: Tensor, dst: int = 0) -> Tensor | None:
        """Whole-graph rows, in the graph's order, of a tensor [owned nodes, ...]; None on ranks other than `dst`."""
        if self._whole or not self._distributed:
            return rows
        ids = torch.cat([self._partitions.parts[p].node_ids for p in sorted(self._partitions.parts)])
        everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == dst else None
        dist.gather_object((ids, rows.detach()), everyone, dst=dst)
        if everyone is None:
            return None
        whole = rows.new_empty((self._partitions.num_nodes, *rows.shape[1:]))
        for theirs, values in everyone:
            whole[theirs] = values
        return whole


def _signed(seed: int) -> int:
    """A 64-bit seed as int64."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _find_graph(args, kwargs):
    """The graph among a call's arguments, and the number of nodes when a float tensor shows it."""
    values = [*args, *kwargs.values()]
    graph = next((v for v in values if type(v).__module__.startswith("dgl.")), None)
    if graph is not None:
        return graph, None
    for value in values:
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == 2 and not value.is_floating_point():
            nodes = next((v.shape[0] for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.dim()), None)
            return value, nodes
    raise GraphError(
        "no graph among the arguments of the first call: expected an edge_index int64 [2, E] or a DGLGraph; for other "
        "calls partition first: sarc.compile(model, sarc.partition(edge_index, num_nodes, num_parts))"
    )


_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def _fingerprint(model: nn.Module) -> str:
    """Digest of the plain Python attributes of all submodules, which tracing bakes in."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if _is_plain(value):
                digest.update(f"{name}.{key}={value!r};".encode())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(_is_plain(k) and _is_plain(v) for k, v in value.items())

