"""A layer on a RecordingGraph computes what it computes on the dgl.DGLGraph: outputs, gradients, captured for any size."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import dgl
import dgl.function as fn
import dgl.nn.functional
import numpy as np
import pytest
import torch
from dgl import add_self_loop, reverse
from dgl.nn import pytorch as dnn
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from sarc.errors import GraphError, UnsupportedModelError
from sarc.frontends.dgl import RecordingGraph, record_graph, redirect_dgl
from sarc.frontends.dgl_degree_checks import AnswerDegreeChecks

THIS_FILE = __file__
F, D_EDGE = 6, 5
# float64 sums of a few dozen terms in another order
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}  # nan: EGNNConv differentiates sqrt(0) at self loops


# ---- graphs and data ----------------------------------------------------------------------------------------------------


def multigraph(num_nodes: int = 23, num_edges: int = 90, zero_in_degree: bool = True, seed: int = 0) -> dgl.DGLGraph:
    """Self loops and repeated edges; with `zero_in_degree`, also isolated nodes and nodes without in-edges."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(0, num_nodes - 2, (num_edges,), generator=generator)
    dst = torch.randint(3, num_nodes - 2, (num_edges,), generator=generator)
    src[:4], dst[:4] = torch.tensor([5, 5, 5, 7]), torch.tensor([5, 5, 9, 7])
    src[4], dst[4] = 5, 9
    graph = dgl.graph((src, dst), num_nodes=num_nodes)
    return graph if zero_in_degree else dgl.add_self_loop(graph)


def data_for(num_nodes: Any, num_edges: Any) -> SimpleNamespace:
    """Columns in node space (x, x0, coord, eig, ntype) and edge space (weight > 0, ef, pseudo, etype)."""

    def uniform(*size: Any) -> Tensor:
        return torch.rand(size, dtype=torch.float64) * 2 - 1

    return SimpleNamespace(
        x=uniform(num_nodes, F),
        x0=uniform(num_nodes, F),
        coord=uniform(num_nodes, 3),
        eig=uniform(num_nodes, 3),
        weight=uniform(num_edges).abs() + 0.1,
        ef=uniform(num_edges, D_EDGE),
        pseudo=uniform(num_edges, 2),
        ntype=torch.randint(0, 2, (num_nodes,)),
        etype=torch.randint(0, 3, (num_edges,)),
    )


def outputs_of(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


class Case(nn.Module):
    """A layer and how it is called."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Any, Any], Any] | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.call = call or (lambda layer, g, d: layer(g, d.x))

    def forward(self, graph: Any, columns: SimpleNamespace) -> list[Tensor]:
        return outputs_of(self.call(self.layer, graph, columns))


def run(case: Case, graph: Any, columns: SimpleNamespace) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs, and gradients of a fixed random functional of them with respect to parameters and float columns."""
    columns = SimpleNamespace(
        **{k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in vars(columns).items()}
    )
    outputs = case(graph, columns)
    generator = torch.Generator().manual_seed(7)
    objective = sum((out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in outputs)
    wanted = [*case.parameters(), *(v for v in vars(columns).values() if v.requires_grad)]
    return outputs, list(torch.autograd.grad(objective, wanted, allow_unused=True))


def assert_same_as_dgl(case: Case, zero_in_degree: bool = True) -> None:
    case = case.double()
    graph = multigraph(zero_in_degree=zero_in_degree)
    columns = data_for(graph.num_nodes(), graph.num_edges())
    expected, expected_grads = run(copy.deepcopy(case), graph, columns)
    with redirect_dgl():
        outputs, grads = run(copy.deepcopy(case), record_graph(graph), columns)
    for actual, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(actual, reference, **TOLERANCE)
    assert any(reference is not None for reference in expected_grads)
    for actual, reference in zip(grads, expected_grads, strict=True):
        if reference is None or actual is None:  # DGL gives zeros where there is no path
            assert all(grad is None or not grad.any() for grad in (actual, reference))
        else:
            torch.testing.assert_close(actual, reference, **TOLERANCE)


# ---- layers -------------------------------------------------------------------------------------------------------------


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


AGGREGATORS = ["mean", "max", "min", "sum", "std", "var", "moment3", "moment4"]
SCALERS = ["identity", "amplification", "attenuation"]
weighted = lambda layer, g, d: layer(g, d.x, edge_weight=d.weight)  # noqa: E731
attended = lambda layer, g, d: layer(g, d.x, get_attention=True)  # noqa: E731
with_ef = lambda layer, g, d: layer(g, d.x, d.ef)  # noqa: E731
ok = {"allow_zero_in_degree": True}

# Layers that accept nodes without in-edges.
LAYERS: dict[str, Callable[[], Case]] = {
    **{f"GraphConv-{n}": lambda n=n: Case(dnn.GraphConv(F, 4, norm=n, **ok)) for n in ("both", "left", "right", "none")},
    "GraphConv-widening": lambda: Case(dnn.GraphConv(F, 9, **ok)),
    "GraphConv-weighted": lambda: Case(dnn.GraphConv(F, 4, **ok), weighted),
    **{f"SAGEConv-{a}": lambda a=a: Case(dnn.SAGEConv(F, 4, a)) for a in ("mean", "gcn", "pool")},
    "SAGEConv-weighted": lambda: Case(dnn.SAGEConv(F, 9, "mean"), weighted),
    "GATConv": lambda: Case(dnn.GATConv(F, 4, 3, **ok)),
    "GATConv-residual": lambda: Case(dnn.GATConv(F, 4, 3, residual=True, activation=torch.relu, **ok)),
    "GATConv-attention": lambda: Case(dnn.GATConv(F, 2, 3, residual=True, **ok), attended),
    "GATConv-weighted": lambda: Case(dnn.GATConv(F, 4, 3, **ok), weighted),
    "GATv2Conv": lambda: Case(dnn.GATv2Conv(F, 4, 3, residual=True, **ok), attended),
    **{f"GINConv-{a}": lambda a=a: Case(dnn.GINConv(mlp(F, 4), a, learn_eps=True)) for a in ("sum", "mean", "max")},
    "GINConv-weighted": lambda: Case(dnn.GINConv(mlp(F, 4), "sum"), weighted),
    "GINEConv": lambda: Case(dnn.GINEConv(mlp(D_EDGE, 4), learn_eps=True), lambda m, g, d: m(g, d.x[:, :D_EDGE], d.ef)),
    "TAGConv": lambda: Case(dnn.TAGConv(F, 4, k=3)),
    "SGConv": lambda: Case(dnn.SGConv(F, 4, k=2, **ok)),
    "APPNPConv": lambda: Case(dnn.APPNPConv(3, 0.2)),
    "ChebConv": lambda: Case(dnn.ChebConv(F, 4, 3)),
    "ChebConv-lambda_max": lambda: Case(dnn.ChebConv(F, 4, 3), lambda m, g, d: m(g, d.x, [1.7])),
    "DotGatConv": lambda: Case(dnn.DotGatConv(F, 4, 3, **ok), attended),
    "AGNNConv": lambda: Case(dnn.AGNNConv(**ok)),
    "EdgeConv": lambda: Case(dnn.EdgeConv(F, 4, **ok)),
    "EdgeConv-batch_norm": lambda: Case(dnn.EdgeConv(F, 4, batch_norm=True, **ok)),
    **{
        f"GMMConv-{a}": lambda a=a: Case(dnn.GMMConv(F, 4, 2, 3, a, True, **ok), lambda m, g, d: m(g, d.x, d.pseudo))
        for a in ("sum", "mean", "max")
    },
    **{f"NNConv-{a}": lambda a=a: Case(dnn.NNConv(F, 4, nn.Linear(D_EDGE, F * 4), a), with_ef) for a in ("sum", "mean", "max")},
    "GatedGraphConv": lambda: Case(dnn.GatedGraphConv(F, 8, 2, 1)),
    "GatedGraphConv-types": lambda: Case(dnn.GatedGraphConv(F, 8, 2, 3), lambda m, g, d: m(g, d.x, d.etype)),
    "PNAConv": lambda: Case(dnn.PNAConv(F, F, AGGREGATORS, SCALERS, 2.5)),
    "PNAConv-towers": lambda: Case(dnn.PNAConv(F, 4, ["mean", "max"], SCALERS, 2.5, 0.0, 2, D_EDGE), with_ef),
    "DGNConv": lambda: Case(
        dnn.DGNConv(F, F, ["dir1-av", "dir2-dx", "sum"], SCALERS, 2.5), lambda m, g, d: m(g, d.x, eig_vec=d.eig)
    ),
    "EdgeGATConv": lambda: Case(
        dnn.EdgeGATConv(F, D_EDGE, 4, 3, **ok), lambda m, g, d: m(g, d.x, d.ef, get_attention=True)
    ),
    "EGNNConv": lambda: Case(dnn.EGNNConv(F, 8, 4, D_EDGE), lambda m, g, d: m(g, d.x, d.coord, d.ef)),
    "GCN2Conv": lambda: Case(dnn.GCN2Conv(F, 2, **ok), lambda m, g, d: m(g, d.x, d.x0)),
    "CFConv": lambda: Case(dnn.CFConv(F, D_EDGE, 8, 4), with_ef),
    "RelGraphConv": lambda: Case(dnn.RelGraphConv(F, 4, 3, "basis", 2), lambda m, g, d: m(g, d.x, d.etype)),
    "HGTConv": lambda: Case(dnn.HGTConv(F, 4, 2, 2, 3, dropout=0.0), lambda m, g, d: m(g, d.x, d.ntype, d.etype)),
    "TWIRLSConv": lambda: Case(dnn.TWIRLSConv(F, 4, 8, 2)),
    "EdgeWeightNorm-right": lambda: Case(dnn.EdgeWeightNorm("right", eps=0.1), lambda m, g, d: m(g, d.weight)),
    "EdgeWeightNorm-none": lambda: Case(dnn.EdgeWeightNorm("none"), lambda m, g, d: m(g, d.weight)),
    "WeightAndSum": lambda: Case(dnn.WeightAndSum(F)),
    "GlobalAttentionPooling": lambda: Case(dnn.GlobalAttentionPooling(nn.Linear(F, 1))),
    "AvgPooling": lambda: Case(dnn.AvgPooling()),
    "MaxPooling": lambda: Case(dnn.MaxPooling()),
}
# Layers that want an in-edge at every node, or divide by weights summed over in-edges.
LAYERS_ON_FULL_GRAPHS: dict[str, Callable[[], Case]] = {
    "GraphConv": lambda: Case(dnn.GraphConv(F, 4)),
    "GATConv": lambda: Case(dnn.GATConv(F, 4, 3)),
    "GATv2Conv": lambda: Case(dnn.GATv2Conv(F, 4, 3, share_weights=True)),
    "SGConv": lambda: Case(dnn.SGConv(F, 4), weighted),
    "DotGatConv": lambda: Case(dnn.DotGatConv(F, 4, 3)),
    "AGNNConv": lambda: Case(dnn.AGNNConv()),
    "EdgeConv": lambda: Case(dnn.EdgeConv(F, 4)),
    "GMMConv": lambda: Case(dnn.GMMConv(F, 4, 2, 3), lambda m, g, d: m(g, d.x, d.pseudo)),
    "TAGConv": lambda: Case(dnn.TAGConv(F, 4), weighted),
    "APPNPConv": lambda: Case(dnn.APPNPConv(2, 0.2), weighted),
    "GCN2Conv": lambda: Case(
        dnn.GCN2Conv(F, 2, project_initial_features=False), lambda m, g, d: m(g, d.x, d.x0, d.weight)
    ),
    "EGATConv": lambda: Case(dnn.EGATConv(F, D_EDGE, 4, 3, 2), lambda m, g, d: m(g, d.x, d.ef, get_attention=True)),
    "EGATConv-weighted": lambda: Case(dnn.EGATConv(F, D_EDGE, 4, 3, 2), lambda m, g, d: m(g, d.x, d.ef, d.weight)),
    "EdgeWeightNorm": lambda: Case(dnn.EdgeWeightNorm("both"), lambda m, g, d: m(g, d.weight)),
}
ALL_LAYERS = [(name, make, True) for name, make in LAYERS.items()]
ALL_LAYERS += [(name + "-full", make, False) for name, make in LAYERS_ON_FULL_GRAPHS.items()]
each_layer = pytest.mark.parametrize(("make", "zeros"), [row[1:] for row in ALL_LAYERS], ids=[row[0] for row in ALL_LAYERS])


@pytest.fixture(autouse=True)
def float64_by_default() -> Iterator[None]:
    """Some layers make float32 columns of their own (APPNPConv's weights), which DGL refuses beside float64 ones."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@each_layer
@pytest.mark.filterwarnings("ignore")
def test_layer_equals_dgl(make: Callable[[], Case], zeros: bool) -> None:
    assert_same_as_dgl(make(), zeros)


# ---- capture with symbolic sizes ----------------------------------------------------------------------------------------


def capture(case: Case, zero_in_degree: bool | None) -> tuple[torch.fx.GraphModule, ShapeEnv]:
    """The layer as a graph of (parameters, buffers, src, dst, columns), made from fake tensors of 1001 and 8009 rows."""
    shape_env = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    fakes = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)

    def fake(tensor: Tensor, sizes: DimDynamic) -> Tensor:
        dynamic = [sizes] + [DimDynamic.STATIC] * (tensor.dim() - 1)
        return fakes.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic[: tensor.dim()]))

    state = {**dict(case.named_parameters()), **dict(case.named_buffers())}
    fake_state = [fake(value.detach(), DimDynamic.STATIC) for value in state.values()]
    node_sized = fake(torch.zeros(1001), DimDynamic.DYNAMIC)
    src = fake(torch.zeros(8009, dtype=torch.int64), DimDynamic.DYNAMIC)
    with fakes:
        columns = data_for(node_sized.shape[0], src.shape[0])  # one symbol a space
        dst = torch.empty_like(src)

    def forward(*args: Any) -> list[Tensor]:
        values, (src, dst, *rest) = args[: len(state)], args[len(state) :]
        columns_now = SimpleNamespace(**dict(zip(names, rest, strict=True)))
        graph = RecordingGraph(src, dst, columns_now.x.shape[0], zero_in_degree=zero_in_degree)
        with redirect_dgl():
            return functional_call(case, dict(zip(state, values, strict=True)), (graph, columns_now))

    names = list(vars(columns))
    functional = dispatch_functionalize(forward, FunctionalTensorMode(_allow_token_discovery=False))
    with fakes, enable_python_dispatcher():
        traced = make_fx(functional, _allow_non_fake_inputs=True, record_stack_traces=True)(
            *fake_state, src, dst, *vars(columns).values()
        )
    return traced, shape_env


@each_layer
@pytest.mark.filterwarnings("ignore")
def test_captured_layer_runs_at_other_sizes(make: Callable[[], Case], zeros: bool) -> None:
    case = make()
    state = [value.detach().clone() for value in (*case.parameters(), *case.buffers())]
    traced, shape_env = capture(copy.deepcopy(case), zero_in_degree=zeros)
    assert not shape_env.guards, [str(guard.expr) for guard in shape_env.guards]
    graph = multigraph(31, 140, zeros, seed=5)
    columns = data_for(graph.num_nodes(), graph.num_edges())
    outputs = traced(*state, *graph.edges(), *vars(columns).values())
    for actual, reference in zip(outputs, case(graph, columns), strict=True):
        torch.testing.assert_close(actual, reference, **TOLERANCE)
