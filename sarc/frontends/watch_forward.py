"""What is watched while the model's forward runs on stand-ins: source lines, Python numbers, gradients switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import TorchFunctionMode

from sarc.errors import UnsupportedModelError
from sarc.frontends.source import current_line
from sarc.ir.source_lines import mark_line


class Question(Exception):
    """The model asks for a Python number: `int(batch.max())`, `bool((deg == 0).any())`."""

    def __init__(self, tensor: Tensor, line: str):
        super().__init__(line)
        self.tensor, self.line = tensor, line


class WatchForward(TorchFunctionMode):
    """Marks operators with the user's line, answers Python numbers taken from tensors, and cuts gradients where the
    model switched them off.

    Args:
        answers: the numbers, in the order the model asks.

    Attributes:
        left_alone: tensors that the model may not write to, by name.
    """

    def __init__(self, answers: Sequence[object]):
        super().__init__()
        self.answers, self.asked = answers, 0
        self.left_alone: dict[str, Tensor] = {}
        self._number: dict[Any, Callable[[Any], Any]] = {
            Tensor.__int__: int,
            Tensor.__bool__: bool,
            Tensor.__float__: float,
            Tensor.__index__: int,
            Tensor.item: lambda value: value,
            Tensor.tolist: lambda value: value,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        line = current_line()
        convert = self._number.get(func)
        if convert is not None:
            if self.asked == len(self.answers):
                raise Question(args[0], line)
            self.asked += 1
            return convert(self.answers[self.asked - 1])
        mark_line(line)
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name.endswith("_") or "out" in (kwargs or {}):
            self._refuse_writes(name, line)
        if not torch.is_grad_enabled() and isinstance(result, Tensor) and result.is_floating_point():
            if not any(isinstance(a, Tensor) and a is result for a in args):
                return result.detach()
        return result

    def _refuse_writes(self, operator: str, line: str) -> None:
        for name, tensor in self.left_alone.items():
            if is_written(tensor):
                raise UnsupportedModelError(
                    f"{line}: {operator} writes to {name} in place: expected a forward that leaves its arguments and "
                    f"parameters as they are; write to a copy (x = x.clone()), or keep state that changes in a buffer"
                )


def is_written(tensor: Tensor) -> bool:
    """Whether a functionalised tensor was written to in place since the trace began."""
    return isinstance(tensor, FunctionalTensor) and torch._functionalize_has_data_mutation(  # type: ignore[attr-defined]
        tensor.elem
    )


@contextmanager
def refuse_autograd_functions() -> Iterator[None]:
    """Inside, calling a torch.autograd.Function is an UnsupportedModelError."""
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls, *args, **kwargs):
        raise UnsupportedModelError(
            f"{current_line()}: {cls.__name__} is a torch.autograd.Function: its hand-written derivative cannot be "
            f"captured; expected ordinary operators: write its forward with torch operations, and let sarc derive them"
        )

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
