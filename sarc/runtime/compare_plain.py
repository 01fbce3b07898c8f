"""Comparison with the plain module: what `sarc.compile(..., verify=True)` does at the first call.

The plain module runs beside the compiled one, on a copy, with the compiled module's random draws; results and buffers
are compared after the forward, gradients in the backward pass, for the same gradients of the results.

Sums come in another order, so numbers differ by rounding. Adding k terms in another order changes a sum by about
sqrt(k) units in the last place; a model chains several sums and divides by small numbers, for which a factor stands.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from sarc.errors import DifferenceError, SarcError
from sarc.partition.shard import ShardGraph

if TYPE_CHECKING:
    from sarc.runtime.module import CompiledModule

AMPLIFICATION = 50
FLOAT64_FLOOR = 1e-10
# Types of 8 to 11 significant bits: a result may be off by this much of the largest one before it is called wrong.
LOW_PRECISION = 0.25


def tolerance(dtype: torch.dtype, terms: int) -> float:
    """Bound on max|a - b| / max(1, max|b|) for sums of at most `terms` terms."""
    if dtype in (torch.float16, torch.bfloat16):
        return LOW_PRECISION
    bound = AMPLIFICATION * math.sqrt(max(terms, 1)) * torch.finfo(dtype).eps
    return max(bound, FLOAT64_FLOOR) if dtype == torch.float64 else bound


@dataclass(frozen=True)
class Difference:
    """One tensor of both modules.

    Attributes:
        name: "output 0", "gradient of conv1.weight", "buffer norm.running_mean".
        largest: max|a - b| / max(1, max|b|), b of the plain module.
        allowed: the tolerance of its dtype.
    """

    name: str
    largest: float
    allowed: float

    @property
    def is_fine(self) -> bool:
        return self.largest <= self.allowed  # NaN is not

    def __str__(self) -> str:
        return f"{self.name}: {self.largest:.1e} (allowed {self.allowed:.1e}){'' if self.is_fine else '   <-- differs'}"


@dataclass
class Comparison:
    """One call of the compiled and of the plain module, compared.

    Attributes:
        differences: results and buffers, then gradients once the backward pass has run.
    """

    model: nn.Module
    mode: str
    terms: int
    differences: list[Difference] = field(default_factory=list)
    _results: list[Tensor] = field(default_factory=list)
    _inputs: dict[str, Tensor] = field(default_factory=dict)

    def run(self, compiled: CompiledModule, call: Callable[[nn.Module], Any], given: Mapping[str, Tensor], out) -> None:
        """Run the plain module and compare results and buffers.

        Args:
            compiled: has just been called.
            call: the same call of another module.
            given: tensor arguments by name.
            out: the compiled module's result.

        Raises:
            DifferenceError: something differs by more than rounding.
        """
        from sarc.runtime.replay import replay

        try:
            with replay(compiled):
                expected = call(self.model)
        except AssertionError as error:
            raise DifferenceError(
                f"verify=True: the plain module does not draw the random numbers that the compiled one drew ({error}); "
                f"expected every draw to come from a PyTorch operator on rows of nodes or edges; compile with "
                f"verify=False, or compare in eval mode"
            ) from error
        mine, theirs = _tensors(out), _tensors(expected)
        if [t.shape for t in mine] != [t.shape for t in theirs]:
            raise DifferenceError(
                f"verify=True: expected results of shapes {[list(t.shape) for t in theirs]} as the plain module gives, "
                f"got {[list(t.shape) for t in mine]}"
            )
        found = [self._difference(f"output {k}", a, b) for k, (a, b) in enumerate(zip(mine, theirs, strict=True))]
        buffers = dict(self.model.named_buffers())
        found += [self._difference(f"buffer {n}", b, buffers[n]) for n, b in compiled.model.named_buffers()]
        self._results = theirs
        self._inputs = {f"param {n}": p for n, p in self.model.named_parameters()}
        self._inputs.update({f"arg {n}": t for n, t in given.items()})
        self._report("results", found)

    def gradients(self, tangents: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
        """Compare gradients, by input; the plain module's are taken for the same `tangents`, by result number.

        Raises:
            DifferenceError: one differs by more than rounding.
        """
        results, self._results = self._results, []
        if not results:
            return  # a second backward through the same call
        pairs = [(results[int(k)], t) for k, t in tangents.items() if results[int(k)].requires_grad]
        names = [name for name in found if self._inputs[name].requires_grad]
        expected: Sequence[Tensor | None] = torch.autograd.grad(
            [r for r, _ in pairs], [self._inputs[n] for n in names], [t for _, t in pairs], allow_unused=True
        )
        self._inputs = {}
        compared = []
        for name, reference in zip(names, expected, strict=True):
            reference = torch.zeros_like(found[name]) if reference is None else reference
            compared.append(self._difference(f"gradient of {name.split(' ', 1)[1]}", found[name], reference))
        self._report("gradients", compared)

    def _difference(self, name: str, actual: Tensor, expected: Tensor) -> Difference:
        if not expected.is_floating_point():
            return Difference(name, 0.0 if torch.equal(actual, expected) else math.inf, 0.0)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else expected.dtype
        return Difference(name, _distance(actual, expected), tolerance(dtype, self.terms))

    def _report(self, what: str, found: list[Difference]) -> None:
        self.differences += found
        wrong = [d for d in found if not d.is_fine]
        lines = [f"verify: {what} of the compiled and the plain module ({self.mode}), max|a - b| / max(1, max|b|)"]
        lines += [f"  {d}" for d in found]
        if wrong:
            listed = "\n".join(lines)
            raise DifferenceError(
                f"the compiled module's numbers are not the plain one's: {len(wrong)} of {len(found)} {what} differ by "
                f"more than rounding, first {wrong[0].name}\n{listed}\nexpected equal numbers up to rounding; if the "
                f"model takes a maximum or a sign of values that are nearly equal, compare in float64 "
                f"(model.double()); if it still differs, this is a defect of sarc: please report it with the output of "
                f"`sarc dump`"
            )
        print("\n".join(lines), file=sys.stderr)


def whole_graph_call(args: tuple, kwargs: dict) -> Callable[[nn.Module], Any]:
    """The same call of a plain module: `shard.graph` stands for the whole edge_index there."""

    def whole(value: Any) -> Any:
        if not isinstance(value, ShardGraph):
            return value
        if value.partitions.graph_kind != "edge_index":
            raise SarcError("verify=True: expected the DGLGraph itself in the call, got shard.graph; pass the graph")
        return value.partitions.edge_index

    args, kwargs = pytree.tree_map(whole, (args, kwargs), is_leaf=lambda v: isinstance(v, ShardGraph))
    return lambda module: module(*args, **kwargs)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _distance(actual: Tensor, expected: Tensor) -> float:
    """max|a - b| / max(1, max|b|); equal infinities and NaNs do not differ."""
    if not expected.numel():
        return 0.0
    a, b = actual.detach().double(), expected.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf)
    scale = b[b.isfinite()].abs().max().clamp(min=1.0) if bool(b.isfinite().any()) else torch.tensor(1.0)
    return float(gap.max() / scale)
