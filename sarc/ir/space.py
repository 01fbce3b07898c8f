"""Spaces: what the rows of a tensor dimension are, and the value types built from them.

A dimension of a value is either static (an `int`) or `Rows` of a space. A space is a set of rows with one owner a row:
the nodes of a type, the edges of a relation, or a set derived from those (rows selected by a structural mask, row sets
placed one after another). The size of a space as a sympy expression lets the compiler match, print and count it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import sympy
import torch

from sarc.errors import UnsupportedModelError


@dataclass(frozen=True)
class Space:
    """A set of rows.

    Attributes:
        name: as printed in types ("N", "E", "S0", ...).
        kind: "nodes" or "edges" (given), "filter" (rows of `parents[0]` where `mask` holds), "concat" (the rows of
            the parents, in order), "placed" (rows of `parents[0]`, some or all, at parts chosen for them) or "reach"
            (on each part the rows of `parents[0]` that it owns, then its halo: those that it reads through the column
            `mask`; on the whole graph, the parent's rows).
        parents: names of the spaces this one is derived from.
        mask: name of the value that selects the rows of a filter, or of the column of a reach.
        on_edges: whether the rows stand for edges, directly or through their first parent: values there are recomputed
            rather than saved.
    """

    name: str
    kind: str
    parents: tuple[str, ...] = ()
    mask: str = ""
    on_edges: bool = False

    def __str__(self) -> str:
        if self.kind == "filter":
            return f"{self.name} = filter({self.parents[0]}, %{self.mask})"
        if self.kind == "reach":
            return f"{self.name} = reach({self.parents[0]}, %{self.mask})"
        if self.kind == "concat":
            return f"{self.name} = concat({', '.join(self.parents)})"
        if self.kind == "placed":
            return f"{self.name} = placed({self.parents[0]})"
        return f"{self.name} = {self.kind}"


@dataclass(frozen=True)
class Rows:
    """A dimension of `before * |space| * after` entries, laid out with `before` major and `after` minor."""

    space: str
    before: int = 1
    after: int = 1

    @property
    def plain(self) -> bool:
        return self.before == 1 and self.after == 1

    def __str__(self) -> str:
        left = f"{self.before}*" if self.before != 1 else ""
        right = f"*{self.after}" if self.after != 1 else ""
        return f"{left}{self.space}{right}"


Dim = int | Rows

_LARGEST_FACTOR = 65_536

DTYPE_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class ValueType:
    """Type of one tensor value: its dimensions and dtype. Printed as `f32[N, 4, 8]`."""

    dims: tuple[Dim, ...]
    dtype: torch.dtype

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the spaces, in order of the axes."""
        return tuple(d.space for d in self.dims if isinstance(d, Rows))

    def axis_of(self, space: str) -> int:
        """The axis that holds `space`; raises ValueError when none does."""
        for axis, dim in enumerate(self.dims):
            if isinstance(dim, Rows) and dim.space == space:
                return axis
        raise ValueError(f"{self} has no rows of {space}")

    @property
    def rows(self) -> tuple[int, Rows] | None:
        """The first axis that holds a space, with its dimension; None for a replicated value."""
        return next(((axis, dim) for axis, dim in enumerate(self.dims) if isinstance(dim, Rows)), None)

    @property
    def row_axis(self) -> int | None:
        """The first axis that holds a space, or None for a replicated value."""
        return next((axis for axis, dim in enumerate(self.dims) if isinstance(dim, Rows)), None)

    def __str__(self) -> str:
        return f"{DTYPE_NAMES[self.dtype]}[{', '.join(map(str, self.dims))}]"


def lengths(type_: ValueType, sizes: Mapping[str, int]) -> list[int]:
    """The shape of a tensor of a type, for given sizes of the spaces."""
    return [sizes[d.space] * d.before * d.after if isinstance(d, Rows) else d for d in type_.dims]


@dataclass(frozen=True)
class Size:
    """A number made of space sizes, as an operand: `|N| * 4`, `1 / |S0|`.

    Whether it stands for this part's rows or for the whole graph's is decided by its use: the op table marks the
    integer operands that are shapes (local); every other use is a number (global).
    """

    expr: sympy.Expr

    def __str__(self) -> str:
        return f"|{self.expr}|"

    __repr__ = __str__

    def value(self, sizes: Mapping[str, int]) -> int | float:
        """The number for given space sizes; a float only where the formula is not integral."""
        return _evaluate(self.expr, tuple(sizes[name] for name in _names(self.expr)))


# Blocks ask for the same few numbers in every step, and sympy takes a millisecond for each.
@lru_cache(maxsize=1024)
def _names(expr: sympy.Expr) -> tuple[str, ...]:
    return tuple(sorted(symbol.name for symbol in expr.free_symbols))


@lru_cache(maxsize=16384)
def _evaluate(expr: sympy.Expr, sizes: tuple[int, ...]) -> int | float:
    number = expr.subs(dict(zip(map(sympy.Symbol, _names(expr)), sizes, strict=True)))
    return int(number) if number.is_integer else float(number)


@dataclass
class Spaces:
    """The spaces of one program, the sympy expression of each one's size and a surrogate length for inference.

    Surrogates are large distinct primes (sums of them for a concat): an operator run on meta tensors of these lengths
    tells the shape and dtype of its result, and each length of the result names its space.
    """

    table: dict[str, Space] = field(default_factory=dict)
    sizes: dict[str, sympy.Expr] = field(default_factory=dict)
    surrogates: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Space:
        return self.table[name]

    def __contains__(self, name: str) -> bool:
        return name in self.table

    def __iter__(self):
        return iter(self.table.values())

    def copy(self) -> Spaces:
        return Spaces(dict(self.table), dict(self.sizes), dict(self.surrogates))

    def add(self, space: Space) -> Space:
        """Enter `space`; its size is a symbol of its name, or the sum of its parents' sizes for a concat."""
        if space.name in self.table:
            if self.table[space.name] != space:
                raise ValueError(f"two spaces named {space.name}")
            return space
        self.table[space.name] = space
        if space.kind == "concat":
            self.sizes[space.name] = sympy.Add(*(self.sizes[p] for p in space.parents))
            self.surrogates[space.name] = sum(self.surrogates[p] for p in space.parents)
        else:
            self.sizes[space.name] = sympy.Symbol(space.name)
            previous = [s for n, s in self.surrogates.items() if self.table[n].kind != "concat"]
            start = max(previous, default=10_000_000) + 100_003 * len(previous)
            self.surrogates[space.name] = int(sympy.nextprime(start))
        return space

    def rename_mask(self, name: str, mask: str) -> None:
        """The value that selects the rows of filter `name` is now called `mask`."""
        self.table[name] = replace(self.table[name], mask=mask)

    def is_selected(self, name: str) -> bool:
        """Whether the rows are, or contain, a selection: their ids have gaps."""
        space = self.table[name]
        return space.kind == "filter" or any(map(self.is_selected, space.parents))

    def fresh_name(self) -> str:
        k = 0
        while f"S{k}" in self.table:
            k += 1
        return f"S{k}"

    def concat(self, parents: tuple[str, ...]) -> Space:
        """The space of the rows of `parents` in order, made when it does not exist yet."""
        for space in self.table.values():
            if space.kind == "concat" and space.parents == parents:
                return space
        on_edges = any(self.table[p].on_edges for p in parents)
        made = self.add(Space(self.fresh_name(), "concat", parents, on_edges=on_edges))
        for other in self.table.values():
            if other.name != made.name and self.sizes[other.name] == self.sizes[made.name]:
                raise UnsupportedModelError(
                    f"rows are concatenated in two orders of equal length: {made} and {other}; expected one order: "
                    f"concatenate the same row sets in the same order everywhere"
                )
        return made

    def reach(self, parent: str, column: str) -> Space:
        """The rows of `parent` that a part owns or reads through `column`; made when it does not exist yet."""
        for space in self.table.values():
            if space.kind == "reach" and (space.parents, space.mask) == ((parent,), column):
                return space
        name = f"R_{column.removeprefix('bound_')}"  # every stage has the same name for it
        while name in self.table:
            name += "_"
        return self.add(Space(name, "reach", (parent,), column))

    def of_number(self, number: int) -> Dim:
        """The dimension that a surrogate length stands for: `k * surrogate(space)` is k rows of it, else static."""
        for name, size in self.surrogates.items():
            if number and number % size == 0 and number // size < _LARGEST_FACTOR:
                return Rows(name, 1, number // size)
        return number

    def numbers(self, atomic: Mapping[str, int]) -> dict[str, int]:
        """Sizes of all spaces whose concat leaves are in `atomic`."""
        given = {sympy.Symbol(name): sympy.Integer(size) for name, size in atomic.items()}
        known = ((name, size) for name, size in self.sizes.items() if size.free_symbols <= given.keys())
        return {name: int(size.xreplace(given)) for name, size in known}
