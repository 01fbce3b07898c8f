"""EdgeProgram: an expression over the rows of one edge space, ending in folds.

It reads rows of node tensors through columns (gathers), its own rows of edge tensors, and whole replicated tensors; it
ends in reduces to nodes, contractions of the edges to a replicated value, and stores of edge rows. Each of these is a
monoid, so the edges may be visited block by block in any order: that is what a sequential exchange relies on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.fx as fx
from torch import Tensor

from sarc.ir.dialect import UNIFORM, fold_rows, start_value
from sarc.ir.draws import keyed_uniform
from sarc.ir.live_bytes import last_uses, live_bytes_per_row
from sarc.ir.ops import definition, placed, resolve_sizes
from sarc.ir.space import Dim, Rows, Spaces, ValueType, lengths


@dataclass(frozen=True)
class Operand:
    """What a body placeholder stands for.

    Attributes:
        value: index into the call's values.
        column: index into the call's columns for a gathered operand, or None.
        axis: axis of the gathered rows, or of the edge rows; None for a replicated operand.
        type: type of the row block that the body sees.
    """

    value: int
    column: int | None
    axis: int | None
    type: ValueType


@dataclass(frozen=True)
class Result:
    """What becomes of one output of the body.

    Attributes:
        kind: "reduce" (fold to the rows that `column` names), "rows" (the body's value has those rows already: it is
            made of its own folds), "contract" (the body's value is a share of a replicated value) or "store" (edge
            rows).
        fold: "sum" | "amax" | "amin" for a reduce; "sum" | "max" | "min" for a contract; else "".
        column: index into the call's columns for a reduce and for rows, else None.
        axis: axis of the folded rows (reduce, rows) or of the edge rows (store).
        type: type of the whole result.
        over: index into the call's values of a table in whose place a reduce or store is written, or None: nothing
            reads it behind the call, and a kernel has read a row of it when it writes that row (`reuse_storage`).
    """

    kind: str
    fold: str
    column: int | None
    axis: int | None
    type: ValueType
    over: int | None = None


@dataclass(frozen=True)
class EdgeProgram:
    """One traversal of an edge space.

    Attributes:
        name: "edges0", ...; unique in its program.
        space: the edge space traversed.
        operands: one for each placeholder of `body`.
        results: one for each value that `body` returns.
        body: torch.fx graph over the rows of a block.
        loc: source line of the first fold.
        remote: index of the column through which rows of other parts are fetched and returned; None when every row is
            owned.
    """

    name: str
    space: str
    operands: tuple[Operand, ...]
    results: tuple[Result, ...]
    body: fx.Graph
    loc: str = ""
    remote: int | None = None

    def __str__(self) -> str:
        return f"@{self.name}"

    __repr__ = __str__

    def columns_used(self, kind: str) -> set[int]:
        """Indices of the columns that operands ("gather") or results ("reduce") go through."""
        entries: Sequence[Operand | Result] = self.operands if kind == "gather" else self.results
        return {e.column for e in entries if e.column is not None}

    @property
    def own_columns(self) -> tuple[int, ...]:
        """Columns through which the body folds to rows that it reads itself: a block holds every edge of such rows."""
        return tuple(dict.fromkeys(n.args[1] for n in self.body.nodes if n.target is fold_to_rows))

    @cached_property
    def bytes_per_row(self) -> int:
        """Most bytes that one edge's values take while the body runs."""
        return live_bytes_per_row(self.body)

    @cached_property
    def draws(self) -> bool:
        """Whether the body draws random numbers, which takes the keys of rows."""
        return any(node.target is UNIFORM for node in self.body.nodes)

    @cached_property
    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        return last_uses(self.body)

    def run_block(
        self,
        operands: Iterable[Tensor],
        local: Mapping[str, int],
        total: Mapping[str, int],
        keys: Mapping[str, Tensor] | None = None,
        columns: Mapping[int, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> list[Tensor]:
        """The body on one block of rows; a value is dropped after its last use.

        Args:
            operands: the block's rows of each operand; a generator, where nothing else shall keep them.
            local: local size of every space; that of the edge space is the block's length.
            total: size of every space in the whole graph.
            keys: row keys of the block under the edge space's name, for random draws.
            columns: positions that the columns of the body's own folds name, where it has such folds: the block then
                holds every edge of its rows.
            device: of the rows; None is the CPU.
        """
        env = dict(zip((n for n in self.body.nodes if n.op == "placeholder"), operands, strict=True))
        for node in self.body.nodes:
            if node.op != "call_function":
                continue
            args, kwargs = resolve_sizes(
                node, fx.map_arg(node.args, env.__getitem__), fx.map_arg(node.kwargs, env.__getitem__), local, total
            )
            if node.target is UNIFORM and keys is not None:
                env[node] = keyed_uniform(node, args, dict(keys))
            elif node.target is take_rows:
                assert columns is not None
                env[node] = args[0].index_select(args[2], columns[args[1]])
            elif node.target is fold_to_rows:
                assert columns is not None
                rows, column, axis, kind = args
                shape = list(rows.shape)
                dim = node.meta["type"].dims[axis]
                shape[axis] = local[dim.space]
                env[node] = rows.new_full(shape, start_value(kind, rows.dtype))
                fold_rows(env[node], axis, columns[column], rows, kind)
            else:
                env[node] = node.target(*args, **(kwargs if device is None else placed(node, kwargs, device)))
            del args, kwargs
            for dead in self._last_uses.get(node, ()):
                del env[dead]
        returned = next(n for n in reversed(self.body.nodes) if n.op == "output").args[0]
        return [env[n] for n in returned]


def take_rows(value: Tensor, column: int, axis: int) -> Tensor:
    """Inside a body: rows of a row value named by one of the call's columns, along `axis` (see `run_block`)."""
    raise TypeError("take_rows names rows inside an edge program's body: run it with run_block")


def fold_to_rows(rows: Tensor, column: int, axis: int, kind: str) -> Tensor:
    """Inside a body: the fold of edge rows to the rows that one of the call's columns names (see `run_block`)."""
    raise TypeError("fold_to_rows folds inside an edge program's body: run it with run_block")


def infer_own(program: EdgeProgram, call: fx.Node) -> ValueType:
    """The type of a `take_rows` or `fold_to_rows` of a body: the rows of one dimension are others'."""
    axis, dims = call.args[2], list(call.args[0].meta["type"].dims)
    dims[axis] = Rows(program.space) if call.target is take_rows else call.meta["type"].dims[axis]
    return ValueType(tuple(dims), call.args[0].meta["type"].dtype)


def edge_call(program: EdgeProgram, values: Sequence[Tensor], columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The operator that applies an edge program; one result for each entry of `program.results`.

    It is a name in programs only: its meaning is `run_whole` (every edge in one block) in the interpreter, and a
    schedule's blocks on a part. Both need the sizes of spaces and the keys of rows, which are no operands.

    Args:
        program: what to compute.
        values: node, edge and replicated tensors, read by `Operand.value`.
        columns: int64 [rows of the edge space], read by `Operand.column` and `Result.column`.

    Raises:
        TypeError: when it is called.
    """
    raise TypeError("edge_call names an edge program in a graph: run it with run_whole")


def run_whole(
    program: EdgeProgram,
    values: Sequence[Tensor],
    columns: Sequence[Tensor],
    sizes: Mapping[str, int],
    keys: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """The edge program on whole-graph tensors."""
    rows = []
    for operand in program.operands:
        value = values[operand.value]
        if operand.column is not None:
            assert operand.axis is not None
            value = value.index_select(operand.axis, columns[operand.column])
        rows.append(value)
    folded = []
    made = program.run_block(rows, sizes, sizes, keys, dict(enumerate(columns)))
    for result, value in zip(program.results, made, strict=True):
        if result.kind == "reduce":
            assert result.axis is not None and result.column is not None
            into = new_accumulator(result, sizes, value.device)
            fold_rows(into, result.axis, columns[result.column], value, result.fold)
            value = into
        folded.append(value)
    return tuple(folded)


def new_accumulator(
    result: Result, sizes: Mapping[str, int], device: torch.device, empty: Callable[..., Tensor] | None = None
) -> Tensor:
    """A tensor of a result's type holding the fold's neutral element; a store's is not filled, every row is written.

    Args:
        empty: makes it; None: torch.
    """
    shape, dtype = lengths(result.type, sizes), result.type.dtype
    made = torch.empty(shape, dtype=dtype, device=device) if empty is None else empty(shape, dtype)
    if result.kind in ("store", "rows"):
        return made
    fold = {"max": "amax", "min": "amin"}.get(result.fold, result.fold)
    return made.fill_(start_value(fold, dtype))


def contract_kind(node: fx.Node) -> str:
    """The all-reduce that completes a contraction: "sum", "max" or "min"."""
    if len(node.args) > 4 and isinstance(node.args[4], str):
        return {"sum": "sum", "amax": "max", "amin": "min"}[node.args[4]]
    found = definition(node.target)
    return found.contracts if found else ""


def combine_(into: Tensor, share: Tensor, fold: str) -> None:
    """Combine a share of a contraction into `into`, in place."""
    if fold == "sum":
        into.add_(share)
    elif fold == "max":
        torch.maximum(into, share, out=into) if into.dtype != torch.bool else into.logical_or_(share)
    else:
        torch.minimum(into, share, out=into) if into.dtype != torch.bool else into.logical_and_(share)


def open_rows(value: Tensor, axis: int, dim: Rows) -> tuple[Tensor, int]:
    """`value` with the rows of the (possibly flattened) dimension `dim` at `axis` on an axis of their own, and it."""
    if dim.plain:
        return value, axis
    shape = list(value.shape)
    length = shape[axis] // (dim.before * dim.after)
    return value.reshape([*shape[:axis], dim.before, length, dim.after, *shape[axis + 1 :]]), axis + 1


def select_block(value: Tensor, axis: int, dim: Rows, rows: Tensor | slice) -> Tensor:
    """Some rows of the dimension `dim` at `axis`: int64 [K] of them, or a slice."""
    opened, at = open_rows(value, axis, dim)
    if isinstance(rows, slice):
        picked = opened.narrow(at, rows.start, rows.stop - rows.start)
    else:
        picked = opened.index_select(at, rows)
    if dim.plain:
        return picked
    shape = list(value.shape)
    return picked.reshape([*shape[:axis], dim.before * picked.shape[at] * dim.after, *shape[axis + 1 :]])


def store_block(into: Tensor, axis: int, dim: Rows, rows: Tensor | slice, value: Tensor) -> None:
    """Write a block's rows, int64 [K] or a slice, of the dimension `dim` at `axis`; `into` is contiguous."""
    opened, at = open_rows(into, axis, dim)
    block, _ = open_rows(value, axis, dim)
    if isinstance(rows, slice):
        opened.narrow(at, rows.start, rows.stop - rows.start).copy_(block)
    else:
        opened.index_copy_(at, rows, block)


@dataclass(frozen=True)
class ChunkLayout:
    """How the rows of several tensors share one message: one segment a tensor, widest elements first (so aligned).

    Attributes:
        entries: for each segment (key, axis of the rows, dtype, shape of one row).
    """

    entries: tuple[tuple[int, int, torch.dtype, tuple[int, ...]], ...]

    @property
    def row_bytes(self) -> int:
        return sum(dtype.itemsize * math.prod(shape) for _, _, dtype, shape in self.entries)

    def message_bytes(self, rows: int) -> int:
        """Bytes of `rows` rows, rounded up so that another message may follow in the same buffer."""
        step = max(dtype.itemsize for _, _, dtype, _ in self.entries)
        return -(-rows * self.row_bytes // step) * step

    def segments(self, buffer: Tensor, rows: int) -> dict[int, Tensor]:
        """Views [rows, *row shape] of a message uint8 [rows * row_bytes], by key."""
        found, start = {}, 0
        for key, _, dtype, shape in self.entries:
            length = rows * dtype.itemsize * math.prod(shape)
            found[key] = buffer[start : start + length].view(dtype).view(rows, *shape)
            start += length
        return found

    def table(self, buffer: Tensor, rows: int) -> dict[int, Tensor]:
        """The segments with their rows on the axis of the tensor they come from."""
        axes = {key: axis for key, axis, _, _ in self.entries}
        return {key: s.movedim(0, axes[key]) for key, s in self.segments(buffer, rows).items()}


def is_reach(dim: Dim, spaces: Spaces) -> bool:
    """Whether a dimension has the rows that a part reaches through a column."""
    return isinstance(dim, Rows) and spaces[dim.space].kind == "reach"


def fetch_layout(
    program: EdgeProgram, values: Sequence[ValueType], spaces: Spaces, wire: torch.dtype | None = None
) -> ChunkLayout:
    """Message layout of the rows that `program` reads through its remote column; keys are indices of values.

    Rows of a reach are at hand: they were fetched whole before.

    Args:
        wire: dtype of wider floating-point numbers on the way; None: their own.
    """
    picked = {}
    for operand in program.operands:
        if operand.column is None or operand.axis is None or operand.column != program.remote:
            continue
        if not is_reach(values[operand.value].dims[operand.axis], spaces):
            picked[operand.value] = (operand.value, operand.axis, values[operand.value])
    return _layout(list(picked.values()), wire)


def return_layout(program: EdgeProgram, spaces: Spaces, wire: torch.dtype | None = None) -> ChunkLayout:
    """Message layout of the partial folds to the remote column's rows; keys are indices of results.

    Folds to rows of a reach stay here.
    """
    picked = [
        (k, r.axis, r.type)
        for k, r in enumerate(program.results)
        if r.axis is not None and r.column is not None and r.column == program.remote
        if not is_reach(r.type.dims[r.axis], spaces)
    ]
    return _layout(picked, wire)


def whole_layout(exchange: fx.Node, wire: torch.dtype | None = None) -> ChunkLayout:
    """Message layout of the rows that a `fetch` or `give_back` moves to or from one peer; keys are places of values."""
    types = [value.meta["type"] for value in exchange.args[0]]
    return _layout([(k, type_.row_axis, type_) for k, type_ in enumerate(types)], wire)


def _layout(picked: list[tuple[int, int, ValueType]], wire: torch.dtype | None) -> ChunkLayout:
    entries = []
    for key, axis, type_ in picked:
        row = tuple(d for place, d in enumerate(type_.dims) if place != axis and not isinstance(d, Rows))
        dtype = type_.dtype
        if wire is not None and dtype.is_floating_point and dtype.itemsize > wire.itemsize:
            dtype = wire
        entries.append((key, axis, dtype, row))
    return ChunkLayout(tuple(sorted(entries, key=lambda entry: (-entry[2].itemsize, entry[0]))))
