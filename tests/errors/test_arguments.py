"""Arguments of a call that do not fit the graph, the model or each other; and options of compile and partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sarc
from sarc.errors import GraphError, OptionError, PartitionError
from tests.errors.refusals import EDGES, PARTS, E, F, N, X, check_equal, check_golden, nothing_lost, refusal

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


class Plain(nn.Module):
    """Every kind of argument: features, edges, edge weights, a mask over nodes, a graph number a node, anything."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        w: Tensor | None = None,
        mask: Tensor | None = None,
        batch: Tensor | None = None,
        other: Any = None,
    ) -> Tensor:
        h = self.lin(x)
        message = h[edge_index[0]] if w is None else h[edge_index[0]] * w[:, None]
        out = torch.zeros_like(h).index_add(0, edge_index[1], message)
        if batch is not None:
            return torch.zeros(3, F, dtype=h.dtype).index_add(0, batch, out)
        return out if mask is None else out[mask]


class PassesData(nn.Module):
    def forward(self, data: Any) -> Tensor:
        return data.x


WEIGHTS, MASK, BATCH = torch.rand(E).double(), torch.arange(N) < 5, torch.arange(N) % 3


def adjacency() -> Tensor:
    return torch.sparse_coo_tensor(EDGES, torch.ones(E, dtype=torch.float64), (N, N))


CASES: dict[str, Callable[[], tuple[tuple, dict[str, Any]]]] = {
    "x of N + 1 rows": lambda: ((torch.zeros(N + 1, F).double(), EDGES), {}),
    "x of N - 1 rows": lambda: ((X[1:], EDGES), {}),
    "x transposed": lambda: ((X.t(), EDGES), {}),
    "x of one dimension": lambda: ((X[:, 0], EDGES), {}),
    "x with too many features": lambda: ((torch.cat([X, X], 1), EDGES), {}),
    "x of another dtype": lambda: ((X.float(), EDGES), {}),
    "x of integers": lambda: ((X.long(), EDGES), {}),
    "x of complex numbers": lambda: ((X.to(torch.complex128), EDGES), {}),
    "x sparse": lambda: ((X.to_sparse(), EDGES), {}),
    "x numpy": lambda: ((X.numpy(), EDGES), {}),
    "x on another device": lambda: ((X.to("meta"), EDGES), {}),
    "edge_index [E, 2]": lambda: ((X, EDGES.t().contiguous()), {}),
    "edge_index [3, E]": lambda: ((X, torch.cat([EDGES, EDGES[:1]])), {}),
    "edge_index of floats": lambda: ((X, EDGES.double()), {}),
    "edge_index of uint8": lambda: ((X, EDGES.to(torch.uint8)), {}),
    "edge_index of bools": lambda: ((X, EDGES.bool()), {}),
    "edge_index one edge short": lambda: ((X, EDGES[:, 1:]), {}),
    "edge_index of another graph": lambda: ((X, EDGES.flip(1)), {}),
    "edge_index None": lambda: ((X, None), {}),
    "adjacency coo": lambda: ((X, adjacency()), {}),
    "adjacency csr": lambda: ((X, adjacency().coalesce().to_sparse_csr()), {}),
    "weights one short": lambda: ((X, EDGES, WEIGHTS[1:]), {}),
    "weights a node": lambda: ((X, EDGES, X[:, 0]), {}),
    "mask one short": lambda: ((X, EDGES), {"mask": MASK[1:]}),
    "mask of floats": lambda: ((X, EDGES), {"mask": MASK.double()}),
    "mask of a few ids": lambda: ((X, EDGES), {"mask": torch.tensor([1, 2, 3])}),
    "batch out of range": lambda: ((X, EDGES), {"batch": torch.arange(N) % 4}),
    "batch negative": lambda: ((X, EDGES), {"batch": BATCH - 1}),
    "batch one short": lambda: ((X, EDGES), {"batch": BATCH[1:]}),
    "a set": lambda: ((X, EDGES), {"other": {1, 2}}),
    "a function": lambda: ((X, EDGES), {"other": torch.relu}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str) -> None:
    args, kwargs = CASES[case]()
    model = Plain()
    compiled = sarc.compile(model, PARTS)
    with nothing_lost(model):
        error = refusal(lambda: compiled(*args, **kwargs))
    check_golden("arguments", case, error)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X, EDGES), model(X, EDGES))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, EDGES.int()), {}),
        ((X, EDGES.clone()), {}),
        ((X, EDGES, WEIGHTS), {"mask": MASK}),
        ((X, EDGES), {"mask": torch.zeros(N, dtype=torch.bool)}),
        ((X, EDGES), {"batch": BATCH.int()}),
        ((X, [EDGES[0], EDGES[1]]), {}),
        ((X[:1].expand(N, F), EDGES), {}),
        ((nn.Parameter(X), EDGES), {"other": {"a": [1, 2.0, "b", None, torch.float32]}}),
    ],
)
def test_accepted(args: tuple, kwargs: dict[str, Any]) -> None:
    model = Plain()
    check_equal(sarc.compile(model, PARTS), model, *args, **kwargs)


@pytest.mark.parametrize("args", [(X,), (X, EDGES, *[None] * 9)])
def test_a_call_that_does_not_fit_the_signature_is_a_type_error_as_without_sarc(args: tuple) -> None:
    with pytest.raises(TypeError, match=r"Plain\.forward: (missing|too many)"):
        sarc.compile(Plain(), PARTS)(*args)


def test_objects_say_what_to_pass_instead() -> None:
    data = pytest.importorskip("torch_geometric.data").Data(x=X, edge_index=EDGES)
    check_golden("arguments", "PyG Data", refusal(lambda: sarc.compile(PassesData(), PARTS)(data)))

    class SparseTensor:
        coo = None

    check_golden("arguments", "SparseTensor", refusal(lambda: sarc.compile(PassesData(), PARTS)(SparseTensor())))


def test_pyg_edge_index_subclass_works() -> None:
    edge_index = pytest.importorskip("torch_geometric").EdgeIndex(EDGES, sparse_size=(N, N))
    model = Plain()
    check_equal(sarc.compile(model, PARTS), model, X, edge_index)


def test_as_many_nodes_as_edges_need_spaces() -> None:
    edges = torch.stack([torch.arange(N), (torch.arange(N) + 1) % N])
    parts = sarc.partition(edges, num_nodes=N, num_parts=3, method="contiguous")
    model, weights = Plain(), WEIGHTS[:N]
    check_golden("arguments", "N == E", refusal(lambda: sarc.compile(model, parts)(X, edges, weights)))
    named = sarc.compile(model, parts, spaces={"x": "N", "w": "E"})
    check_equal(named, model, X, edges, weights)


class TableOfEdges(nn.Module):
    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + table.sum(0)


def test_a_table_that_looks_like_rows_can_be_named_replicated() -> None:
    model = TableOfEdges()
    x, table = X.clone().requires_grad_(), torch.rand(E, F).double()
    compiled = sarc.compile(model, PARTS, spaces={"table": None})
    torch.testing.assert_close(compiled(x, table), model(x, table))


@pytest.mark.parametrize(("case", "spaces"), [("unknown argument", {"z": "N"}), ("rows that do not fit", {"x": "E"})])
def test_spaces_that_do_not_fit_the_call(case: str, spaces: dict) -> None:
    check_golden("arguments", f"spaces: {case}", refusal(lambda: sarc.compile(Plain(), PARTS, spaces=spaces)(X, EDGES)))


def nan_assignment() -> Tensor:
    return torch.full((N,), float("nan"))


OPTIONS: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "a function for a model": (OptionError, lambda: sarc.compile(torch.relu, PARTS)),
    "a class for a model": (OptionError, lambda: sarc.compile(Plain, PARTS)),
    "compiled twice": (OptionError, lambda: sarc.compile(sarc.compile(Plain(), PARTS), PARTS)),
    "prefetch negative": (OptionError, lambda: sarc.compile(Plain(), PARTS, prefetch=-1)),
    "prefetch a float": (OptionError, lambda: sarc.compile(Plain(), PARTS, prefetch=0.5)),
    "seed a string": (OptionError, lambda: sarc.compile(Plain(), PARTS, seed="today")),
    "spaces a list": (OptionError, lambda: sarc.compile(Plain(), PARTS, spaces=["x"])),
    "spaces of no such kind": (OptionError, lambda: sarc.compile(Plain(), PARTS, spaces={"x": "M"})),
    "backend unknown": (OptionError, lambda: sarc.compile(Plain(), PARTS, backend="fpga")),
    "exchange unknown": (OptionError, lambda: sarc.compile(Plain(), PARTS, exchange="nccl")),
    "halo_budget negative": (OptionError, lambda: sarc.compile(Plain(), PARTS, halo_budget=-1)),
    "comm_dtype of integers": (OptionError, lambda: sarc.compile(Plain(), PARTS, comm_dtype=torch.int8)),
    "placement unknown": (OptionError, lambda: sarc.compile(Plain(), PARTS, placement="home")),
    "objective unknown": (OptionError, lambda: sarc.compile(Plain(), PARTS, objective="speed")),
    "memory_budget without a unit": (OptionError, lambda: sarc.compile(Plain(), PARTS, memory_budget="8 gigs")),
    "memory_budget negative": (OptionError, lambda: sarc.compile(Plain(), PARTS, memory_budget=-1)),
    "offload to nowhere known": (OptionError, lambda: sarc.compile(Plain(), PARTS, offload="tape")),
    "offload to the CPU from the CPU": (GraphError, lambda: sarc.compile(Plain(), PARTS, offload="cpu")(X, EDGES)),
    "verify what is offloaded": (OptionError, lambda: sarc.compile(Plain(), PARTS, offload="cpu", verify=True)),
    "a directory for the CPU": (OptionError, lambda: sarc.compile(Plain(), PARTS, offload="cpu", offload_dir="/tmp")),
    "offload_dir alone": (OptionError, lambda: sarc.compile(Plain(), PARTS, offload_dir="/tmp")),
    "partitions a string": (PartitionError, lambda: sarc.compile(Plain(), "metis")),
    "partitions an edge list": (PartitionError, lambda: sarc.compile(Plain(), [[0, 1], [1, 0]])),
    "partitions a bool": (PartitionError, lambda: sarc.compile(Plain(), True)),
    "no parts": (PartitionError, lambda: sarc.compile(Plain(), 0)),
    "partition into no parts": (PartitionError, lambda: sarc.partition(EDGES, N, 0)),
    "partition into half parts": (PartitionError, lambda: sarc.partition(EDGES, N, 2.5)),
    "assignment with NaN": (PartitionError, lambda: sarc.partition(EDGES, N, assignment=nan_assignment())),
    "assignment too short": (PartitionError, lambda: sarc.partition(EDGES, N, assignment=BATCH[1:])),
    "assignment out of range": (PartitionError, lambda: sarc.partition(EDGES, N, 2, assignment=BATCH)),
    "assignment negative": (PartitionError, lambda: sarc.partition(EDGES, N, assignment=BATCH - 1)),
    "compile: assignment with NaN": (PartitionError, lambda: sarc.compile(Plain(), nan_assignment())(X, EDGES)),
    "compile: assignment too short": (PartitionError, lambda: sarc.compile(Plain(), BATCH[1:])(X, EDGES)),
    "compile: assignment negative": (PartitionError, lambda: sarc.compile(Plain(), BATCH - 1)(X, EDGES)),
    "compile: a number, and no graph": (GraphError, lambda: sarc.compile(TableOfEdges(), 2)(X, X)),
    "no nodes": (GraphError, lambda: sarc.partition(torch.empty(2, 0, dtype=torch.long), 0, 1)),
    "nodes missing": (GraphError, lambda: sarc.partition(EDGES, num_parts=2)),
    "ids out of range": (GraphError, lambda: sarc.partition(EDGES, N - 1, 2)),
    "ids negative": (GraphError, lambda: sarc.partition(EDGES - 1, N, 2)),
    "graph of floats": (GraphError, lambda: sarc.partition(EDGES.float(), N, 2)),
    "graph [E, 2]": (GraphError, lambda: sarc.partition(EDGES.t(), N, 2)),
    "graph sparse": (GraphError, lambda: sarc.partition(adjacency(), N, 2)),
    "graph a list": (GraphError, lambda: sarc.partition(EDGES.tolist(), N, 2)),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_options_refused(case: str) -> None:
    kind, call = OPTIONS[case]
    error = refusal(call)
    assert type(error) is kind
    check_golden("options", case, error)


def test_numpy_graph_and_assignment_are_accepted() -> None:
    parts = sarc.partition(np.asarray(EDGES), N, assignment=BATCH.numpy())
    model = Plain()
    check_equal(sarc.compile(model, parts), model, X, EDGES)
