"""CUDA kernels: the compiled form of an EdgeProgram and its launch on one block of edges."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sarc.codegen.cuda import NUMBERS, emit_cuda
from sarc.codegen.cuda_source import CudaSource
from sarc.codegen.cuda_traversal import RowsByLength, rows_by_length
from sarc.codegen.divide import Stage, divide
from sarc.codegen.kernels import described, has_plain_rows
from sarc.codegen.nvcc import Library, Load, load_library
from sarc.codegen.pack import lay_out
from sarc.codegen.staged import Empty, StageCall, StagedKernel, rng_operand, rows_first, written
from sarc.codegen.traversal import Traversal
from sarc.codegen.views import NoKernel
from sarc.errors import BudgetError, CodegenError
from sarc.ir.dialect import fold_rows, start_value
from sarc.ir.edge_program import EdgeProgram

# A contraction has at most this many shares of each kind of rows: fixed, so that its sum depends on the graph alone.
MOST_SHARES = 4096
ALIGNMENT = 64  # of tables: lanes read up to 128 bits at once, and strips of wide integers are longer
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


@dataclass(frozen=True)
class _Launch:
    stage: Stage
    source: CudaSource
    library: Library


class CudaKernel(StagedKernel[_Launch]):
    """An EdgeProgram compiled for CUDA: one library a traversal order.

    Args:
        program: what to compile.
        load: makes a library of a source; the tests' one emulates warps on the CPU.

    Raises:
        NoKernel: an operator of the body has no scalar form.
        CodegenError: no nvcc, or it failed.
    """

    def __init__(self, program: EdgeProgram, load: Load = load_library):
        self.what = described(program)
        launches = [_Launch(stage, source, load(source, self.what)) for stage, source in cuda_sources(program)]
        super().__init__(program, launches)

    def launch(
        self,
        traversals: Sequence[Traversal],
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        keys: Tensor,
        fresh: bool,
        empty: Empty | None = None,
    ) -> None:
        """Fold one block into `results` (see `sarc.codegen.kernels.CppKernel.launch`), on the current stream.

        Args:
            empty: makes what the launch alone needs; None makes it where `keys` are.

        Raises:
            BudgetError: the device's memory does not hold what the kernel needs.
            CodegenError: the launch failed.
        """
        try:
            make = partial(torch.empty, device=keys.device) if empty is None else empty
            for call in self.calls(traversals, operands, results, keys, make):
                self._run(call, keys, fresh, make)
        except torch.OutOfMemoryError as error:
            raise BudgetError(
                f"{self.what}: the device's memory does not hold what its launch needs: {str(error).splitlines()[0]}; "
                f"partition into more parts"
            ) from error

    def _run(self, call: StageCall[_Launch], keys: Tensor, fresh: bool, empty: Empty) -> None:
        program, source, order = call.launch.stage.program, call.launch.source, call.order
        count = _Count.of(source, program, order)
        if count.nothing:
            return
        tables = [_aligned(rows_first(x, o.axis)) for x, o in zip(call.operands, program.operands, strict=True)]
        packs = [lay_out(pack, tables, empty) for pack in source.packs]
        after: list[Callable[[], object]] = []
        outs: list[Tensor] = []
        for k in source.results:
            outs += written(program.results[k], call.results[k], count.shares, order, after, fresh, _aligned, _merge)
        used = sorted(program.columns_used("gather") | program.columns_used("reduce"))
        keys = order.ordered(keys) if source.draws else keys
        tensors = [count.rows, order.starts, order.targets, order.slots, order.edges, call.positions, keys]
        tensors += [order.columns[c] for c in used] + tables + packs + outs
        rng = rng_operand(program)
        seed, step = (0, 0) if rng is None else call.operands[rng].tolist()
        numbers = [*count.counts, *count.each, seed, step, int(fresh), keys.device.index or 0]
        assert len(numbers) == len(NUMBERS)
        pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        with _on(keys.device) as stream:
            status = call.launch.library.launch(pointers, (ctypes.c_int64 * len(numbers))(*numbers), stream)
        if status:
            self._fail(status, call.launch.library)
        for finish in after:
            finish()

    def _fail(self, status: int, library: Library) -> None:
        text = f"{self.what}: its launch failed: {library.describe(status)} (error {status})"
        if status == OUT_OF_MEMORY:
            raise BudgetError(f"{text}; partition into more parts")
        raise CodegenError(
            f"{text}; the source is kept in {library.where}; CUDA_LAUNCH_BLOCKING=1 shows which launch an earlier "
            f"error comes from, and backend='reference' runs without kernels"
        )


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[int]:
    """The current stream of a CUDA device, with the device made current; 0 of the CPU, where warps are emulated."""
    if device.type != "cuda":
        yield 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


@dataclass(frozen=True)
class _Count:
    """How many rows (or edges, in their own order) of each kind a launch visits, and how many each group of lanes.

    Attributes:
        rows: int32, positions of the rows in the order of visits.
        counts, each: of hubs, long and short rows.
        shares: number of groups, each with a share of every contraction.
    """

    rows: Tensor
    counts: tuple[int, int, int]
    each: tuple[int, int, int]
    shares: int

    @property
    def nothing(self) -> bool:
        return not any(self.counts)

    @staticmethod
    def of(source: CudaSource, program: EdgeProgram, order: Traversal) -> _Count:
        contracts = any(program.results[k].kind == "contract" for k in source.results)
        if source.order is None:
            length = int(order.bounds[-1]) if order.bounds.numel() else 0
            counts, rows = (0, length, 0), order.targets
            unit = source.long.edges
        else:
            found: RowsByLength = rows_by_length(order)
            counts, rows, unit = (found.hubs, found.long, found.short), found.rows, 1
            if not source.has_hubs:
                counts = (0, found.hubs + found.long, found.short)
            if source.short is None:
                counts = (counts[0], counts[1] + counts[2], 0)
        most = MOST_SHARES if contracts else None
        each = tuple(unit if most is None else -(-n // (most * unit)) * unit or unit for n in counts)
        shapes = (source.long, source.long, source.short or source.long)
        shares = sum(
            _blocks(n, e * (1 if kind == 0 else source.threads // shape.lanes)) * (source.threads // shape.lanes)
            for kind, (n, e, shape) in enumerate(zip(counts, each, shapes, strict=True))
        )
        return _Count(rows, counts, each, shares)  # type: ignore[arg-type]


def _blocks(count: int, each: int) -> int:
    return -(-count // each)


def _aligned(table: Tensor) -> Tensor:
    """A contiguous table that starts where strips may."""
    table = table.contiguous()
    return table if table.data_ptr() % ALIGNMENT == 0 else table.clone()


def _merge(into: Tensor, pieces: Tensor, order: Traversal, fold: str) -> None:
    """Fold the pieces of long rows, in the pieces' order, all rows at once."""
    rows, table = _pieces_of_rows(order)
    start = pieces.new_full((1, *pieces.shape[1:]), start_value(fold, pieces.dtype))
    wide = torch.cat([pieces, start])[table]  # [rows, most pieces, ...]
    whole = wide.sum(1, dtype=wide.dtype) if fold == "sum" else getattr(wide, fold)(1)
    fold_rows(into, 0, rows, whole, fold)


def _pieces_of_rows(order: Traversal) -> tuple[Tensor, Tensor]:
    """The split rows, int64 [R], and the pieces of each, int64 [R, most]; the number of pieces stands for none."""
    if "pieces of rows" not in order.made:
        rows, counts = torch.unique_consecutive(order.pieces, return_counts=True)
        place = torch.arange(int(counts.max()), device=rows.device)
        first = torch.cumsum(counts, 0) - counts
        table = torch.where(place < counts[:, None], first[:, None] + place, order.pieces.numel())
        order.made["pieces of rows"] = rows, table
    return order.made["pieces of rows"]


def cuda_sources(program: EdgeProgram) -> list[tuple[Stage, CudaSource]]:
    """The CUDA kernels of a program as text, in launch order.

    Raises:
        NoKernel: an operator of the body has no scalar form.
    """
    return [(stage, emit_cuda(stage)) for stage in divide(program).stages]


def cuda_builds(programs: Sequence[EdgeProgram], load: Load = load_library) -> list[Callable[[], object]]:
    """Builds the kernels of programs, one a call."""
    units: list[tuple[CudaSource, str]] = []
    for program in programs:
        with contextlib.suppress(NoKernel):
            if has_plain_rows(program):
                units += [(source, described(program)) for _, source in cuda_sources(program)]
    return [partial(load, *unit) for unit in units]


def compile_cuda_kernels(programs: Sequence[EdgeProgram], load: Load = load_library) -> dict[str, CudaKernel]:
    """Kernels of those programs that have a scalar form, by name; the others are left to the reference backend."""
    made = {}
    for program in programs:
        if has_plain_rows(program):
            with contextlib.suppress(NoKernel):
                made[program.name] = CudaKernel(program, load)
    return made


def has_cuda_kernel(program: EdgeProgram) -> bool:
    """Whether a program has a scalar form for CUDA; nothing is compiled."""
    try:
        return has_plain_rows(program) and bool(cuda_sources(program))
    except NoKernel:
        return False
