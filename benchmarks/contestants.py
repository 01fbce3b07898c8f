"""Contestants: several ways to compute one thing, each checked against plain torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.graphs import Graph

Function = Callable[..., Tensor]
Step = Callable[[], object]
FORWARD, TRAINING = "forward", "forward+backward"
TRAVERSALS = {FORWARD: (1, 0), TRAINING: (1, 1)}


@dataclass(frozen=True)
class Contestant:
    """One way to compute a case.

    Attributes:
        name: as in the tables: "sarc", "DGL", "PyG".
        build: imports, sorts, compiles, and returns what the case calls; not timed.
        only_forward: whether it has no backward pass.
    """

    name: str
    build: Callable[[], Function]
    only_forward: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """A function of float32 tensors that all contestants compute, forward and forward+backward.

    Attributes:
        name: as in the tables and for `--only`.
        graph: of its edges.
        inputs: leaves; those that require gradients are differentiated.
        reference: plain torch.
        contestants: in the order of the table; all use the same `parameters`.
        parameters: differentiated as well.
        width: floats of a gathered row; 0 when no roof applies.
        traversals: by pass, how often every edge must read such a row (by destination, by source).
        tolerance: of `error`. The default leaves room for float32 sums of thousands of terms in another order.
    """

    name: str
    graph: Graph
    inputs: tuple[Tensor, ...]
    reference: Function
    contestants: tuple[Contestant, ...]
    parameters: tuple[Tensor, ...] = ()
    width: int = 0
    traversals: Mapping[str, tuple[int, int]] = field(default_factory=lambda: TRAVERSALS)
    tolerance: float = 1e-4

    def refresh(self, seed: int) -> None:
        """Draw the inputs anew, in place: standard normal times 1/2, so that a softmax has several large terms."""
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for x in self.inputs:
                x.normal_(0.0, 0.5, generator=random)

    @property
    def wrt(self) -> list[Tensor]:
        """What gradients are taken of."""
        return [x for x in (*self.inputs, *self.parameters) if x.requires_grad]

    @functools.cached_property
    def cotangent(self) -> Tensor:
        """What the backward pass starts from, in the shape of the result."""
        with torch.no_grad():
            shape = self.reference(*self.inputs).shape
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def steps(self, function: Function) -> dict[str, Step]:
        """By pass: one forward pass without gradients; one with the gradients of inputs and parameters."""

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*self.inputs)

        def training() -> tuple[Tensor, ...]:
            return torch.autograd.grad(function(*self.inputs), self.wrt, self.cotangent)

        return {FORWARD: forward, TRAINING: training}

    def error(self, function: Function, only_forward: bool = False) -> float:
        """Largest ||a - b|| / ||b|| over the result and all gradients, b from the reference, for inputs of seed 0.

        A gradient below 1e-3 of the largest one counts as that long: some are zero but for rounding, as that of a key's
        bias, which a softmax does not see.
        """
        self.refresh(0)
        found, expected = self._values(function, only_forward), self._expected
        floor = 1e-3 * max((float(b.norm()) for b in expected[1:]), default=0.0)
        return max(distance(a, b, floor if k else 0.0) for k, (a, b) in enumerate(zip(found, expected)))

    @functools.cached_property
    def _expected(self) -> list[Tensor]:
        return self._values(self.reference, False)

    def _values(self, function: Function, only_forward: bool) -> list[Tensor]:
        steps = self.steps(function)
        found = [steps[FORWARD]().clone()]  # a contestant may use its buffers again
        return found if only_forward else found + [x.clone() for x in steps[TRAINING]()]


class OnGraph(nn.Module):
    """A module called with a graph as its last argument, as a function of the other arguments."""

    def __init__(self, module: Function, graph: object):
        super().__init__()
        self.module, self.graph = module, graph

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs, self.graph)


def distance(got: Tensor, expected: Tensor, floor: float) -> float:
    """||got - expected|| / ||expected||, whose denominator is at least `floor`; infinite where that is no number."""
    if got.shape != expected.shape:
        raise ValueError(f"expected a tensor {list(expected.shape)}, got {list(got.shape)}")
    found = float((got - expected).norm() / expected.norm().clamp(min=max(floor, 1e-30)))
    return found if math.isfinite(found) else math.inf
