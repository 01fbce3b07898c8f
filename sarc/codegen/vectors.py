"""Vectors: loops over features in the vector types of GCC and clang, with the folds of a row in registers.

Compilers keep a row's accumulators in memory while they visit its edges, even where the loops over features are vector
loops. So where everything that a loop computes has a vector form, it is spelled in vectors, and the accumulators are
loaded once a block.

An expression's vector form is its scalar form at an index whose last feature is marked: reading memory there gives
`sarc_get<lanes>(...)`, a whole vector, and arithmetic and comparisons are the same for vectors and numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sarc.codegen.body import NARROW, Body, width

MARK = "@"  # before the loop variable of the features that a vector holds
LANES = "$"  # features that a vector holds
OPERATORS = {
    "add", "sub", "mul", "div", "neg", "rsub", "square", "leaky_relu", "where", "lt", "le", "gt", "ge", "eq", "ne",
}  # fmt: skip


class NoVector(Exception):
    """An expression has no vector form."""


@dataclass(frozen=True)
class VectorForm:
    """A loop's statements in vectors, as `Loop` names them; `MARK` and `LANES` stand for what is not yet known."""

    body: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def join(self, other: VectorForm) -> VectorForm:
        return VectorForm(self.body + other.body, self.before + other.before, self.after + other.after)


def vector_type(body: Body) -> str:
    """The type of a body's wide values, or "" where it has none or several."""
    wide = {n.meta["type"].dtype for n in body.nodes if width(n) > NARROW}
    return {torch.float32: "float", torch.float64: "double"}.get(wide.pop(), "") if len(wide) == 1 else ""


def store(target: str, value: str) -> str:
    """The statement that writes an element, or a vector where `read` gave one."""
    if not is_vector(target):
        return f"{target} = {value};"
    return f"sarc_put({target.removeprefix(f'sarc_get<{LANES}>(')[:-1]}, {whole(value)});"


def read(name: str, offset: str) -> str:
    """The element of an array at an offset, or the vector that starts there.

    Raises:
        NoVector: what a vector would hold does not stand side by side.
    """
    if MARK not in offset:
        return f"{name}[{offset}]"
    start, _, last = offset.rpartition(" + ")
    if MARK in start or not last.startswith(MARK) or not last[1:].isalnum():
        raise NoVector(offset)
    return f"sarc_get<{LANES}>({name} + {offset})"


def is_vector(text: str) -> bool:
    return f"sarc_get<{LANES}>" in text or f"sarc_all<{LANES}>" in text


def whole(text: str) -> str:
    """An expression as a vector: a number is repeated."""
    return text if is_vector(text) else f"sarc_all<{LANES}>({text})"


def vector_operands(operator: str, operands: list[str]) -> list[str]:
    """Operands as an operator takes them where some are vectors.

    Raises:
        NoVector: the operator has no vector form.
    """
    if operator not in OPERATORS:
        raise NoVector(operator)
    return [operands[0], *map(whole, operands[1:])] if operator == "where" else operands
