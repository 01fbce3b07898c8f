"""A layer on a RecordingGraph computes what it does on the dgl.DGLGraph: outputs, gradients, captured for any size."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
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

THIS_FILE = Path(__file__).name
F, D_EDGE = 6, 5
# float64 sums of a few dozen terms in another order
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}  # nan: EGNNConv differentiates sqrt(0) at self loops


# ---- graphs and data -------------------------------------------------------------------------------------------------


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


# ---- layers ----------------------------------------------------------------------------------------------------------


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
    **{
        f"GraphConv-{n}": lambda n=n: Case(dnn.GraphConv(F, 4, norm=n, **ok)) for n in ("both", "left", "right", "none")
    },
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
    **{
        f"NNConv-{a}": lambda a=a: Case(dnn.NNConv(F, 4, nn.Linear(D_EDGE, F * 4), a), with_ef)
        for a in ("sum", "mean", "max")
    },
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
each_layer = pytest.mark.parametrize(
    ("make", "zeros"), [row[1:] for row in ALL_LAYERS], ids=[row[0] for row in ALL_LAYERS]
)


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


# ---- capture with symbolic sizes -------------------------------------------------------------------------------------


def capture(case: Case, zero_in_degree: bool | None) -> tuple[torch.fx.GraphModule, ShapeEnv]:
    """The layer as a graph of (parameters, buffers, src, dst, columns), made from fakes of 1001 and 8009 rows."""
    shape_env = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    fakes = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)

    def fake(tensor: Tensor, sizes: DimDynamic) -> Tensor:
        dynamic = [sizes] + [DimDynamic.STATIC] * (tensor.dim() - 1)
        return fakes.from_tensor(
            tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic[: tensor.dim()])
        )

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
        traced = make_fx(functional, _allow_non_fake_inputs=True)(*fake_state, src, dst, *vars(columns).values())
    return traced, shape_env


@each_layer
@pytest.mark.filterwarnings("ignore")
def test_captured_layer_runs_at_other_sizes(make: Callable[[], Case], zeros: bool) -> None:
    assert_captured_runs_at_other_sizes(make(), zeros)


def assert_captured_runs_at_other_sizes(case: Case, zero_in_degree: bool) -> None:
    state = [value.detach().clone() for value in (*case.parameters(), *case.buffers())]
    traced, shape_env = capture(copy.deepcopy(case), zero_in_degree)
    assert not shape_env.guards, [str(guard.expr) for guard in shape_env.guards]
    graph = multigraph(31, 140, zero_in_degree, seed=5)
    columns = data_for(graph.num_nodes(), graph.num_edges())
    outputs = traced(*state, *graph.edges(), *vars(columns).values())
    for actual, reference in zip(outputs, case(graph, columns), strict=True):
        torch.testing.assert_close(actual, reference, **TOLERANCE)


# ---- built-in and user-defined functions -----------------------------------------------------------------------------


class Calls(nn.Module):
    """A function of (graph, columns) as a layer with one weight matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(F, F)


def assert_function_same_as_dgl(function: Callable[[Any, Any, Any], Any], zero_in_degree: bool = True) -> None:
    assert_same_as_dgl(Case(Calls(), function), zero_in_degree)


ENDS = {"u": "x", "v": "x0", "e": "per_edge"}


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize(
    "message", [f"{a}_{op}_{b}" for a in "uve" for b in "uve" if a != b for op in ("add", "sub", "div")]
)
def test_binary_messages(message: str, reduce: str) -> None:
    lhs, op, rhs = message.split("_")

    def function(layer: Any, g: Any, d: Any) -> Tensor:
        with g.local_scope():
            g.ndata.update(x=d.x, x0=d.x0 + 2)
            g.edata["per_edge"] = d.weight.unsqueeze(1) + 1 if op == "div" else d.weight.unsqueeze(1).expand(-1, F)
            g.update_all(getattr(fn, message)(ENDS[lhs], ENDS[rhs], "m"), getattr(fn, reduce)("m", "h"))
            return g.ndata["h"]

    assert_function_same_as_dgl(function)


@pytest.mark.parametrize(
    "name", ["copy_u_sum", "copy_e_mean", "u_mul_e_max", "u_sub_e_min", "u_add_e_mean", "u_div_e_sum"]
)
def test_spmm_helpers(name: str) -> None:
    def function(layer: Any, g: Any, d: Any) -> Tensor:
        operands = {"copy_u": (d.x,), "copy_e": (d.ef,)}.get(name.rsplit("_", 1)[0], (d.x, d.weight))
        return getattr(dgl.ops, name)(g, *operands)

    # On nodes without in-edges, DGL's max and min send a gradient to row 0 of x.
    assert_function_same_as_dgl(function, zero_in_degree=not name.endswith(("max", "min")))


@pytest.mark.parametrize("name", ["copy_u_max", "copy_u_min"])
def test_spmm_helpers_on_nodes_without_in_edges(name: str) -> None:
    graph, x = multigraph(), torch.randn(23, F)
    expected = getattr(dgl.ops, name)(graph, x)
    assert expected.isinf().any()
    with redirect_dgl():
        assert torch.equal(getattr(dgl.ops, name)(record_graph(graph), x), expected)


def test_sddmm_helpers_and_dots() -> None:
    def function(layer: Any, g: Any, d: Any) -> tuple[Tensor, ...]:
        ops = dgl.ops
        return (
            ops.u_dot_v(g, d.x, d.x0),
            ops.u_dot_v(g, d.x[:, 0], d.x0[:, 0]),
            ops.e_mul_u(g, d.weight.unsqueeze(1), d.x),
            ops.v_sub_u(g, d.x, d.x0),
            ops.copy_u(g, d.x),
            ops.copy_v(g, d.x),
            ops.gspmm(g, "mul", "mean", d.x, d.weight),
            ops.gsddmm(g, "dot", d.x.view(-1, 2, 3), d.x0.view(-1, 2, 3), "v", "u"),
        )

    assert_function_same_as_dgl(function)


@pytest.mark.parametrize("norm_by", ["dst", "src"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_edge_softmax(norm_by: str, shape: tuple[int, ...]) -> None:
    def function(layer: Any, g: Any, d: Any) -> tuple[Tensor, ...]:
        logits = 30 * d.ef[:, :3].reshape(-1, 3, 1) if len(shape) == 2 else 30 * d.ef[:, 0].reshape(-1, *shape)
        return dgl.nn.functional.edge_softmax(g, logits, norm_by=norm_by), dgl.ops.edge_softmax(g, -logits)

    assert_function_same_as_dgl(function)


def send_all(edges: Any) -> dict[str, Tensor]:
    return {"m": edges.src["x"] * edges.dst["x0"] + edges.data["w"], "logit": edges.src["x0"][:, 0]}


REDUCERS: dict[str, Callable[[Any], Tensor]] = {
    "sum method": lambda n: n.mailbox["m"].sum(1),
    "sum function": lambda n: torch.sum(n.mailbox["m"], 1),
    "sum by keyword": lambda n: n.mailbox["m"].sum(dim=-2),
    "mean keepdim": lambda n: (n.mailbox["m"] - n.mailbox["m"].mean(1, keepdim=True)).square().sum(dim=1),
    "max [0]": lambda n: n.mailbox["m"].max(1)[0],
    "max values": lambda n: n.mailbox["m"].max(dim=1).values,
    "max unpacked": lambda n: torch.max(n.mailbox["m"], dim=1)[0],
    "min": lambda n: torch.min(n.mailbox["m"], 1).values,
    "amax": lambda n: n.mailbox["m"].amax(1),
    "node data": lambda n: torch.relu(n.mailbox["m"] + n.data["x"].unsqueeze(1)).sum(1),
    "node data first": lambda n: (n.data["x"].unsqueeze(1) - n.mailbox["m"]).abs().sum(1) + n.data["x"],
    "scalars": lambda n: (1 / (2 - 0.5 * n.mailbox["m"]) ** 2).mean(1),
    "attention": lambda n: (
        torch.softmax(nn.functional.leaky_relu(n.mailbox["logit"], 0.1), dim=1).unsqueeze(-1) * n.mailbox["m"]
    ).sum(1),
    "attention, method": lambda n: (n.mailbox["logit"].softmax(1).unsqueeze(2) * n.mailbox["m"]).sum(1),
    "dot attention": lambda n: (
        nn.functional.softmax((n.mailbox["m"] * n.data["x"].unsqueeze(1)).sum(-1), dim=1)[:, :, None] * n.mailbox["m"]
    ).sum(1),
    "heads": lambda n: n.mailbox["m"].view(n.mailbox["m"].shape[0], n.mailbox["m"].shape[1], 2, 3).sum(1).flatten(1),
    "view -1": lambda n: n.mailbox["m"].view(n.batch_size(), n.mailbox["m"].size(1), -1, 2).sum(1).flatten(1),
    "ellipsis": lambda n: n.mailbox["m"][..., None, 0].mean(1),
    "linear map": lambda n: (
        (n.mailbox["m"] @ n.data["x"].new_ones(6, 2)).sum(1) + n.mailbox["m"].norm(dim=-1).sum(1)[:, None]
    ),
    "cat": lambda n: torch.cat([n.mailbox["m"], n.mailbox["m"][:, :, :2] ** 2], dim=-1).sum(1),
    "repeat": lambda n: torch.cat(
        [n.data["x"].unsqueeze(1).repeat(1, n.mailbox["m"].shape[1], 2), n.mailbox["m"]], dim=2
    ).sum(1),
    "expand": lambda n: n.data["x"].unsqueeze(1).expand(-1, n.mailbox["m"].shape[1], -1).sum(1),
    "inplace argument": lambda n: nn.functional.elu(n.mailbox["m"], inplace=True).sum(1),
    "expand_as": lambda n: (n.data["x"].unsqueeze(1).expand_as(n.mailbox["m"]) * n.mailbox["m"]).sum(1),
    "size": lambda n: (
        n.mailbox["m"].sum(1) / n.mailbox["m"].size(1) + np.log(n.mailbox["m"].shape[1] + 1) * n.data["x"]
    ),
    "size and one value": lambda n: (
        n.mailbox["m"].mean(1) * (n.mailbox["m"].size(1) / n.data["x"].new_full((1,), 2.5))
        + n.data["x"] * (n.data["x"].new_tensor(3.0) - n.mailbox["m"].size(1))
    ),
    "size times mailbox": lambda n: (n.mailbox["m"] / n.mailbox["m"].size(1) ** 0.5).sum(1),
    "comparison": lambda n: torch.where(n.mailbox["m"] > 0, n.mailbox["m"], 0.1 * n.mailbox["m"]).sum(1),
    "inplace": lambda n: n.mailbox["m"].relu_().sum(1) + n.mailbox["m"].sum(1),
    "features": lambda n: torch.softmax(n.mailbox["m"], -1).sum(1),
    "transpose": lambda n: n.mailbox["m"].unsqueeze(-1).transpose(2, 3).sum(1).squeeze(1),
    "no empty row": lambda n: n.mailbox["m"].sum(1).exp(),
}


@pytest.mark.parametrize("reducer", REDUCERS.values(), ids=REDUCERS.keys())
def test_user_defined_reduce(reducer: Callable[[Any], Tensor]) -> None:
    def function(layer: Any, g: Any, d: Any) -> Tensor:
        g = g.local_var()
        g.ndata.update(x=d.x, x0=d.x0)
        g.edata["w"] = d.weight.unsqueeze(-1)
        g.update_all(send_all, lambda nodes: {"h": reducer(nodes)})
        return g.dstdata["h"]

    assert_function_same_as_dgl(function)


def test_user_defined_reduce_functions_are_captured() -> None:
    def function(layer: Any, g: Any, d: Any) -> tuple[Tensor, ...]:
        outputs = []
        for reducer in REDUCERS.values():
            with g.local_scope():
                g.ndata.update(x=d.x, x0=d.x0)
                g.edata["w"] = d.weight.unsqueeze(-1)
                g.update_all(send_all, lambda nodes, reducer=reducer: {"h": reducer(nodes)})
                outputs.append(g.ndata["h"])
        return tuple(outputs)

    assert_captured_runs_at_other_sizes(Case(Calls(), function), zero_in_degree=True)


def test_user_defined_reduce_with_a_layer_inside_and_apply_function() -> None:
    def function(layer: Any, g: Any, d: Any) -> tuple[Tensor, Tensor]:
        with g.local_scope():
            g.ndata["x"] = d.x
            g.update_all(
                lambda edges: {"m": layer.linear(edges.src["x"])},
                lambda nodes: {"h": layer.linear(layer.linear(nodes.mailbox["m"]).tanh().sum(1))},
                lambda nodes: {"out": nodes.data["h"] * 2 + nodes.data["x"]},
            )
            assert "h" not in g.ndata  # only what the apply function returns is stored
            g.apply_nodes(lambda nodes: {"again": nodes.data["out"].relu()})
            return g.ndata["out"], g.ndata["again"]

    assert_function_same_as_dgl(function)
    assert_function_same_as_dgl(function, zero_in_degree=False)


def test_apply_edges_with_user_function() -> None:
    def function(layer: Any, g: Any, d: Any) -> tuple[Tensor, ...]:
        g.ndata["x"] = d.x
        g.edata["e"] = d.ef
        g.apply_edges(
            lambda edges: {"y": torch.cat([layer.linear(edges.src["x"]), edges.dst["x"], edges.data["e"]], -1)}
        )
        src, dst = g.edges()
        return g.edata.pop("y"), (d.x[src] - d.x[dst])

    assert_function_same_as_dgl(function)


# ---- the graph as an object ------------------------------------------------------------------------------------------


def test_structure_queries_equal_dgl() -> None:
    graph = multigraph()
    recorded = record_graph(graph)
    for name in (
        "num_nodes",
        "number_of_nodes",
        "num_dst_nodes",
        "number_of_src_nodes",
        "num_edges",
        "number_of_edges",
    ):
        assert getattr(recorded, name)() == getattr(graph, name)()
    assert recorded.num_edges("_E") == recorded.num_edges(("_N", "_E", "_N")) == graph.num_edges()
    nodes = torch.tensor([3, 1, 5])
    for ours, theirs in [
        (recorded.in_degrees(), graph.in_degrees()),
        (recorded.out_degrees(), graph.out_degrees()),
        (recorded.in_degrees(nodes), graph.in_degrees(nodes)),
        (recorded.nodes(), graph.nodes()),
        (torch.stack(recorded.edges()), torch.stack(graph.edges())),
        (torch.stack(recorded.edges(form="all")), torch.stack(graph.edges(form="all"))),
    ]:
        assert torch.equal(ours, theirs)
    for name in (
        "is_block",
        "is_homogeneous",
        "canonical_etypes",
        "ntypes",
        "etypes",
        "device",
        "idtype",
        "batch_size",
    ):
        ours, theirs = getattr(recorded, name), getattr(graph, name)
        assert (list(ours) == theirs) if isinstance(theirs, list) else (ours == theirs)
    recorded.nodes["_N"].data["a"] = recorded.edges[("_N", "_E", "_N")].data["b"] = torch.ones(1)
    assert list(recorded.ndata) == ["a"]
    assert list(recorded.edata) == ["b"]


def test_local_scope_forgets_even_after_an_error() -> None:
    graph = RecordingGraph(torch.tensor([0]), torch.tensor([1]), 2, {"x": torch.ones(2)})
    with pytest.raises(KeyError), graph.local_scope():
        graph.ndata["y"] = graph.ndata.pop("x")
        graph.edata["e"] = torch.ones(1)
        raise KeyError("inside")
    assert list(graph.ndata) == ["x"]
    assert not graph.edata


@pytest.mark.parametrize("fill", [1.0, "mean"])
def test_derived_graphs_equal_dgl(fill: Any) -> None:
    def function(layer: Any, g: Any, d: Any) -> list[Tensor]:
        g = g.local_var()
        g.edata["w"] = d.weight
        g.ndata["x"] = d.x
        derived = [
            add_self_loop(g, fill_data=fill),
            dgl.remove_self_loop(g),
            g.remove_self_loop().add_self_loop(["w"], fill),
            reverse(g, copy_edata=True),
            g.reverse(copy_edata=True),
        ]
        outputs = []
        for graph in derived:
            graph.update_all(fn.u_mul_e("x", "w", "m"), fn.sum("m", "h"))
            outputs.append(graph.ndata["h"])
        return tuple(outputs)

    assert_function_same_as_dgl(function)


@pytest.mark.parametrize("num_edges", [0, 5])
def test_graphs_with_few_or_no_edges(num_edges: int) -> None:
    src = dst = torch.arange(num_edges)
    case = Case(dnn.GATConv(F, 4, 3, allow_zero_in_degree=True))
    columns = data_for(7, num_edges)
    expected, _ = run(case, dgl.graph((src, dst), num_nodes=7), columns)
    with redirect_dgl():
        outputs, _ = run(case, RecordingGraph(src, dst, 7), columns)
    torch.testing.assert_close(outputs, expected, **TOLERANCE)


def test_record_graph_refuses_other_graphs() -> None:
    ends = (torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(GraphError, match="homogeneous"):
        record_graph(dgl.heterograph({("a", "to", "b"): ends}))
    with pytest.raises(GraphError, match="batch of 2"):
        record_graph(dgl.batch([dgl.graph(ends), dgl.graph(ends)]))


# ---- zero in-degree checks -------------------------------------------------------------------------------------------


def test_zero_in_degree_is_answered_by_the_graph() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    x = torch.randn(3, F)
    with redirect_dgl():
        for known, raises in ((True, True), (None, True), (False, False)):  # None: these tensors hold the answer
            graph = RecordingGraph(empty, empty, 3, zero_in_degree=known)
            if raises:
                with pytest.raises(dgl.DGLError, match="0-in-degree"):
                    dnn.GraphConv(F, 4)(graph, x)
            else:
                dnn.GraphConv(F, 4)(graph, x)
            degrees = graph.in_degrees()
            for check in (torch.any(degrees < 1), (degrees <= 0).any(), (0 == degrees).any()):
                assert bool(check) is raises
                assert check.item() is raises
            assert bool((degrees > 0).all()) is not raises
            assert not (degrees == 5).any()  # no zero in-degree check


def test_unknown_zero_in_degree_is_refused_in_a_capture() -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{THIS_FILE}:\d+.*allow_zero_in_degree"):
        capture(Case(dnn.GraphConv(F, 4)), zero_in_degree=None)
    with pytest.raises(dgl.DGLError, match="0-in-degree"):
        capture(Case(dnn.GraphConv(F, 4)), zero_in_degree=True)


def test_add_self_loop_inside_a_captured_model_answers_the_check() -> None:
    case = Case(dnn.GATConv(F, 4, 3), lambda layer, g, d: layer(dgl.add_self_loop(g), d.x))
    traced, _ = capture(copy.deepcopy(case), zero_in_degree=None)
    graph = multigraph(31, 140)
    columns = data_for(31, 140)
    (output,) = traced(*(p.detach() for p in case.parameters()), *graph.edges(), *vars(columns).values())
    torch.testing.assert_close(output, case(graph, columns)[0], **TOLERANCE)


# ---- refusals --------------------------------------------------------------------------------------------------------


def reduce_with(function: Callable[[Any], Any]) -> Callable[[RecordingGraph], Any]:
    def call(g: RecordingGraph) -> None:
        g.ndata["x"] = torch.randn(23, 6)
        g.update_all(fn.copy_u("x", "m"), lambda nodes: {"h": function(nodes)})

    return call


REFUSALS: dict[str, tuple[Callable[[RecordingGraph], Any], str]] = {
    "adj": (lambda g: g.adj(), "DGLGraph.adj is not supported: .*update_all"),
    "unknown": (lambda g: g.frobnicate, "DGLGraph.frobnicate is not supported"),
    "query": (lambda g: g.has_edges_between(0, 1), "DGLGraph.has_edges_between .*before the model"),
    "send_and_recv": (lambda g: g.send_and_recv([0], None, None), "DGLGraph.send_and_recv .*mask"),
    "some edges": (lambda g: g.apply_edges(fn.copy_u("x", "m"), torch.tensor([0])), "some of the edges"),
    "to_bidirected": (lambda g: dgl.to_bidirected(g), "dgl.to_bidirected is not supported"),
    "other type": (lambda g: g.num_nodes("paper"), "'paper'"),
    "softmax eids": (lambda g: dgl.ops.edge_softmax(g, torch.zeros(2), torch.tensor([0, 1])), "-inf"),
    "lstm": (lambda g: dnn.SAGEConv(6, 4, "lstm")(g, torch.randn(23, 6)), "lstm.*ordered fold"),
    "sort": (reduce_with(lambda n: n.mailbox["m"].sort(1)[0][:, 0]), "sort"),
    "std": (reduce_with(lambda n: n.mailbox["m"].std(1)), r"std.*\(m \* m\).mean"),
    "one message": (reduce_with(lambda n: n.mailbox["m"][:, 0]), r"m\[.*index features"),
    "position": (reduce_with(lambda n: n.data["x"][n.mailbox["m"].max(1)[1]]), "position of an extremum"),
    "not reduced": (reduce_with(lambda n: n.mailbox["m"] * 2), "reduce the mailbox axis"),
    "mixes nodes": (reduce_with(lambda n: n.mailbox["m"].sum(0)), "sum.* axis 0"),
    "all": (reduce_with(lambda n: n.mailbox["m"].sum()), "over all nodes"),
    "no mailbox axis": (reduce_with(lambda n: (n.mailbox["m"] * n.data["x"]).sum(1)), r"unsqueeze\(1\)"),
    "matmul": (reduce_with(lambda n: torch.bmm(n.mailbox["m"], n.mailbox["m"])), "bmm.*write the product out"),
    "branch on size": (
        reduce_with(lambda n: n.mailbox["m"].sum(1) if n.mailbox["m"].size(1) > 2 else 0),
        "size of a mailbox",
    ),
    "log of size": (reduce_with(lambda n: math.log(n.mailbox["m"].size(1))), r"numpy.log"),
    "repeat": (reduce_with(lambda n: n.data["x"].repeat(n.mailbox["m"].size(1), 1)), "repeat.*expand_as"),
    "property": (reduce_with(lambda n: n.mailbox["m"].mT), "attribute 'mT' of a mailbox"),
    "iteration": (reduce_with(lambda n: sum(n.mailbox["m"])), "iteration"),
}


@pytest.mark.parametrize(("function", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusal_names_the_construct_the_line_and_the_way_out(function: Callable[[Any], Any], message: str) -> None:
    with redirect_dgl(), pytest.raises(UnsupportedModelError, match=message) as refusal:
        function(record_graph(multigraph()))
    assert f"{THIS_FILE}:" in str(refusal.value)


def test_closed_over_dgl_graph_is_refused_in_a_capture() -> None:
    other = multigraph()
    with pytest.raises(UnsupportedModelError, match=f"{THIS_FILE}.*no argument of the model"):
        capture(Case(Calls(), lambda layer, g, d: dgl.ops.copy_u_sum(other, d.x)), zero_in_degree=True)


# ---- redirection -----------------------------------------------------------------------------------------------------


def bindings() -> dict[tuple[str, str], Any]:
    """Everything in dgl's modules and in this one, and the methods of dgl's layers."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "dgl" or module_name == __name__:
            for name, value in list(vars(module).items()):
                found[module_name, name] = id(value)
                if isinstance(value, type):
                    found.update({(f"{module_name}.{name}", k): id(v) for k, v in vars(value).items() if callable(v)})
    return found


def test_everything_is_put_back() -> None:
    before = bindings()
    with redirect_dgl():
        inside = bindings()
    assert {name for (_, name), value in inside.items() if value != before[_, name]} >= {
        "edge_softmax_internal",
        "gspmm",
        "add_self_loop",
        "forward",
    }
    assert bindings() == before
    with pytest.raises(RuntimeError, match="inside"), redirect_dgl():
        with redirect_dgl():  # nested
            pass
        raise RuntimeError("inside")
    assert bindings() == before
    assert not any(isinstance(mode, AnswerDegreeChecks) for mode in torch.overrides._get_current_function_mode_stack())


def test_real_graphs_are_served_by_dgl_inside() -> None:
    graph = multigraph()
    logits = torch.randn(graph.num_edges(), 1)
    expected = dgl.ops.edge_softmax(graph, logits), add_self_loop(graph).num_edges()
    with redirect_dgl():
        assert torch.equal(dgl.ops.edge_softmax(graph, logits), expected[0])
        assert add_self_loop(graph).num_edges() == expected[1]


def test_user_module_bindings_are_redirected() -> None:
    graph = record_graph(multigraph())
    original = add_self_loop
    with redirect_dgl():
        assert add_self_loop is not original
        assert isinstance(add_self_loop(graph), RecordingGraph)
    assert add_self_loop is original
