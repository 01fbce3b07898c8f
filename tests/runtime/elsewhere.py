"""A device that is none: tensors that say they are on "elsewhere", and refuse to meet the CPU's as a GPU's would.

Inside are CPU tensors. Operators that make tensors, move them or take tensors of both devices behave as on a machine
with a GPU: what a program makes on the wrong device raises at the operator that meets it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
import torch.utils.backend_registration
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Module(torch.utils.backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


torch.utils.backend_registration._setup_privateuseone_for_python_backend("elsewhere", _Module())
DEVICE = torch.device("elsewhere", 0)


class Elsewhere(Tensor):
    """A tensor on `DEVICE`; `inside` holds its values."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, inside.size(), strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.inside = inside
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inside})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class ElsewhereMode(TorchDispatchMode):
    """Tensors made with `device=DEVICE` are there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


def dispatch(func, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on what is inside; RuntimeError where devices mix."""
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in leaves if isinstance(x, Elsewhere)]
    here = [x for x in leaves if not isinstance(x, Elsewhere) and x.dim() > 0]
    if there and here and func not in MOVES:
        raise RuntimeError(f"{func}: expected all tensors on {DEVICE}, but found {len(here)} on cpu")
    wanted = kwargs.get("device")
    on_device = bool(there) if wanted is None else torch.device(wanted).type == DEVICE.type
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], Elsewhere)
    plain_args, plain = pytree.tree_map_only(Elsewhere, lambda x: x.inside, (args, kwargs))
    if wanted is not None and on_device:
        plain = {**plain, "device": torch.device("cpu")}
    given = {id(x.inside): x for x in there}
    result = func(*plain_args, **plain)
    wrap = lambda x: given[id(x)] if id(x) in given else Elsewhere(x) if on_device else x  # noqa: E731
    return pytree.tree_map_only(Tensor, wrap, result)


def to_there(x: Tensor) -> Tensor:
    """A leaf on the device, with the gradient's requirement of `x`."""
    return Elsewhere(x.detach().clone()).requires_grad_(x.requires_grad)


def from_there(x: Tensor) -> Tensor:
    assert isinstance(x, Elsewhere), "a result on the CPU"
    return x.inside
