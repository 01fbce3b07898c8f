"""Whether a rewritten program computes what the one it was made from does: values and gradients, on a multigraph."""

from __future__ import annotations

import torch
from torch import Tensor

from sarc.ir.interpret import interpret
from sarc.ir.parse import parse_program
from sarc.ir.program import Program, type_of
from sarc.ir.space import Rows, ValueType
from sarc.ir.verify import verify

# Nodes 0, 5 and 6 have no in-edges, 4 and 6 no out-edges; edges repeat and loop.
SRC = torch.tensor([0, 0, 1, 1, 2, 3, 3, 5, 2, 1])
DST = torch.tensor([1, 1, 1, 2, 3, 4, 3, 4, 2, 4])
SIZES = {"N": 7, "E": 10}
NO_EDGES = {"N": 7, "E": 0}

# Sums of ten float64 terms in another order.
TOLERANCE = 1e-12


def program(lines: str, spaces: str = "space N = nodes\nspace E = edges on edges\n") -> Program:
    """The raised program of these lines."""
    return verify(parse_program(f"program raised\n{spaces}{lines}"))


def columns(sizes: dict[str, int]) -> dict[str, Tensor]:
    return {"src": SRC[: sizes["E"]], "dst": DST[: sizes["E"]], "rng": torch.tensor([3, 5])}


def draw(type_: ValueType, generator: torch.Generator, sizes: dict[str, int]) -> Tensor:
    """A leaf of normal numbers."""
    shape = [sizes[d.space] * d.before * d.after if isinstance(d, Rows) else d for d in type_.dims]
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(type_.dtype).requires_grad_()


def values_and_gradients(found: Program, sizes: dict[str, int]) -> dict[str, Tensor]:
    """What the program returns for drawn inputs, and the gradient of each of these for fixed cotangents."""
    generator = torch.Generator().manual_seed(0)
    known = columns(sizes)
    inputs = {
        e.name: known[e.name] if e.name in known else draw(type_of(node), generator, sizes)
        for node, e in zip(found.placeholders, found.inputs, strict=True)
    }
    results = interpret(found, list(inputs.values()), dict(sizes))
    cotangents = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    torch.autograd.backward(results, cotangents)
    out = {f"result {k}": r.detach() for k, r in enumerate(results)}
    real = {k: v for k, v in inputs.items() if v.requires_grad}
    return out | {f"gradient of {k}": torch.zeros_like(v) if v.grad is None else v.grad for k, v in real.items()}


def assert_same_numbers(after: Program, before: Program) -> None:
    """On a directed multigraph with empty rows, and on one without edges."""
    for sizes in (SIZES, NO_EDGES):
        actual, expected = values_and_gradients(verify(after), sizes), values_and_gradients(before, sizes)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert value.isfinite().all(), name
            scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
            assert torch.allclose(actual[name], value, rtol=0, atol=TOLERANCE * scale), name


def targets(found: Program) -> list[str]:
    """The operators in order, without their namespace and overload."""
    return [str(n.target).split(".")[1] for n in found.graph.nodes if n.op == "call_function"]
