"""A copy of the user's module to trace: the module itself is never touched."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from sarc.errors import UnsupportedModelError


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy of `module`.

    Raises:
        UnsupportedModelError: a lazy parameter or buffer has no shape yet, or an attribute cannot be copied.
    """
    _check_initialised(module)
    try:
        return copy.deepcopy(module)
    except Exception as error:
        holder, culprit = _culprit(module)
        raise UnsupportedModelError(
            f"{holder} cannot be copied: {culprit} ({type(error).__name__}: {error}); capture runs on a copy of the "
            f"model, so as to leave yours alone: expected attributes that copy.deepcopy takes; keep locks, generators, "
            f"open files and results of earlier calls outside the module, or define __deepcopy__"
        ) from error


def _check_initialised(module: nn.Module) -> None:
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in named:
            if isinstance(tensor, UninitializedTensorMixin):
                raise UnsupportedModelError(
                    f"{kind} {name} is not initialised yet (a lazy module): expected its shape to be known; run the "
                    f"plain model once on any small graph before compiling it"
                )


def _culprit(module: nn.Module) -> tuple[str, str]:
    """The innermost module and attribute that cannot be copied, in words."""
    for name, child in reversed(list(module.named_modules())):
        for key, value in vars(child).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                where = f"{type(child).__name__} {name!r}" if name else type(child).__name__
                return where, f"its attribute {key!r} is a {type(value).__name__}"
    return type(module).__name__, "copy.deepcopy fails"


def named_tensors(module: nn.Module, kind: str, keep: bool = False) -> dict[str, Tensor]:
    """Parameters or buffers by name; a tensor shared by several modules appears once, under its first name."""
    if kind == "parameters":
        return dict(module.named_parameters())
    return dict(module.named_buffers(remove_duplicate=not keep))


def place_tensors(module: nn.Module, slot: str, originals: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Put `values` where the tensors of `originals` are held (under every name a shared tensor has)."""
    by_id = {id(t): values[name] for name, t in originals.items()}
    for child in module.modules():
        held = getattr(child, slot)
        for key, tensor in list(held.items()):
            if tensor is not None and id(tensor) in by_id:
                held[key] = by_id[id(tensor)]
