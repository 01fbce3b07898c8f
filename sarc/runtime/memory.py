"""Pool: memory of large tensors, used again from one step to the next.

A fresh large tensor costs more than filling it: the operating system hands out its pages one fault at a time, zeroed. A
step allocates the same sizes every time, so blocks are kept when their tensors die and handed out again. A block is in
use as long as anything shares its storage, a user's view too: it returns when the storage itself is gone.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.fx as fx
from torch import Tensor

from sarc.ir.dialect import WIDEN_ROWS, widen_rows_into
from sarc.ir.products import multiply_into

SMALLEST = 1 << 20
# Operators whose result is written by functions of sarc.
_WRITTEN_INTO: dict[Any, Callable[..., Tensor]] = {
    WIDEN_ROWS: widen_rows_into,
    torch.ops.aten.mm.default: multiply_into,
}
_ALIGNMENT = 1 << 21  # of huge pages
# A block may be so many times as large as what is put into it; the second where memory counts more than time.
_SLACK, _TIGHT_SLACK = 1.5, 1.06
_CPU = torch.device("cpu")


class Source(Protocol):
    """Where a pool's memory comes from."""

    def map(self, nbytes: int) -> mmap.mmap: ...

    def rest(self, block: mmap.mmap) -> None: ...


class Anonymous:
    """Memory of the system."""

    def map(self, nbytes: int) -> mmap.mmap:
        # Private: shared memory gets no huge pages and escapes RLIMIT_DATA.
        block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        huge = (nbytes - _ALIGNMENT) // _ALIGNMENT * _ALIGNMENT
        # Not the last piece: a huge page that is begun is there whole, for a small tensor as much again.
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE, _aligned(block), huge)
        return block

    def rest(self, block: mmap.mmap) -> None:
        """Nothing: what is in memory stays there."""


class Pool:
    """Blocks of memory for CPU tensors of at least 1 MiB.

    Args:
        source: where blocks come from; None: memory of the system.
        keeps: whether free blocks outlive a pass; else the caller's loss and optimizer find their room.

    Free blocks are given back to the system, longest unused first, before a new one would make the pool grow: it holds
    no more than what was alive at once, up to the difference between a block and what is put into it.
    """

    def __init__(self, source: Source | None = None, keeps: bool = True) -> None:
        self._source, self._keeps = source or Anonymous(), keeps
        self._slack = _SLACK if keeps else _TIGHT_SLACK
        self._free: list[mmap.mmap] = []
        self._used: dict[int, mmap.mmap] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes of blocks that no tensor uses."""
        return sum(len(block) for block in self._free)

    def release(self) -> None:
        """Give the free blocks back to the system."""
        self._free.clear()

    def keep_free(self, nbytes: int) -> None:
        """Give free blocks back to the system, longest unused first, until they have at most `nbytes`."""
        free = sum(map(_room, self._free))
        while free > nbytes:
            free -= _room(self._free.pop(0))

    def rest(self) -> None:
        """After a pass: what is in use moves to where the source keeps what is not needed soon; see also `keeps`."""
        if not self._keeps:
            self.release()
        for block in list(self._used.values()):
            self._source.rest(block)

    def empty(self, lengths: Sequence[int], dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
        """An uninitialised tensor; small ones are ordinary tensors, and those of a GPU, whose memory torch keeps."""
        nbytes = math.prod(lengths) * dtype.itemsize
        if nbytes < SMALLEST or device.type != "cpu":
            return torch.empty(lengths, dtype=dtype, device=device)
        block = self._take(nbytes)
        lease = (ctypes.c_uint8 * nbytes).from_buffer(block, _aligned(block))
        # The storage keeps `lease` alive, and nothing else does.
        self._used[id(block)] = block
        weakref.finalize(lease, self._give_back, block).atexit = False
        return torch.frombuffer(lease, dtype=dtype).view(*lengths)

    def _give_back(self, block: mmap.mmap) -> None:
        del self._used[id(block)]
        self._free.append(block)

    def _take(self, nbytes: int) -> mmap.mmap:
        fitting = [b for b in self._free if nbytes <= _room(b) <= self._slack * nbytes]
        if fitting:
            block = min(fitting, key=len)
            self._free.remove(block)
            return block
        released = 0
        while self._free and released < nbytes:
            released += len(self._free[0])
            self._free.pop(0)
        return self._source.map(nbytes + _ALIGNMENT)


def _room(block: mmap.mmap) -> int:
    return len(block) - _ALIGNMENT


def _aligned(block: mmap.mmap) -> int:
    """Offset in the block of the first address that huge pages can start at."""
    address = ctypes.addressof(ctypes.c_uint8.from_buffer(block))
    return -address % _ALIGNMENT


def compute_into(node: fx.Node, args: Any, kwargs: Any, pool: Pool, lengths: Sequence[int]) -> Tensor | None:
    """The call's result in memory of the pool; None where it is small or the operator cannot be told where to write.

    Args:
        lengths: of the result.
    """
    type_ = node.meta["type"]
    if math.prod(lengths) * type_.dtype.itemsize < SMALLEST:
        return None
    write = writing_form(node.target)
    return None if write is None else write(*args, **kwargs, out=pool.empty(lengths, type_.dtype))


@functools.cache
def writing_form(target: Any) -> Callable[..., Tensor] | None:
    """The form of an operator that writes into `out`, or None."""
    if target in _WRITTEN_INTO:
        return _WRITTEN_INTO[target]
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten" or len(target._schema.returns) != 1:
        return None
    if any(r.alias_info is not None for r in target._schema.returns):
        return None  # a view
    wanted = [a.name for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        found = getattr(target.overloadpacket, name)
        given = [a.name for a in found._schema.arguments]
        types = [str(a.type) for a in found._schema.arguments[: len(wanted)]]
        if given == [*wanted, "out"] and types == [str(a.type) for a in target._schema.arguments]:
            return found
    return None
