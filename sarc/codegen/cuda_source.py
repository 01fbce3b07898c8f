"""CudaSource: a generated CUDA kernel and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass

from sarc.codegen.cuda_prelude import FUNCTIONS, RUNTIME
from sarc.codegen.pack import Pack


@dataclass(frozen=True)
class Shape:
    """How a kind of rows is visited: lanes of a group, and edges of a block."""

    lanes: int
    edges: int


@dataclass(frozen=True)
class CudaSource:
    """One kernel: a traversal of a block of edges.

    Attributes:
        name: symbol of the launcher.
        kernel: the kernel and its launcher, for any target.
        order: index of the column that groups the edges, or None for edge order.
        results: indices of the program's results that this kernel makes.
        draws: whether it reads row keys.
        exact: whether products and sums must not be contracted.
        packs: tables it reads instead of the operands that they hold.
        threads: of a block.
        long, short: how long and short rows are visited; `short` is None where all rows but hubs are long ones.
        widest: features of its widest value of an edge.
    """

    name: str
    kernel: str
    order: int | None
    results: tuple[int, ...]
    draws: bool
    exact: bool
    packs: tuple[Pack, ...]
    threads: int
    long: Shape
    short: Shape | None
    widest: int

    @property
    def has_hubs(self) -> bool:
        """Whether several groups of a block may visit one row."""
        return self.order is not None and self.threads > self.long.lanes

    @property
    def text(self) -> str:
        """The translation unit for nvcc."""
        return RUNTIME + FUNCTIONS + self.kernel
