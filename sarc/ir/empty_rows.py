"""What a value holds on the rows that a column names no row of."""

from __future__ import annotations

import torch
import torch.fx as fx
from torch import Tensor

from sarc.ir.dialect import REDUCE, start_value
from sarc.ir.program import type_of
from sarc.ir.space import Size

aten = torch.ops.aten

_VIEWS = {aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims}


def value_on_empty(node: fx.Node, column: fx.Node) -> Tensor | None:
    """The number (a tensor of rank 0) that `node` holds in every entry of a row that `column` does not name.

    A fold by `column` holds its neutral element there, constants are what they are, and pointwise operators compute on
    such numbers. None where the number depends on anything else.
    """
    if node.op != "call_function":
        return None
    if node.target is REDUCE:
        kind, dtype = str(node.args[4]), type_of(node).dtype
        return torch.tensor(start_value(kind, dtype), dtype=dtype) if node.args[1] is column else None
    if node.target is aten.full.default:
        fill = node.args[1]
        return None if isinstance(fill, Size) else torch.tensor(fill, dtype=type_of(node).dtype)
    if node.target in _VIEWS:
        return value_on_empty(node.args[0], column)  # type: ignore[arg-type]
    pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    if not pointwise or any(isinstance(a, Size) for a in (*node.args, *node.kwargs.values())):
        return None
    known = {n: value_on_empty(n, column) for n in node.all_input_nodes}
    if any(value is None for value in known.values()):
        return None
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
    return node.target(*args, **kwargs)
