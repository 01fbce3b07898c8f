"""The collective operators of partitioned programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from sarc.ir.space import Rows, ValueType


def all_reduce(share: Tensor, op: str) -> Tensor:
    """Complete a contraction: combine the parts' shares ("sum", "max", "min"). On the whole graph, the share itself."""
    return share


def tuple_of(values):
    """Several values as one: what remains of an edge call whose folds are made by other calls."""
    return tuple(values)


def fetch(values: Sequence[Tensor], column: Tensor) -> tuple[Tensor, ...]:
    """Rows that a part reaches through a column: its own, then those of its halo, of several values in one message.

    On the whole graph, the values themselves.
    """
    return tuple(values)


def give_back(shares: Sequence[Tensor], column: Tensor, folds: Sequence[str]) -> tuple[Tensor, ...]:
    """Folds of what each part holds for the rows it reaches through a column, at their owners.

    On the whole graph, the shares themselves.

    Args:
        folds: "sum", "amax", "amin"; or `relative_to(k)`: a sum of terms with the factor exp(-share k), where share k
            is the part's maximum; at the owner it is relative to the maximum of all parts.
    """
    return tuple(shares)


def relative_to(place: int) -> str:
    """The fold of sums relative to the maximum which is share `place` of the same give-back."""
    return f"sum e^-{place}"


def maximum_of(fold: str) -> int | None:
    """The place of the maximum that a fold is relative to; None of any other fold."""
    return int(fold.removeprefix("sum e^-")) if fold.startswith("sum e^-") else None


def with_space(type_: ValueType, space: str, instead: str) -> ValueType:
    """`type_` with rows of `instead` where it has rows of `space`."""
    dims = (replace(d, space=instead) if isinstance(d, Rows) and d.space == space else d for d in type_.dims)
    return ValueType(tuple(dims), type_.dtype)
