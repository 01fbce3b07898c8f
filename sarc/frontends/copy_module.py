"""A copy of the user's module to trace: the module itself is never touched."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from sarc.errors import UnsupportedModelError


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy of `module`.

    Raises:
        UnsupportedModelError: a lazy parameter or buffer has no shape yet, a module has backward hooks, or an attribute
            cannot be copied.
    """
    check_initialised(module)
    _check_backward_hooks(module)
    try:
        return copy.deepcopy(module)
    except Exception as error:
        holder, culprit = _culprit(module)
        raise UnsupportedModelError(
            f"{holder} cannot be copied: {culprit} ({type(error).__name__}: {error}); capture runs on a copy of the "
            f"model, so as to leave yours alone: expected attributes that copy.deepcopy takes; keep locks, generators, "
            f"open files and results of earlier calls outside the module, or define __deepcopy__"
        ) from error


def check_initialised(module: nn.Module) -> None:
    """UnsupportedModelError when a lazy parameter or buffer has no shape yet."""
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in named:
            if isinstance(tensor, UninitializedTensorMixin):
                raise UnsupportedModelError(
                    f"{kind} {name} is not initialised yet (a lazy module): expected its shape to be known; run the "
                    f"plain model once on any small graph before compiling it"
                )


def _check_backward_hooks(module: nn.Module) -> None:
    for name, child in module.named_modules():
        hooks = (*child._backward_hooks.values(), *child._backward_pre_hooks.values())
        if hooks:
            raise UnsupportedModelError(
                f"{_called(name, child)} has the backward hook {getattr(hooks[0], '__qualname__', hooks[0])}: the "
                f"compiled backward pass does not run through modules; expected forward hooks, hooks of parameters "
                f"(weight.register_hook), or a backward hook on the compiled module itself"
            )


def check_caches(module: nn.Module, counts: Mapping[str, int]) -> None:
    """UnsupportedModelError when a layer holds whole-graph tensors of an earlier call.

    Every part would take such a tensor for one of its own.

    Args:
        counts: N and E of the whole graph; a cached edge set has up to N self loops more.
    """
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            if key in ("_parameters", "_buffers", "_modules") or "cache" not in key:
                continue
            for tensor in pytree.tree_leaves(value):
                if isinstance(tensor, Tensor) and any(_is_whole(length, counts) for length in tensor.shape):
                    raise UnsupportedModelError(
                        f"{_called(name, child)} holds a tensor of shape {list(tensor.shape)} of an earlier call in "
                        f"{key!r}, rows of the whole graph: expected an empty cache; set it to None, or compile before "
                        f"the first plain call: sarc computes such values once a graph by itself"
                    )


def _is_whole(length: int, counts: Mapping[str, int]) -> bool:
    nodes, edges = counts["N"], counts["E"]
    return length > 1 and (length == nodes or edges <= length <= edges + nodes)


def _called(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} {name!r}" if name else type(module).__name__


def _culprit(module: nn.Module) -> tuple[str, str]:
    """The innermost module and attribute that cannot be copied, in words."""
    for name, child in reversed(list(module.named_modules())):
        for key, value in vars(child).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return _called(name, child), f"its attribute {key!r} is a {type(value).__name__}"
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
