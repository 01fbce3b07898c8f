"""What an equivalence test runs: a model, the tensors it is called with, and a graph cut into parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sarc

F, D_EDGE, CLASSES, KINDS = 6, 3, 5, 7

# The rows of each column of `columns()`: nodes, edges, or replicated.
SPACES = {
    "x": "N", "x0": "N", "mask": "N", "y": "N", "target": "N", "kind": "N", "node_id": "N", "batch": "N", "perm": "N",
    "degree": "N", "edge_weight": "E", "edge_attr": "E", "edge_mask": "E", "edge_type": "E", "sizes": None,
    "offsets": None,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and how it is called.

    Attributes:
        name: unique among all lists; the test's id.
        make: builds the module (float32; the test casts it).
        inputs: names of the columns it is called with, in order; "argument=column" is passed by keyword.
        draws: whether it draws random numbers in train mode.
        slow: only in the long run (a variant of a case that is not).
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: str = "x edge_index"
    draws: bool = False
    slow: bool = False

    @property
    def arguments(self) -> list[tuple[str, str]]:
        """(keyword or "", column) of each argument."""
        pairs = (word.rpartition("=") for word in self.inputs.split())
        return [(keyword, column) for keyword, _, column in pairs]

    def call(self, module: nn.Module, values: Mapping[str, object]) -> object:
        positional = [values[column] for keyword, column in self.arguments if not keyword]
        return module(*positional, **{keyword: values[column] for keyword, column in self.arguments if keyword})

    def columns_by_name(self, module: nn.Module) -> dict[str, str]:
        """The column passed as each argument of the module's forward, by the argument's name."""
        parameters = list(inspect.signature(module.forward).parameters.values())
        found = {}
        for place, (keyword, column) in enumerate(self.arguments):
            at = parameters[min(place, len(parameters) - 1)]
            variadic = at.kind is inspect.Parameter.VAR_POSITIONAL
            found[keyword or (f"{at.name}{place - len(parameters) + 1}" if variadic else at.name)] = column
        return found

    def spaces(self, module: nn.Module) -> dict[str, str | None]:
        """`sarc.compile(spaces=)` for this call: small graphs may have as many nodes as edges."""
        return {name: SPACES[column] for name, column in self.columns_by_name(module).items() if column in SPACES}


@dataclass(frozen=True)
class Cut:
    """A graph and the owner of each of its nodes.

    Attributes:
        edge_index: int64 [2, E].
        num_nodes: N.
        assignment: int64 [N].
        num_parts: P; parts may be empty.
    """

    edge_index: Tensor
    num_nodes: int
    assignment: Tensor
    num_parts: int

    def partitions(self, graph: object = None):
        """Partitions of the graph, given as `edge_index` or as the DGLGraph `graph`."""
        where = {"num_parts": self.num_parts, "assignment": self.assignment}
        if graph is not None:
            return sarc.partition(graph, **where)
        return sarc.partition(self.edge_index, num_nodes=self.num_nodes, **where)


def multigraph(num_nodes: int = 23, num_edges: int = 90, seed: int = 0) -> Tensor:
    """Directed; with self loops, repeated edges, isolated nodes, and nodes without in-edges or without out-edges."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(0, num_nodes - 2, (num_edges,), generator=generator)
    dst = torch.randint(3, num_nodes - 1, (num_edges,), generator=generator)
    src[:8], dst[:8] = src[8:16].clone(), dst[8:16].clone()
    src[16:20] = dst[16:20]
    return torch.stack([src, dst])


def assign(num_nodes: int, num_parts: int, seed: int = 1) -> Tensor:
    """Random owners; of more than two parts the last has one row, of more than three the one before it is empty."""
    generator = torch.Generator().manual_seed(seed)
    full = num_parts if num_parts < 3 else max(num_parts - 2, 1 if num_parts == 3 else 2)
    owners = torch.randint(0, full, (num_nodes,), generator=generator)
    if num_parts > 2:
        owners[num_nodes // 2] = num_parts - 1
    return owners


def standard_cut(num_parts: int) -> Cut:
    """The multigraph in P parts; for P >= 3 one part is empty and one owns a single row."""
    edge_index = multigraph()
    return Cut(edge_index, 23, assign(23, num_parts), num_parts)


def columns(cut: Cut, dtype: torch.dtype = torch.float64, seed: int = 5) -> dict[str, Tensor]:
    """Every tensor a case may ask for; the same values in each dtype up to rounding."""
    n, e = cut.num_nodes, cut.edge_index.shape[1]
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    def integers(high: int, *size: int) -> Tensor:
        return torch.randint(0, high, size, generator=generator)

    mask = torch.rand(n, generator=generator) < 0.4
    mask[:1] = True
    sizes = torch.bincount(integers(3, n), minlength=3)
    return {
        "edge_index": cut.edge_index,
        "x": normal(n, F),
        "x0": normal(n, F),
        "edge_weight": normal(e).abs() + 0.1,
        "edge_attr": normal(e, D_EDGE),
        "target": normal(n, CLASSES),
        "mask": mask,
        "y": integers(CLASSES, n),
        "kind": integers(KINDS, n),
        "node_id": torch.arange(n),
        "batch": torch.arange(n) * 3 // max(n, 1),
        "perm": torch.randperm(n, generator=generator),
        "degree": torch.bincount(cut.edge_index[1], minlength=n),
        "edge_mask": torch.rand(e, generator=generator) < 0.6,
        "edge_type": integers(3, e),
        "sizes": sizes,
        "offsets": torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
    }
