"""Blocks: memory that this process writes and others read where it lies.

A block is memory without a name (memfd): its descriptor travels to those who read it, and it is there as long as some
process has it, however the others end. A block is used again when all who were sent a part of it have read that.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

_ROUNDED = 1 << 21
_SLACK = 1.5


@dataclass
class Block:
    """Memory that this process writes.

    Attributes:
        number: of this process's blocks, never used again.
        readers: by rank, number of the last message to it that lies here.
        known: the ranks that have its descriptor.
    """

    number: int
    fd: int
    map: mmap.mmap
    memory: Tensor
    readers: dict[int, int] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)

    def start_of(self, memory: Tensor) -> int:
        """Where a tensor begins in it; -1 when it does not lie here."""
        start = memory.data_ptr() - self.memory.data_ptr()
        return start if 0 <= start < len(self.map) else -1


class Blocks:
    """The blocks of this process.

    Args:
        has_read: the last of the messages to a rank that it has read, with all before.
    """

    def __init__(self, has_read: Callable[[int], int]):
        self._blocks: list[Block] = []
        self._has_read, self._made = has_read, 0

    def empty(self, nbytes: int) -> Tensor:
        """Uninitialised memory uint8 [bytes] in a block that nobody reads any more.

        What it is for is to be sent before the next is asked for.
        """
        fitting = [b for b in self._free() if nbytes <= len(b.map) <= _SLACK * nbytes + _ROUNDED]
        block = min(fitting, key=lambda b: len(b.map)) if fitting else self._new(nbytes)
        block.readers.clear()
        return block.memory[:nbytes]

    def find(self, memory: Tensor) -> Block | None:
        """The block in which a tensor lies."""
        return next((b for b in self._blocks if b.start_of(memory) >= 0), None)

    @property
    def oldest(self) -> int:
        """Number of the oldest block."""
        return self._blocks[0].number if self._blocks else self._made + 1

    @property
    def free_bytes(self) -> int:
        """Bytes of blocks that nobody reads any more."""
        return sum(len(b.map) for b in self._free())

    def release(self) -> None:
        """Give the free blocks back; where others have mapped them, they go with the next message to these."""
        for block in self._free():
            self._close(block)

    def _free(self) -> list[Block]:
        """Oldest first."""
        return [b for b in self._blocks if all(self._has_read(rank) >= last for rank, last in b.readers.items())]

    def _new(self, nbytes: int) -> Block:
        """Free ones go first, so that there is not much more than what is on its way at once."""
        closed = 0
        for block in self._free():
            if closed < nbytes:
                closed += len(block.map)
                self._close(block)
        size = max(1, -(-nbytes // _ROUNDED)) * _ROUNDED
        fd = os.memfd_create("sarc")
        os.ftruncate(fd, size)
        shared = mmap.mmap(fd, size)
        self._made += 1
        self._blocks.append(Block(self._made, fd, shared, torch.frombuffer(shared, dtype=torch.uint8)))
        return self._blocks[-1]

    def _close(self, block: Block) -> None:
        self._blocks.remove(block)
        os.close(block.fd)  # the memory goes with its last view


def map_block(fd: int) -> Tensor:
    """Memory of another process's block, uint8; the descriptor is closed."""
    try:
        return torch.frombuffer(mmap.mmap(fd, os.fstat(fd).st_size), dtype=torch.uint8)
    finally:
        os.close(fd)
