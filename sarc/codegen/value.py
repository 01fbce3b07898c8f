"""Values: how generated code reads one value of a body, and the loops over its features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sarc.codegen.loops import Loop
from sarc.codegen.vectors import MARK, NoVector, VectorForm
from sarc.codegen.views import Index
from sarc.ir.space import Rows

aten = torch.ops.aten

BLOCK = 64
VIEWS = {
    aten.view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims,
    aten.permute.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip
COMPARISONS = {
    getattr(getattr(aten, name), overload)
    for name in ("gt", "ge", "lt", "le", "eq", "ne")
    for overload in ("Scalar", "Tensor")
}


@dataclass
class Value:
    """How one body value is read.

    Attributes:
        element: C++ for the element at an index (one entry a dimension; the row's is unused).
        dims: its dimensions.
        cheap: whether reading it computes nothing.
        flat: C++ for the element at a row-major offset among its features, where memory holds it so.
    """

    element: Callable[[Index], str]
    dims: tuple
    cheap: bool = True
    flat: Callable[[str], str] | None = None


def linear(index: Index, dims: tuple) -> str:
    """Offset of an index among the features, row-major."""
    terms, stride = [], 1
    for at, dim in reversed(list(zip(index, dims, strict=True))):
        if isinstance(dim, Rows):
            continue
        if dim != 1 and at != "0":
            terms.append(at if stride == 1 else f"{at} * {stride}")
        stride *= dim
    return " + ".join(reversed(terms)) or "0"


def nest(dims: tuple, body: Callable[[Index], str], vector: Callable[[Index], str] | None = None) -> Loop:
    """Loops over the features of `dims` around one statement; the innermost is a vector loop.

    Args:
        body: the statement at an index.
        vector: the statement at an index whose last feature is marked; NoVector where it has no such form.
    """
    index: Index = ["0" if isinstance(d, Rows) or d == 1 else f"i{axis}" for axis, d in enumerate(dims)]
    loops = tuple((axis, d) for axis, d in enumerate(dims) if index[axis] != "0")
    form = None
    if vector and loops:
        with contextlib.suppress(NoVector):
            form = VectorForm((vector(marked(index)),))
    return Loop(loops[:-1], loops[-1:], (body(index),), vector=form)


def marked(index: Index) -> Index:
    """An index for vectors over its last feature."""
    last = max(axis for axis, at in enumerate(index) if at != "0")
    return [MARK + at if axis == last else at for axis, at in enumerate(index)]
