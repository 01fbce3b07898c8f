"""CompiledModule: what `sarc.compile` returns."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sarc.errors import GraphError, OptionError, PartitionError, SarcError, UnsupportedModelError
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.print import format_program
from sarc.ir.program import Input
from sarc.ir.schedule import Schedule
from sarc.partition.layout import Partitions
from sarc.partition.methods import partition
from sarc.runtime.agreement import Agreement, Note, plain_attributes, problem_note
from sarc.runtime.collectives import run_collective
from sarc.runtime.compare_plain import Comparison, Difference, whole_graph_call
from sarc.runtime.disk_tier import DiskTier
from sarc.runtime.host import Host, host_alone, host_together, is_distributed
from sarc.runtime.host_tier import HostTier
from sarc.runtime.memory import Pool
from sarc.runtime.plan import Plan, make_plan
from sarc.runtime.profile import current_profile
from sarc.runtime.step import Step
from sarc.runtime.variants import Compiler, Variant, Variants

KERNEL_TARGETS = ("cpp", "cuda")


class CompiledModule(nn.Module):
    """A model compiled over partitions; shares the model's parameters, buffers and submodules.

    Made by `sarc.compile`. `state_dict()` has the model's own keys. `step` and `seed` (readable and settable) key the
    random draws: `step` counts the calls that drew. Copying and pickling keep the model, the partitions and these two;
    programs are made again at the next call.
    """

    def __init__(
        self,
        model: nn.Module,
        partitions,
        compiler: Compiler,
        *,
        spaces,
        prefetch: int,
        seed: int | None,
        verify: bool = False,
        memory_budget: int | None = None,
        offload_dir: str | None = None,
        offload_host: bool = False,
    ):
        super().__init__()
        # The same dictionaries, not copies: parameters(), state_dict(), to() and train() act on the model itself.
        for slot in ("_parameters", "_buffers", "_modules"):
            object.__setattr__(self, slot, getattr(model, slot))
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "training", model.training)
        self._compiler, self._spaces, self._given = compiler, spaces, partitions
        self._last: Variant | None = None
        self._host: Host | None = None
        self._calls = 0
        self._offload_dir = offload_dir  # None: in memory
        self._tier = HostTier() if offload_host else None
        # Where memory is the objective, it is others' between passes; fresh pages are slow, so elsewhere it is kept.
        wants_room = compiler.objective == "memory" or memory_budget not in (None, sys.maxsize)
        self._variants = Variants(compiler, prefetch, memory_budget, wants_room)
        self._pool = Pool(None if offload_dir is None else DiskTier(offload_dir), keeps=not wants_room)
        # One comparison with the plain module for each variant, by its number; None: not asked for.
        self._comparisons: dict[int, Comparison] | None = {} if verify else None
        self.step = 0
        self.seed = torch.initial_seed() if seed is None else seed
        if verify and is_distributed() and dist.get_world_size() > 1:
            raise OptionError(
                f"verify=True runs the plain module on whole-graph tensors, which a rank does not hold: expected one "
                f"process, got {dist.get_world_size()}; verify once without torchrun, the numbers do not depend on P"
            )
        if is_distributed() and (isinstance(partitions, Partitions) or dist.get_world_size() > 1):
            host, self.seed = host_together(model, partitions, self.seed, not wants_room)
            self._use(host)
        elif isinstance(partitions, Partitions):
            self._use(host_alone(partitions))

    def _use(self, host: Host) -> None:
        self._host = host
        if self._tier is not None:
            self._tier.alone = len(host.partitions.parts) == 1
        self._agreement = Agreement(host.transport)

    # --- calls

    def forward(self, *args, **kwargs):
        """The model's forward over the partitions (see `sarc.compile`)."""
        _refuse_ddp()
        if self._host is None:
            self._use(host_alone(self._cut(args, kwargs)))
        call, note, problem, bound, has_data = None, None, None, -1, False
        try:
            call = self._compiler.take_apart(self.model, args, kwargs, self._placed.partitions.graph_kind)
            self._compiler.check_arguments(self.model, call, self._placed.rows, self._spaces, self._tier is not None)
            note = self._note(call)
            bound, has_data = self._bound(call, note)
        except (SarcError, TypeError) as error:
            problem, note = error, problem_note(error)
        draws = (signed(self.seed), self.step)
        settled, is_bound, has_data = self._agreement.settle(
            note, problem, bound, has_data, draws, partial(self._decide, call)
        )
        if not is_bound:  # else it is the graph that was checked then
            self._compiler.check_graph(call, settled.kinds, self._placed.rows["E"], self._placed.edge_index)
        arguments, values = self._arguments(call, settled.kinds)
        device = self._device(call)
        variant = self._variants.get(self.model, self._placed, call, settled, arguments, values, device, is_bound)
        self._last = variant
        if self._comparisons is None or variant.number in self._comparisons:
            return self._run(variant, values, draws, has_data)
        return self._compare(variant, call, values, draws, has_data, whole_graph_call(args, kwargs))

    @property
    def _placed(self) -> Host:
        """The partitions at hand; known from the first call on."""
        assert self._host is not None
        return self._host

    def _cut(self, args, kwargs) -> Partitions:
        """Partition the graph of the first call."""
        given = self._given
        graph, nodes = self._compiler.find_graph(args, kwargs)
        if isinstance(given, Tensor):
            return partition(graph, num_nodes=given.numel() if nodes is None else nodes, assignment=given)
        return partition(graph, num_nodes=nodes, num_parts=given)

    def _note(self, call) -> Note:
        """This rank's account of a call."""
        rows, named = self._placed.rows, self._spaces
        leaves, wrt = [], []
        for leaf in call.leaves:
            shape = (None, None) if leaf.value is None else (tuple(leaf.value.shape), leaf.value.dtype)
            leaves.append((leaf.name, shape, tuple(self._compiler.candidates(leaf, rows, named))))
        if torch.is_grad_enabled():
            wrt += [("param", n) for n, p in self.model.named_parameters() if p.requires_grad]
            wrt += [("arg", x.name) for x in call.leaves if x.value is not None and x.value.requires_grad]
        device = self._device(call).type
        cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        header = (
            ("the device", device),
            ("the arguments", str(call.static)),
            ("training mode", str(self.training)),
            ("gradient mode", str(torch.is_grad_enabled())),
            ("autocast", str(cast)),
            ("the parameters", str([(n, tuple(p.shape), p.dtype) for n, p in self.model.named_parameters()])),
            ("the buffers", str([(n, tuple(b.shape), b.dtype) for n, b in self.model.named_buffers()])),
            ("a plain attribute of a submodule (by digest)", plain_attributes(self.model)),
        )
        return Note(None, header, tuple(leaves), tuple(wrt))

    def _device(self, call) -> torch.device:
        """Where the model and all tensors of a call are; with a tier, where the model is."""
        values = [leaf.value for leaf in call.leaves if leaf.value is not None]
        own = [*self.model.parameters(), *self.model.buffers()]
        found = [*values, *own] if self._tier is None else [*own, *values]
        return found[0].device if found else torch.device("cpu")

    def _bound(self, call, note: Note) -> tuple[int, bool]:
        """Number of the variant that this call will use if all goes as the last time, when it is bound already, and
        whether what it made of data is of this call's."""
        settled = self._agreement.guess(note)
        if settled is None:
            return -1, False
        arguments, values = self._arguments(call, settled.kinds)
        variant = self._variants.find(settled, arguments)
        if variant is None or not variant.is_bound(values):
            return -1, False
        return variant.number, variant.has_data(values)

    def _decide(self, call, notes: list[Note]) -> tuple[str, ...]:
        """Whose rows each leaf holds, from all ranks' notes."""
        names = [[name for name, _, _ in note.leaves] for note in notes]
        for rank, theirs in enumerate(names):
            if theirs != names[0]:
                raise GraphError(
                    f"rank {rank} passes tensors {theirs}, rank 0 {names[0]}: expected the same on every rank"
                )
        kinds = []
        for k, leaf in enumerate(call.leaves):
            kinds.append(self._compiler.choose(leaf, [note.leaves[k][2] for note in notes], self._placed.rows))
        shapes = [{name: shape for name, shape, _ in note.leaves} for note in notes]
        self._compiler.check_ranks(shapes, dict(zip(names[0], kinds, strict=True)))
        return tuple(kinds)

    def _arguments(self, call, kinds) -> tuple[tuple, dict[Input, Tensor | None]]:
        arguments = tuple(self._compiler.argument(leaf, kind) for leaf, kind in zip(call.leaves, kinds, strict=True))
        return arguments, {Input("arg", a.path): leaf.value for a, leaf in zip(arguments, call.leaves, strict=True)}

    def _compare(self, variant: Variant, call, values, draws: tuple[int, int], has_data: bool, plain_call):
        """A call compared with the plain module's; its gradients follow in the backward pass."""
        assert self._comparisons is not None
        mode = f"{'train' if self.training else 'eval'} mode"
        copied = self._compiler.copy_module(self.model)
        comparison = Comparison(copied, mode, max(self._placed.rows.values()))
        self._comparisons[variant.number] = comparison
        out = self._run(variant, values, draws, has_data, comparison.gradients)
        comparison.run(self, plain_call, {leaf.name: leaf.value for leaf in call.leaves}, out)
        return out

    def _run(
        self, variant: Variant, values: dict[Input, Tensor | None], draws: tuple[int, int], has_data: bool, check=None
    ):
        self._calls += 1
        if any(e.kind == "rng" for e in variant.stages["step"].inputs):
            self.step += 1
        step = Step(
            variant.stages,
            variant.bound,
            variant.wrt,
            self._placed.transport,
            self._calls,
            torch.tensor(draws),
            values,
            {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())},
            self._pool,
            current_profile(),
            check,
            self._tier,
        )
        results = step.run(has_data)
        return self._compiler.fill_results(
            variant.stages.captured.structure, [results[str(k)] for k in range(len(results))]
        )

    def release_memory(self) -> int:
        """Give memory that is kept for the next call back to the system; returns its bytes.

        Large tensors of a call are put into memory of earlier ones, since fresh memory is slow. What is in use is not
        touched. Call it before measuring, or before something else needs the memory.
        """
        freed = self._pool.free_bytes
        self._pool.release()
        near = None if self._host is None else self._host.transport.near
        if near is not None:
            freed += near.blocks.free_bytes
            near.blocks.release()
        return freed

    # --- the model's own face

    def train(self, mode: bool = True) -> CompiledModule:
        self.model.train(mode)
        object.__setattr__(self, "training", mode)
        return self

    def eval(self) -> CompiledModule:
        return self.train(False)

    def state_dict(self, *args, **kwargs):
        """The model's own."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        """The model's own."""
        return self.model.load_state_dict(*args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("model")
            if model is None or name.startswith("__"):
                raise
            return getattr(model, name)

    def __reduce__(self):
        held = self._given if self._host is None else self._placed.partitions
        settings = {"prefetch": self._variants.prefetch, "memory_budget": self._variants.memory_budget,
                    "offload_dir": self._offload_dir, "offload_host": self._tier is not None}  # fmt: skip
        return _restore, (self.model, held, self._compiler, self._spaces, settings, self.seed, self.step)

    # --- looking inside

    def traffic(self) -> dict[str, int]:
        """Bytes this process has sent since compile: "sent_bytes" in messages between parts, "all_reduce_bytes"."""
        if self._host is None:
            return {"sent_bytes": 0, "all_reduce_bytes": 0, "messages": 0}
        transport = self._host.transport
        return {
            "sent_bytes": transport.sent_bytes,
            "all_reduce_bytes": transport.all_reduce_bytes,
            "messages": transport.sent_messages,
        }

    def program(self, stage: str = "forward") -> str:
        """Text of the last call's program: "raised", "structure", "step", "joint", "forward", "backward", or
        "partitioned forward", "partitioned backward"."""
        variant = self._called()
        if stage == "partitioned data" and variant.bound.prologue is not None:
            return format_program(variant.bound.prologue.program)
        if stage.startswith("partitioned "):
            return format_program(variant.bound.programs[stage.removeprefix("partitioned ")])
        if stage not in variant.stages.programs:
            known = [*variant.stages.programs, *(f"partitioned {s}" for s in variant.bound.programs)]
            raise KeyError(f"no stage {stage!r}: this call has {', '.join(known)}")
        return format_program(variant.stages[stage])

    def schedule(self, rank: int, stage: str = "forward") -> Schedule:
        """The instructions of one hosted part for the last call's program."""
        for schedule in self._called().bound.schedules[stage]:
            if schedule.rank == rank:
                return schedule
        raise PartitionError(f"part {rank} is not run by this process")

    def plan(self) -> Plan:
        """What the last call exchanges, stores, keeps and computes; prints as a table."""
        return make_plan(self._called().bound, self._compiler.cost, self._compiler.runs)

    def kernels(self, target: str = "cpp") -> str:
        """The generated code of the last call's edge programs, for "cpp" or "cuda"; without compiler or GPU too."""
        texts = []
        for stage, edges, found in self.kernel_sources(target):
            if isinstance(found, str):
                texts.append(f"// {stage} @{edges.name} has no kernel: {found}\n")
            else:
                texts += [f"// {stage} @{edges.name}, traversal {k}\n{text}" for k, text in enumerate(found)]
        return "\n".join(texts)

    def kernel_sources(self, target: str = "cpp") -> list[tuple[str, EdgeProgram, list[str] | str]]:
        """(stage, edge program, its translation units or why it has none) of the last call's edge programs."""
        if target not in KERNEL_TARGETS:
            raise OptionError(f"target: expected one of {', '.join(map(repr, KERNEL_TARGETS))}, got {target!r}")
        bound = self._called().bound
        columns, placing = bound.order.states[0].columns, bound.placing
        return [
            (stage, edges, found)
            for stage, remote in bound.remote.items()
            for edges, found in self._compiler.sources(
                placing.programs[stage], remote, columns, placing.choices[stage], target
            )
        ]

    def differences(self) -> list[Difference]:
        """What `verify=True` compared so far: the largest difference of every result, buffer and gradient."""
        return [d for comparison in (self._comparisons or {}).values() for d in comparison.differences]

    def _called(self) -> Variant:
        if self._last is None:
            raise RuntimeError("nothing has been compiled yet: call the module once, then look inside")
        return self._last

    def gather(self, rows: Tensor, dst: int = 0) -> Tensor | None:
        """Whole-graph rows, in the graph's order, of a tensor [owned nodes, ...]; None on ranks other than `dst`.

        Under torchrun every rank calls it.
        """
        if self._host is None or self._host.whole:
            return rows
        partitions = self._host.partitions
        ids = torch.cat([partitions.parts[p].node_ids for p in sorted(partitions.parts)])
        everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == dst else None
        run_collective("gather", partial(dist.gather_object, (ids, rows.detach().cpu()), everyone, dst=dst))
        if everyone is None:
            return None
        whole = rows.new_empty((partitions.num_nodes, *rows.shape[1:]))
        for theirs, values in everyone:
            whole[theirs.to(whole.device)] = values.to(whole.device)
        return whole


def _restore(model, partitions, compiler, spaces, settings: dict[str, Any], seed: int, step: int) -> CompiledModule:
    """A compiled module from its pickle; under torchrun every rank calls it, as it calls `compile`."""
    compiled = CompiledModule(model, partitions, compiler, spaces=spaces, seed=seed, **settings)
    compiled.step = step
    return compiled


def _refuse_ddp() -> None:
    parallel = nn.parallel.DistributedDataParallel
    if getattr(parallel, "_get_active_ddp_module", lambda: None)() is not None:
        raise UnsupportedModelError(
            "the compiled module is wrapped in DistributedDataParallel, which would divide its gradients by the "
            "world size: they arrive summed over the ranks already; call the compiled module itself"
        )


def signed(seed: int) -> int:
    """A 64-bit seed as int64."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed
