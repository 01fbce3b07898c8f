"""Shapes and dtypes of a call's results, found by running its operator on meta tensors: each distinct call once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor

from sarc.ir.space import Rows, Size, Spaces, ValueType


@dataclass(frozen=True)
class MetaTensor:
    """What a tensor without memory is: its lengths and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Several:
    """A list or tuple of operands, as a key."""

    kind: type
    items: tuple


@dataclass(frozen=True)
class _Constant:
    """An operand that is no tensor, as a key: 1, 1.0 and True are different ones."""

    kind: type
    value: Any


def meta_results(target: Any, args: Any, kwargs: Any, spaces: Spaces) -> tuple[MetaTensor, ...]:
    """What a call returns, on rows of surrogate lengths.

    Args:
        args, kwargs: its operands; nodes stand for tensors of their types.

    Raises:
        Whatever the operator raises when its operands do not fit.
    """
    return _run(target, _frozen(tuple(args), spaces), _frozen(tuple(kwargs.items()), spaces))


def _frozen(tree: Any, spaces: Spaces) -> Any:
    """Operands as something that can be a key."""
    if isinstance(tree, fx.Node):
        return _stand_in(tree.meta["type"], spaces)
    if isinstance(tree, Size):
        return _Constant(int, tree.value(spaces.surrogates))
    if isinstance(tree, (list, tuple)):
        return _Several(list if isinstance(tree, list) else tuple, tuple(_frozen(leaf, spaces) for leaf in tree))
    return _Constant(type(tree), tree)


def _stand_in(type_: Any, spaces: Spaces) -> MetaTensor | _Several:
    if not isinstance(type_, ValueType):
        return _Several(tuple, tuple(_stand_in(t, spaces) for t in type_))
    lengths = [spaces.surrogates[d.space] * d.before * d.after if isinstance(d, Rows) else d for d in type_.dims]
    return MetaTensor(tuple(lengths), type_.dtype)


def _thawed(key: Any) -> Any:
    if isinstance(key, MetaTensor):
        return torch.empty(key.shape, dtype=key.dtype, device="meta")
    return key.kind(map(_thawed, key.items)) if isinstance(key, _Several) else key.value


@lru_cache(maxsize=1 << 16)
def _run(target: Any, args: Any, kwargs: Any) -> tuple[MetaTensor, ...]:
    made = target(*_thawed(args), **dict(_thawed(kwargs)))
    several: tuple[Tensor, ...] = tuple(made) if isinstance(made, (tuple, list)) else (made,)
    return tuple(MetaTensor(tuple(x.shape), x.dtype) for x in several)
