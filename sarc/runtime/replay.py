"""Replay: run the plain module with the random draws of a compiled one.

Draws of a compiled module are keyed by row, so they do not depend on the number of parts; PyTorch's own generator gives
others. To compare the two, the plain module runs with the compiled module's draws in place of its own:

    out = compiled(x, edge_index)
    with replay(compiled):
        reference = model(x, edge_index)        # the same dropout masks
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sarc.ir.dialect import UNIFORM
from sarc.ir.draws import keyed_uniform
from sarc.ir.program import map_sizes
from sarc.runtime.part_state import PartState

if TYPE_CHECKING:
    from sarc.runtime.module import CompiledModule

aten = torch.ops.aten


@contextmanager
def replay(compiled: CompiledModule, step: int | None = None) -> Iterator[None]:
    """Random operators called inside give what the compiled module drew, in the order it drew.

    Args:
        compiled: has been called, in a process that runs all parts.
        step: the step whose draws are meant; None for the last call's.

    Raises:
        AssertionError: the code inside asks for other draws than the compiled module made.
    """
    mode = _Replay(draws(compiled, step))
    with mode:
        yield
    assert not mode.left, f"{len(mode.left)} of the compiled module's draws were not asked for"


def draws(compiled: CompiledModule, step: int | None = None) -> list[Tensor]:
    """The uniform draws of a call, float32 in [0, 1), in the plain module's row order and in program order."""
    from sarc.runtime.module import signed

    variant = compiled._called()
    assert variant.binding is not None  # a variant that was called is bound
    raised, states = variant.stages["raised"], variant.binding.order.states
    found = []
    for node in raised.graph.nodes:
        if node.target is not UNIFORM:
            continue
        at = compiled.step - 1 if step is None else step
        rng = torch.tensor([signed(compiled.seed), at])
        sizes = states[0].total_sizes()
        shape = map_sizes(node.args[1], lambda size: size.value(sizes))  # noqa: B023
        keys = {s: whole_row_keys(s, states) for s in node.meta["type"].spaces}
        found.append(keyed_uniform(node, (rng, shape, node.args[2]), keys))
    return found


def whole_row_keys(space: str, states: Sequence[PartState]) -> Tensor:
    """Keys of all rows of a space in the whole graph's order (rows of a filter keep the order of their parent's)."""
    found = states[0].spaces[space]
    if found.kind != "concat":
        return torch.cat([s.row_keys(space) for s in states]).sort().values
    starts = [0]
    for parent in found.parents:
        starts.append(starts[-1] + states[0].key_bound(parent))
    return torch.cat([whole_row_keys(p, states) + start for p, start in zip(found.parents, starts, strict=False)])


class _Replay(TorchDispatchMode):
    """Answers random operators from a list of draws; empty draws are no draws (dropout of nothing asks for none)."""

    def __init__(self, found: list[Tensor]):
        super().__init__()
        self.left = [draw for draw in found if draw.numel()]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = _ANSWERS.get(func)
        if answer is None:
            return func(*args, **(kwargs or {}))
        schema = func._schema.arguments
        given = {a.name: a.default_value for a in schema if a.has_default_value()}
        given |= {a.name: value for a, value in zip(schema, args, strict=False)} | (kwargs or {})
        return answer(self._draw, given)

    def _draw(self, shape: torch.Size) -> Tensor:
        if not math.prod(shape):
            return torch.empty(shape)
        assert self.left, "the plain module draws more often than the compiled one"
        draw = self.left.pop(0)
        assert draw.shape == shape, f"the plain module draws {list(shape)}, the compiled one drew {list(draw.shape)}"
        return draw


Draw = Callable[[torch.Size], Tensor]
Given = Mapping[str, Any]


def _like(given: Given) -> Tensor:
    """An empty tensor as a factory or `*_like` operator makes it."""
    options = {"dtype": given.get("dtype"), "device": given.get("device")}
    if "self" in given:
        return torch.empty_like(given["self"], **options)
    return torch.empty(given["size"], **options)


def _bernoulli(draw: Draw, given: Given) -> Tensor:
    """1 with probability p: a number, or the operand itself for `torch.bernoulli(probabilities)`."""
    into = given["self"]
    return (draw(into.shape) < given.get("p", into)).to(into.dtype)


def _uniform(draw: Draw, given: Given) -> Tensor:
    into = given["self"]
    return (draw(into.shape) * (given["to"] - given["from"]) + given["from"]).to(into.dtype)


def _rand(draw: Draw, given: Given) -> Tensor:
    like = _like(given)
    return draw(like.shape).to(like.dtype)


def _normal(draw: Draw, shape: torch.Size) -> Tensor:
    """Box and Muller, from two draws."""
    radius = (torch.log1p(-draw(shape)) * -2.0).sqrt()
    return radius * (draw(shape) * (2.0 * torch.pi)).cos()


def _randn(draw: Draw, given: Given) -> Tensor:
    like = _like(given)
    return _normal(draw, like.shape).to(like.dtype)


def _normal_into(draw: Draw, given: Given) -> Tensor:
    into = given["self"]
    return (_normal(draw, into.shape) * given["std"] + given["mean"]).to(into.dtype)


def _exponential(draw: Draw, given: Given) -> Tensor:
    into = given["self"]
    return (torch.log1p(-draw(into.shape)) * (-1.0 / given["lambd"])).to(into.dtype)


def _native_dropout(draw: Draw, given: Given) -> tuple[Tensor, Tensor]:
    x, p = given["input"], given["p"]
    if not given["train"]:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    keep = draw(x.shape) >= p
    return x * keep * (0.0 if p == 1 else 1.0 / (1.0 - p)), keep


def _in_place(make: Callable[[Draw, Given], Tensor]) -> Callable[[Draw, Given], Tensor]:
    return lambda draw, given: given["self"].copy_(make(draw, given))


_ANSWERS = {
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli.p: _bernoulli,
    aten.bernoulli_.float: _in_place(_bernoulli),
    aten.bernoulli_.Tensor: _in_place(_bernoulli),
    aten.rand.default: _rand,
    aten.rand_like.default: _rand,
    aten.randn.default: _randn,
    aten.randn_like.default: _randn,
    aten.uniform.default: _uniform,
    aten.uniform_.default: _in_place(_uniform),
    aten.normal_.default: _in_place(_normal_into),
    aten.exponential.default: _exponential,
    aten.exponential_.default: _in_place(_exponential),
    aten.native_dropout.default: _native_dropout,
}
