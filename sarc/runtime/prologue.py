"""Prologue: what is made of data alone, once a feature matrix, and whether the matrix is still the same.

Sums over neighbours of data, and rows of data that other parts hold. Ranks agree on whether it holds: making it takes
all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sarc.ir.program import Input, Program
from sarc.ir.schedule import Schedule

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Feature:
    """A tensor that something was made of, as it was then; kept, so that its storage is not used again.

    Attributes:
        tensor: it.
        version: number of its in-place changes.
        checksum: see `checksum`.
    """

    tensor: Tensor
    version: int
    checksum: tuple[int, int]

    @classmethod
    def of(cls, tensor: Tensor) -> Feature:
        return cls(tensor.detach(), _version(tensor), checksum(tensor))

    def is_still(self, now: Tensor | None) -> bool:
        """Whether a tensor has the values that this one had."""
        if now is None or now.shape != self.tensor.shape or now.dtype != self.tensor.dtype:
            return False
        then = self.tensor
        if now.device != then.device:
            return False
        if _version(then) != self.version or checksum(then) != self.checksum:
            return False  # changed in place; the sum tells where the version does not, as behind .data and NumPy's back
        same = now.data_ptr() == then.data_ptr() and now.stride() == then.stride()
        return same or torch.equal(now, then)


def checksum(tensor: Tensor) -> tuple[int, int]:
    """Two sums of the bits of a tensor: plain, and weighted by row, so that rows that change places are noticed."""
    if not tensor.numel():
        return 0, 0
    flat = tensor.detach().contiguous()
    if flat.is_complex():
        flat = torch.view_as_real(flat)
    bits = flat.view(_INTEGERS[flat.element_size()]) if flat.dim() else flat.reshape(1)
    rows = bits.reshape(bits.shape[0], -1).sum(1, dtype=torch.int64)
    return int(rows.sum()), int((rows * torch.arange(1, rows.numel() + 1, device=rows.device)).sum())


def _version(tensor: Tensor) -> int:
    """Number of in-place changes; inference tensors are not counted."""
    return -1 if tensor.is_inference() else tensor._version


@dataclass
class Prologue:
    """The data program of a binding, and what it made.

    Attributes:
        program: the partitioned program.
        schedules: of each hosted part.
        kernels: compiled edge programs, by name.
        features: what `values` were made of, by input; empty before.
        values: of each hosted part, by name.
    """

    program: Program
    schedules: list[Schedule]
    kernels: Mapping[str, Any]
    features: dict[Input, Feature] = field(default_factory=dict)
    values: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def read(self) -> list[Input]:
        """The data that the program reads."""
        types = zip(self.program.placeholders, self.program.inputs, strict=True)
        return [e for n, e in types if e.kind == "arg" and n.meta["type"].dtype.is_floating_point]

    def holds(self, values: Mapping[Input, Tensor | None]) -> bool:
        """Whether what was made is of these values."""
        return bool(self.values) and all(self.features[e].is_still(values[e]) for e in self.read)

    def enter(self, values: Mapping[Input, Tensor | None], made: Sequence[Sequence[Tensor]]) -> None:
        """Keep what the parts made of `values`."""
        found = {e: values[e] for e in self.read}
        self.features = {e: Feature.of(v) for e, v in found.items() if v is not None}
        names = [o.name for o in self.program.outputs]
        self.values = [dict(zip(names, each, strict=True)) for each in made]

    @property
    def kept_bytes(self) -> int:
        """Bytes kept by this process."""
        return sum(t.nbytes for each in self.values for t in each.values())
