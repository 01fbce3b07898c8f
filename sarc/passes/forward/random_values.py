"""Random operators as formulas of counter-based uniform draws (see `sarc.ir.philox`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx

from sarc.errors import UnsupportedModelError
from sarc.ir.call import location, named_arguments, op_name

if TYPE_CHECKING:
    from sarc.passes.forward.canonicalise import Canonicalise

aten = torch.ops.aten


def random_value(into: Canonicalise, node: fx.Node) -> Any:
    """The value (a tuple for dropout) that stands for the random operator `node` in the canonical graph.

    Raises:
        UnsupportedModelError: the operator has no counter-based form.
    """
    target, emit, given = node.target, into.emit, named_arguments(node)
    val = node.meta["val"]
    first = val[0] if isinstance(val, (tuple, list)) else val
    shape = [into.size(length) for length in first.shape]

    def cast(value: fx.Node) -> fx.Node:
        return value if first.dtype == torch.float32 else emit(aten._to_copy.default, value, dtype=first.dtype)

    if target in (aten.bernoulli.p, aten.bernoulli.default):
        p = given["p"] if target is aten.bernoulli.p else into.arg(given["self"])
        compare = aten.lt.Scalar if not isinstance(p, fx.Node) else aten.lt.Tensor
        return emit(aten._to_copy.default, emit(compare, into.draw(shape), p), dtype=first.dtype)
    if target is aten.native_dropout.default:
        return _dropout(into, given, shape)
    if target in (aten.rand.default, aten.rand_like.default):
        return cast(into.draw(shape))
    if target is aten.uniform.default:
        low, high = given.get("from", 0.0), given.get("to", 1.0)
        return cast(emit(aten.add.Tensor, emit(aten.mul.Tensor, into.draw(shape), high - low), low))
    if target in (aten.randn.default, aten.randn_like.default, aten.normal_functional.default):
        return cast(_normal(into, shape, given.get("mean", 0.0), given.get("std", 1.0)))
    if target is aten.exponential.default:
        log = emit(aten.log1p.default, emit(aten.neg.default, into.draw(shape)))
        return cast(emit(aten.mul.Tensor, log, -1.0 / given.get("lambd", 1.0)))
    raise UnsupportedModelError(
        f"{location(node)}random operator {op_name(target)} has no counter-based form: expected dropout, "
        f"bernoulli, rand, randn, uniform, normal or exponential; pass other draws (a permutation, say) as an input"
    )


def _dropout(into: Canonicalise, given: dict[str, Any], shape: list[Any]) -> tuple[fx.Node, fx.Node]:
    """What is kept, scaled, and the mask."""
    x, p, emit = into.arg(given["input"]), given["p"], into.emit
    if not given.get("train", True):
        return x, emit(aten.full.default, shape, True, dtype=torch.bool)
    keep = emit(aten.lt.Scalar, into.draw(shape), 1 - p)
    return emit(aten.mul.Tensor, emit(aten.mul.Tensor, x, keep), 0.0 if p == 1 else 1.0 / (1.0 - p)), keep


def _normal(into: Canonicalise, shape: list[Any], mean: float, std: float) -> fx.Node:
    """Box and Muller: sqrt(-2 log(1 - u1)) cos(2 pi u2)."""
    emit = into.emit
    log = emit(aten.log1p.default, emit(aten.neg.default, into.draw(shape)))
    radius = emit(aten.sqrt.default, emit(aten.mul.Tensor, log, -2.0))
    angle = emit(aten.cos.default, emit(aten.mul.Tensor, into.draw(shape), 2.0 * torch.pi))
    value = emit(aten.mul.Tensor, radius, angle)
    value = value if std == 1.0 else emit(aten.mul.Tensor, value, std)
    return value if mean == 0.0 else emit(aten.add.Tensor, value, mean)
