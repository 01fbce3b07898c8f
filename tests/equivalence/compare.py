"""Run a module, collect everything the promise is about, and compare two such collections."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import sarc
from sarc.runtime.module import CompiledModule
from sarc.runtime.replay import replay
from tests.equivalence.case import Case, Cut, columns
from tests.equivalence.tolerances import error, tolerance

Observed = dict[str, Tensor | None]


def observe(case: Case, module: nn.Module, values: Mapping[str, object], gradients: bool = True) -> Observed:
    """Outputs, gradients of parameters and of float inputs for fixed random cotangents, and buffers, by name."""
    fresh = {
        k: v.detach().clone().requires_grad_(gradients) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in values.items()
    }
    module.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(gradients):
        result = case.call(module, fresh)
    leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    found: Observed = {f"output {k}": leaf.detach() for k, leaf in enumerate(leaves)}
    pairs = [(o, c) for o, c in zip(leaves, cotangents(leaves), strict=True) if o.requires_grad]
    if pairs:
        torch.autograd.backward([o for o, _ in pairs], [c for _, c in pairs])
        found |= {f"gradient of parameter {n}": p.grad for n, p in module.named_parameters()}
        used = {column for _, column in case.arguments}
        found |= {f"gradient of input {k}": fresh[k].grad for k in sorted(used) if _is_leaf(fresh[k])}
    found |= {f"buffer {n}": b.clone() for n, b in module.named_buffers()}
    return found


def cotangents(leaves: Sequence[Tensor]) -> list[Tensor]:
    """The fixed random cotangent of each result."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in leaves]


def _is_leaf(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def worst(actual: Observed, expected: Observed) -> tuple[float, str]:
    """The largest error and what has it."""
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    errors = {name: error(actual[name], expected[name]) for name in expected}
    name = max(errors, key=lambda n: errors[n])
    return errors[name], name


def assert_same(actual: Observed, expected: Observed, dtype: torch.dtype = torch.float64) -> None:
    found, name = worst(actual, expected)
    assert found <= tolerance(dtype), f"{name}: error {found:.2e}, allowed {tolerance(dtype):.0e}"


def build(case: Case, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The case's module with the same parameters every time."""
    torch.manual_seed(0)
    return case.make().to(dtype)


def compile_case(case: Case, module: nn.Module, cut: Cut, values: Mapping[str, object], **settings) -> CompiledModule:
    partitions = cut.partitions(values.get("graph"))
    return sarc.compile(module, partitions, spaces=case.spaces(module), seed=3, **settings)


def values_for(case: Case, cut: Cut, dtype: torch.dtype = torch.float64) -> dict[str, object]:
    """The columns of a cut, with a DGLGraph when the case asks for one."""
    values: dict[str, object] = dict(columns(cut, dtype))
    if "graph" in case.inputs.split():
        import dgl

        values["graph"] = dgl.graph((cut.edge_index[0], cut.edge_index[1]), num_nodes=cut.num_nodes)
    return values


def check_mode(case: Case, plain: nn.Module, compiled: CompiledModule, values, *, train: bool, gradients: bool) -> None:
    """One call of each in one mode, compared; random draws of the compiled call are replayed in the plain one."""
    dtype = values["x"].dtype
    plain.train(train)
    compiled.train(train)
    actual = observe(case, compiled, values, gradients)
    with replay(compiled):
        expected = observe(case, plain, values, gradients)
    assert_same(actual, expected, dtype)


def pair(
    case: Case, cut: Cut, dtype: torch.dtype = torch.float64, **settings
) -> tuple[nn.Module, CompiledModule, dict[str, object]]:
    """The plain module, an equal one compiled, and the tensors to call them with."""
    plain = build(case, dtype)
    values = values_for(case, cut, dtype)
    return plain, compile_case(case, copy.deepcopy(plain), cut, values, **settings), values
