"""Runs listed models on `elsewhere.DEVICE`: `python -m tests.runtime.elsewhere_models NAME ...`.

What they give is compared with the CPU. A process of its own: a device, once registered, stays.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from sarc.frontends import check_inputs
from tests.equivalence.case import Case, standard_cut
from tests.equivalence.compare import build, compile_case, cotangents, observe, values_for
from tests.equivalence.model_lists import CASES, case_named
from tests.runtime.elsewhere import ElsewhereMode, from_there, to_there


def move(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers on the device."""
    for inner in module.modules():
        for name, parameter in list(inner._parameters.items()):
            if parameter is not None:
                inner._parameters[name] = nn.Parameter(to_there(parameter), parameter.requires_grad)
        for name, buffer in list(inner._buffers.items()):
            if buffer is not None:
                inner._buffers[name] = to_there(buffer)
    return module


# Ways of a step over several parts: at the owners of the edges' destinations and sources, and in between.
WAYS: tuple[dict[str, str], ...] = ({}, {"placement": "src", "exchange": "ring"}, {"placement": "cover"})


def run_there(case: Case, parts: int, way: dict[str, str]) -> dict[str, Tensor | None]:
    """Like `observe`, of the case compiled and called on the device."""
    cut = standard_cut(parts)
    values = values_for(case, cut)
    module = move(build(case).train())
    with ElsewhereMode():
        compiled = compile_case(case, module, cut, values, backend="reference", **way)
        moved = {k: to_there(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        for value in moved.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.requires_grad_()
        leaves = [x for x in pytree.tree_leaves(case.call(compiled, moved)) if isinstance(x, Tensor)]
        given = [to_there(c) for c in cotangents([from_there(x.detach()) for x in leaves])]
        pairs = [(x, c) for x, c in zip(leaves, given, strict=True) if x.requires_grad]
        torch.autograd.backward([x for x, _ in pairs], [c for _, c in pairs])
    found: dict[str, Tensor | None] = {f"output {k}": from_there(x.detach()) for k, x in enumerate(leaves)}
    inside = lambda g: None if g is None else from_there(g)  # noqa: E731
    found |= {f"gradient of parameter {n}": inside(p.grad) for n, p in module.named_parameters()}
    used = {column for _, column in case.arguments}
    found |= {
        f"gradient of input {k}": inside(v.grad)
        for k, v in moved.items()
        if k in used and isinstance(v, Tensor) and v.requires_grad
    }
    return found | {f"buffer {n}": from_there(b) for n, b in module.named_buffers()}


def main(names: list[str]) -> None:
    check_inputs.DEVICES = ("cpu", "elsewhere")
    for name in names or [c.name for group in CASES.values() for c in group if not c.slow and "graph" not in c.inputs]:
        case = case_named(name)
        for parts, way in ((1, {}), *((4, way) for way in WAYS)):
            cut = standard_cut(parts)
            values = values_for(case, cut)
            expected = observe(case, compile_case(case, build(case).train(), cut, values, backend="reference"), values)
            found = run_there(case, parts, way)
            assert found.keys() == expected.keys()
            for key, theirs in expected.items():
                ours = found[key]
                if theirs is None or ours is None:
                    assert ours is theirs, f"{name}, {parts} parts: {key}"
                    continue
                where = f"{name}, {parts} parts: {key}: "
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=where.__add__, equal_nan=True)
            print(f"{name}, {parts} parts {way or ''}: equal", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # autograd's thread of the device has no end of its own
