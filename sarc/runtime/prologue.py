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

_WORD = 8  # bytes; a sum of 64-bit integers runs at memory speed, one that widens its terms at a thirtieth of it
_LINE = 64  # words


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
    checksum: tuple[int, int, int]

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


def checksum(tensor: Tensor) -> tuple[int, int, int]:
    """Sums of a tensor's words of 8 bytes, in lines of 64: over lines, over places in a line, and over what is left.

    Each weighted by its position, so that words and lines that change places are noticed.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.storage_offset() * flat.element_size() % _WORD:
        flat = flat.clone()
    content = flat.view(torch.uint8)
    whole = content.numel() - content.numel() % (_WORD * _LINE)
    lines = content[:whole].view(torch.int64).reshape(-1, _LINE)
    return _weighted(lines.sum(1)), _weighted(lines.sum(0)), _weighted(content[whole:].to(torch.int64))


def _weighted(sums: Tensor) -> int:
    return int((sums * torch.arange(1, sums.numel() + 1, device=sums.device)).sum())


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
