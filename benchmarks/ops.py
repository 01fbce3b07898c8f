"""Single operators over edges, x [N, F] at the sources: sums, weighted sums, maximum, and dot products an edge.

    python -m benchmarks.ops

sarc compiles a plain-torch module of the operator; DGL runs its g-SpMM or g-SDDMM, PyG `torch_geometric.utils.scatter`,
torch.sparse a CSR matrix where the operator is a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sarc
from benchmarks.contestants import FORWARD, TRAINING, TRAVERSALS, Case, Contestant, Function, OnGraph
from benchmarks.dgl_graph import dgl_graph, dgl_max
from benchmarks.graphs import Graph
from benchmarks.options import Options, command
from benchmarks.race import COLUMNS, race
from benchmarks.report import Report


@command
def main(options: Options) -> None:
    """Single operators over edges against DGL, PyG, torch.sparse and plain torch."""
    report = Report("operators", options, COLUMNS)
    for case in cases(options):
        race(case, options, report)


@dataclass(frozen=True)
class Operator:
    """One operator and the libraries' forms of it; N nodes, E edges, F = width, H heads.

    Attributes:
        module: plain torch, called with the inputs and edge_index.
        shapes: of the inputs, from N, E, F and H.
        dgl: of the inputs and a DGLGraph.
        pyg: of src, dst, N and the inputs; None where PyG has no operator.
        traversals: as `Case.traversals`.
    """

    module: type[nn.Module]
    shapes: Callable[[int, int, int, int], tuple[tuple[int, ...], ...]]
    dgl: Function
    pyg: Function | None
    traversals: dict[str, tuple[int, int]]


class CopySum(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        return torch.zeros_like(x).index_add(0, dst, x[src])


class WeightedSum(nn.Module):
    """One weight an edge, or one an edge and head: x [N, F] and w [E], or x [N, H, D] and w [E, H]."""

    def forward(self, x: Tensor, w: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        return torch.zeros_like(x).index_add(0, dst, x[src] * w.unsqueeze(-1))


class Maximum(nn.Module):
    """Rows without edges are 0."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        spread = dst.view(-1, 1).expand(-1, x.size(1))
        return torch.zeros_like(x).scatter_reduce(0, spread, x[src], "amax", include_self=False)


class Dot(nn.Module):
    """x at the source times y at the destination, a number an edge."""

    def forward(self, x: Tensor, y: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        return (x[src] * y[dst]).sum(-1)


def operators() -> dict[str, Operator]:
    """The table; DGL and PyG are imported when an entry runs."""
    return {
        "copy sum": Operator(
            CopySum,
            lambda n, e, f, h: ((n, f),),
            lambda x, g: _dgl("copy_u_sum")(g, x),
            lambda src, dst, n, x: _scatter()(x[src], dst, 0, n, "sum"),
            TRAVERSALS,
        ),
        "weighted sum": Operator(
            WeightedSum,
            lambda n, e, f, h: ((n, f), (e,)),
            lambda x, w, g: _dgl("u_mul_e_sum")(g, x, w.unsqueeze(-1)),
            lambda src, dst, n, x, w: _scatter()(x[src] * w.unsqueeze(-1), dst, 0, n, "sum"),
            TRAVERSALS,
        ),
        "heads sum": Operator(
            WeightedSum,
            lambda n, e, f, h: ((n, h, f // h), (e, h)),
            lambda x, w, g: _dgl("u_mul_e_sum")(g, x, w.unsqueeze(-1)),
            lambda src, dst, n, x, w: _scatter()(x[src] * w.unsqueeze(-1), dst, 0, n, "sum"),
            TRAVERSALS,
        ),
        "maximum": Operator(
            Maximum,
            lambda n, e, f, h: ((n, f),),
            lambda x, g: dgl_max(g, x),
            lambda src, dst, n, x: _scatter()(x[src], dst, 0, n, "max"),
            TRAVERSALS,
        ),
        "dot": Operator(
            Dot,
            lambda n, e, f, h: ((n, f), (n, f)),
            lambda x, y, g: _dgl("u_dot_v")(g, x, y).squeeze(-1),
            None,
            # The gradient of y is a sum over the edges of a destination of rows of x.
            {FORWARD: (1, 0), TRAINING: (2, 1)},
        ),
    }


def cases(options: Options) -> Iterator[Case]:
    """One case a graph and operator."""
    for graph in options.graphs():
        for name, operator in operators().items():
            if not options.wants(name):
                continue
            shapes = operator.shapes(graph.num_nodes, graph.num_edges, options.width, options.heads)
            inputs = tuple(torch.empty(shape, requires_grad=True) for shape in shapes)
            plain = OnGraph(operator.module(), graph.edge_index)
            yield Case(
                name,
                graph,
                inputs,
                plain,
                tuple(_contestants(name, operator, graph, plain, options)),
                width=options.width,
                traversals=operator.traversals,
            )


def _contestants(
    name: str, operator: Operator, graph: Graph, plain: Function, options: Options
) -> Iterator[Contestant]:
    yield Contestant(
        "sarc", lambda: OnGraph(sarc.compile(operator.module(), 1, backend=options.backend), graph.edge_index)
    )
    yield Contestant("DGL", lambda: OnGraph(operator.dgl, dgl_graph(graph)))
    if operator.pyg is not None:
        yield Contestant("PyG", lambda: lambda *x: operator.pyg(graph.src, graph.dst, graph.num_nodes, *x))
    if name == "copy sum":
        yield Contestant("torch.sparse", lambda: sparse_sum(graph))
    if name == "weighted sum":
        yield Contestant("torch.sparse", lambda: sparse_weighted_sum(graph), only_forward=True)
    yield Contestant("plain torch", lambda: plain)
    yield Contestant("plain torch + torch.compile", lambda: torch.compile(plain, dynamic=False))


def sparse_sum(graph: Graph) -> Function:
    """A CSR matrix of ones [N, N] times x; its transpose, for the gradient, is made beforehand."""
    into, out = (_csr(graph, edges, torch.ones(graph.num_edges)) for edges in (graph.by_destination, graph.by_source))

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return into @ x

        @staticmethod
        def backward(ctx, d_out: Tensor) -> Tensor:
            return out @ d_out

    return Product.apply


def sparse_weighted_sum(graph: Graph) -> Function:
    """The same with the weights put into the matrix's order at each call."""
    return lambda x, w: _csr(graph, graph.by_destination, w[graph.by_destination.edge]) @ x


def _csr(graph: Graph, edges, values: Tensor) -> Tensor:
    size = (graph.num_nodes, graph.num_nodes)
    return torch.sparse_csr_tensor(edges.start.int(), edges.other, values, size, check_invariants=False)


def _dgl(name: str) -> Function:
    import dgl.ops

    return getattr(dgl.ops, name)


def _scatter() -> Function:
    from torch_geometric.utils import scatter

    return scatter


if __name__ == "__main__":
    main()
