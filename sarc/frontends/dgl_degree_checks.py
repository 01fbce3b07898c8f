"""Answers "is there a node without in-edges?" while a graph is recorded.

Many DGL layers begin with `if (graph.in_degrees() == 0).any(): raise DGLError`. The answer belongs to the graph, not to
the program, and a fake tensor cannot give it. `RecordingGraph.in_degrees` therefore marks its result with what is known
of the graph, and `AnswerDegreeChecks`, a TorchFunctionMode active in `redirect_dgl()`, carries the mark through a
comparison with zero and through any() or all(), and answers when Python asks for the truth value. The degrees stay
ordinary tensors throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.overrides import TorchFunctionMode

from sarc.frontends.dgl_refusal import unsupported

_MARK = "_sarc_degree_check"

# Comparisons of degrees, which are whole numbers >= 0, that say "is zero" or "is not zero".
_IS_ZERO = {("eq", 0), ("le", 0), ("lt", 1)}
_IS_NONZERO = {("ne", 0), ("gt", 0), ("ge", 1)}


@dataclass(frozen=True)
class DegreeCheck:
    """What a tensor says about zero in-degrees; `some_zero` is the graph's answer, None when it is not known."""

    stage: Literal["degrees", "is_zero", "is_nonzero", "some_zero", "none_zero"]
    some_zero: bool | None


def mark_degrees(in_degrees: Tensor, some_zero: bool | None) -> Tensor:
    """The same tensor, marked as the in-degrees of a graph that has (True), has not (False) nodes of degree zero."""
    setattr(in_degrees, _MARK, DegreeCheck("degrees", some_zero))
    return in_degrees


class AnswerDegreeChecks(TorchFunctionMode):
    """Answers truth values of marked tensors from the mark; every other call passes through unchanged."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        check = getattr(args[0], _MARK, None) if args and isinstance(args[0], Tensor) else None
        if check is None:
            return func(*args, **kwargs)
        name = func.__name__.strip("_")
        if check.stage in ("some_zero", "none_zero") and name in ("bool", "item"):
            return _answer(check, func, args[0])
        result = func(*args, **kwargs)
        following = _following_stage(check.stage, name, args)
        if following is not None:
            setattr(result, _MARK, DegreeCheck(following, check.some_zero))
        return result


def _following_stage(stage: str, name: str, args: tuple[Any, ...]) -> Any:
    if stage == "degrees" and len(args) == 2 and isinstance(args[1], int):
        if (name, args[1]) in _IS_ZERO:
            return "is_zero"
        if (name, args[1]) in _IS_NONZERO:
            return "is_nonzero"
    if len(args) == 1:
        return {("is_zero", "any"): "some_zero", ("is_nonzero", "all"): "none_zero"}.get((stage, name))
    return None


def _answer(check: DegreeCheck, func: Callable[..., Any], asked: Tensor) -> bool:
    """Case 1: the graph knows. Case 2: it does not, but the tensor holds values. Case 3: neither."""
    if check.some_zero is not None:  # Case 1
        return check.some_zero == (check.stage == "some_zero")
    if type(asked) is Tensor:  # Case 2
        return bool(func(asked))
    raise unsupported(  # Case 3
        "branching on whether a node has no in-edges, with a graph that does not say,",
        "construct the layer with allow_zero_in_degree=True, call dgl.add_self_loop(g) first, or pass "
        "RecordingGraph(..., zero_in_degree=True or False)",
    )
