"""Kernels: the compiled form of an EdgeProgram and its launch on one block of edges."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sarc.codegen.build import build
from sarc.codegen.cpp import emit
from sarc.codegen.cpp_source import Source
from sarc.codegen.divide import Stage, divide
from sarc.codegen.pack import lay_out
from sarc.codegen.staged import Empty, StageCall, StagedKernel, rng_operand, rows_first, written
from sarc.codegen.traversal import Traversal
from sarc.codegen.views import NoKernel
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.space import Rows


@dataclass(frozen=True)
class _Launch:
    """A compiled stage."""

    stage: Stage
    source: Source
    launcher: Callable[..., None]


class CppKernel(StagedKernel[_Launch]):
    """An EdgeProgram compiled for the CPU: one library a traversal order."""

    in_place = True

    def __init__(self, program: EdgeProgram):
        what = described(program)
        launches = [_Launch(stage, source, _launcher(source, what)) for stage, source in sources_of(program)]
        super().__init__(program, launches)

    def launch(
        self,
        traversals: Sequence[Traversal],
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        keys: Tensor,
        fresh: bool,
        empty: Empty = torch.empty,
    ) -> None:
        """Fold one block into `results`.

        Args:
            traversals: one for each of `orders`.
            operands: whole tables: a gathered operand's owned or fetched rows, an edge operand's rows of the part.
            results: accumulators of the rows that each result's column names; a store's edge tensor.
            keys: int64, row keys of the part's edges.
            fresh: whether the accumulators hold nothing yet; the traversals then visit every row.
            empty: makes what the launch alone needs (see `workspace`).
        """
        for call in self.calls(traversals, operands, results, keys, empty):
            _run(call, keys, fresh, empty)


def _run(call: StageCall[_Launch], keys: Tensor, fresh: bool, empty: Empty) -> None:
    program, source, order = call.launch.stage.program, call.launch.source, call.order
    chunks = order.bounds.numel() - 1
    if chunks <= 0:
        return
    dense_of = partial(_dense, empty=empty)
    tables = [dense_of(rows_first(x, o.axis)) for x, o in zip(call.operands, program.operands, strict=True)]
    after: list[Callable[[], object]] = []
    outs: list[Tensor] = []
    for k in source.results:
        outs += written(program.results[k], call.results[k], chunks, order, after, fresh, dense_of, _merge)
    keys = order.ordered(keys) if source.draws else keys
    used = sorted(program.columns_used("gather") | program.columns_used("reduce"))
    tensors = [order.bounds, order.starts, order.targets, order.slots, order.edges, call.positions, keys]
    tensors += [order.columns[c] for c in used] + tables + [lay_out(p, tables, empty) for p in source.packs] + outs
    pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
    rng = rng_operand(program)
    numbers = [0, 0] if rng is None else call.operands[rng].tolist()
    call.launch.launcher(pointers, (ctypes.c_int64 * 5)(chunks, *numbers, torch.get_num_threads(), int(fresh)))
    for finish in after:
        finish()


def _dense(table: Tensor, empty: Empty) -> Tensor:
    return table if table.is_contiguous() else empty(table.shape, dtype=table.dtype).copy_(table)


def _merge(into: Tensor, pieces: Tensor, order: Traversal, fold: str) -> None:
    """Fold the pieces of long rows, one after another: the order does not depend on threads."""
    combine = _INTO[fold]
    for row, piece in zip(order.pieces.tolist(), pieces, strict=True):
        combine(into[row], piece, out=into[row])


_INTO: dict[str, Callable[..., Tensor]] = {
    "sum": torch.ops.aten.add.out, "amax": torch.ops.aten.maximum.out, "amin": torch.ops.aten.minimum.out,
}  # fmt: skip


def described(program: EdgeProgram) -> str:
    """A program's kernel and the user's line, for messages."""
    return f"kernel {program.name} ({program.loc})"


def _launcher(source: Source, what: str) -> Callable[..., None]:
    launcher = getattr(build(source.text, what), source.name)
    launcher.restype = None
    launcher.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return launcher


def compile_kernels(programs: Sequence[EdgeProgram]) -> dict[str, CppKernel]:
    """Kernels of those programs that have a scalar form, by name; the others are left to the reference backend."""
    made = {}
    for program in programs:
        if has_plain_rows(program):
            with contextlib.suppress(NoKernel):
                made[program.name] = CppKernel(program)
    return made


def cpp_builds(programs: Sequence[EdgeProgram]) -> list[Callable[[], object]]:
    """Builds the kernels of programs, one a call."""
    units: list[tuple[str, str]] = []
    for program in programs:
        with contextlib.suppress(NoKernel):
            if has_plain_rows(program):
                units += [(source.text, described(program)) for _, source in sources_of(program)]
    return [partial(build, *unit) for unit in units]


def has_kernel(program: EdgeProgram) -> bool:
    """Whether a program has a scalar form; nothing is compiled."""
    try:
        return has_plain_rows(program) and bool(sources_of(program))
    except NoKernel:
        return False


def sources_of(program: EdgeProgram) -> list[tuple[Stage, Source]]:
    """The kernels of a program as text, in launch order.

    Raises:
        NoKernel: an operator of the body has no scalar form.
    """
    return [(stage, emit(stage)) for stage in divide(program).stages]


def has_plain_rows(program: EdgeProgram) -> bool:
    """Whether every operand and result holds its rows unflattened, as kernels need them."""
    types = [o.type for o in program.operands] + [r.type for r in program.results]
    return all(d.plain for t in types for d in t.dims if isinstance(d, Rows))
