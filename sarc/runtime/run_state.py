"""RunState: the state of one run of a schedule on one part, and what its instructions look up there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.fx as fx
from torch import Tensor

from sarc.errors import ExchangeError
from sarc.ir import schedule as ins
from sarc.ir.edge_program import ChunkLayout, fetch_layout
from sarc.ir.program import Program
from sarc.ir.space import Rows
from sarc.partition.columns import ColumnMap
from sarc.runtime.arrival import Arrival
from sarc.runtime.host_tier import HostTier
from sarc.runtime.memory import Pool
from sarc.runtime.messages import Handle
from sarc.runtime.part_state import PartState
from sarc.runtime.transport import Transport
from sarc.runtime.whole_exchange import WholeExchange
from sarc.runtime.work import Work


class Kernel(Protocol):
    """A compiled edge program (`sarc.codegen.kernels.CppKernel`)."""

    @property
    def orders(self) -> list[int | None]: ...

    def fits(self, order: int | None, found: Any) -> bool: ...

    def traverse(
        self,
        order: int | None,
        edges: Tensor | None,
        length: int,
        columns: Mapping[int, Tensor],
        rows: int | None,
        device: torch.device | str = "cpu",
    ) -> object: ...

    def launch(
        self,
        traversals: Sequence[object],
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        keys: Tensor,
        fresh: bool,
        empty: Callable[..., Tensor],
    ) -> None: ...

    def workspace(self, edges: int, operands: Sequence[Tensor], results: Sequence[Tensor]) -> int: ...


class Recorder(Protocol):
    """Runs each instruction's step on the executor's behalf, and notes what it likes."""

    def watch(self, run: RunState, place: int, step: Work) -> Work: ...


class RunState:
    """One run of a schedule on one part.

    Args:
        program: the partitioned program the schedule was built from.
        schedule: the part's instructions.
        state: the part's rows and column maps.
        transport: sends and receives.
        values: the part's rows of each input, by placeholder name; emptied as values are freed.
        run: number of the run, common to all parts; messages of different runs never meet.
        kernels: compiled edge programs, by name; the others run in plain torch.
        pool: memory of large results.
        recorder: watches every instruction (`sarc.runtime.profile.Profile`), or None.
        spare: bytes of free memory that the pool may keep in each instruction; empty: as much as it likes.
        tier: where tables wait while other parts run; None: where they are.
    """

    def __init__(
        self,
        program: Program,
        schedule: ins.Schedule,
        state: PartState,
        transport: Transport,
        values: dict[str, Tensor],
        run: int = 0,
        kernels: Mapping[str, Kernel] | None = None,
        pool: Pool | None = None,
        recorder: Recorder | None = None,
        spare: Sequence[int] = (),
        tier: HostTier | None = None,
    ):
        self.kernels = kernels or {}
        self.pool = pool or Pool()
        self.recorder, self.spare, self.tier = recorder, spare, tier
        self.at_home: dict[str, Tensor] = {}  # inputs that wait in the tier, while copies of them are on the device
        self.program, self.schedule, self.state, self.transport = program, schedule, state, transport
        self.env: dict[str, Any] = values
        self.number = run
        self.nodes = {n.name: n for n in program.graph.nodes}
        self.local, self.total = state.sizes_of(program.spaces)
        self.chunks: dict[str, Tensor] = {}
        self.messages: dict[str, Handle] = {}
        self.exchanges: dict[str, tuple[WholeExchange, Arrival]] = {}
        self.narrowed: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.most_chunks = 0
        self.sent: Counter[tuple[str, int]] = Counter()
        self.workspace = 0  # most bytes that the present instruction alone needs
        self._scratch_alive = 0
        self.keys = state.all_keys()
        self.device = state.device

    def _map(self, column: fx.Node, dim) -> ColumnMap:
        if isinstance(dim, Rows) and self.program.spaces[dim.space].kind == "reach":
            return self.state.reach(column.name, self.program.spaces[dim.space].parents[0])
        return self.state.columns[column.name, dim.space if isinstance(dim, Rows) else dim]

    def _remote_map(self, node: fx.Node) -> ColumnMap:
        edges, values, columns = node.args
        ends = [(values[o.value].meta["type"], o.axis) for o in edges.operands if o.column == edges.remote]
        ends += [(r.type, r.axis) for r in edges.results if r.column == edges.remote]
        type_, axis = ends[0]
        space = self.program.spaces[type_.dims[axis].space]
        return self.state.columns[columns[edges.remote].name, space.parents[0] if space.kind == "reach" else space.name]

    def _fetch_layout(self, node: fx.Node) -> ChunkLayout:
        edges, values, _ = node.args
        return fetch_layout(edges, [v.meta["type"] for v in values], self.program.spaces, self.schedule.wire)

    def _allocate(self, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.pool.empty(lengths, dtype, self.device)

    def _new_chunk(self, name: str, nbytes: int) -> Tensor:
        self.chunks[name] = self._allocate((nbytes,), torch.uint8)
        self.most_chunks = max(self.most_chunks, len(self.chunks))
        if len(self.chunks) > self.schedule.chunk_limit:
            raise ExchangeError(
                f"part {self.state.rank}: {len(self.chunks)} chunks alive, the schedule allows "
                f"{self.schedule.chunk_limit}: {sorted(self.chunks)}"
            )
        return self.chunks[name]
