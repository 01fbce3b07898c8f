"""Models whose programs the IR tests look at: compiled once a process, every stage as a `Program`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch_geometric.nn as g
from torch import Tensor, nn

import sarc
from sarc.ir.interpret import interpret
from sarc.ir.program import Input, Program

N, E, F = 13, 40, 6
TRAINED = ("raised", "structure", "step", "joint", "forward", "backward", "partitioned forward", "partitioned backward")


class Attention(nn.Module):
    """Attention by hand: a softmax over destinations with the maximum kept differentiable."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.score = nn.Linear(F, 4), nn.Linear(8, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        z = self.lin(x)
        logit = self.score(torch.cat([z[src], z[dst]], 1)).squeeze(1)
        top = logit.new_full((x.size(0),), float("-inf")).scatter_reduce(0, dst, logit, "amax")
        weight = (logit - top[dst]).exp()
        total = weight.new_zeros(x.size(0)).index_add(0, dst, weight)
        return z.new_zeros(x.size(0), 4).index_add(0, dst, (weight / total[dst]).unsqueeze(1) * z[src])


class MaskedLoss(nn.Module):
    """Returns a loss over the rows a mask selects, and a flattened view of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = g.SAGEConv(F, 4)

    def forward(self, x: Tensor, edge_index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        out = self.conv(x, edge_index)
        heads = out.view(-1, 2, 2).transpose(0, 1).reshape(-1, 2)
        return out[mask].pow(2).mean(), heads.relu().view(2, -1, 2).sum(0)


@dataclass(frozen=True)
class Model:
    """A model and the names of the tensors it is called with."""

    make: Callable[[], nn.Module]
    inputs: tuple[str, ...] = ("x", "edge_index")
    draws: bool = False


class MLP(nn.Module):
    """Rows only: no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(F, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


WITH_WEIGHT = ("x", "edge_index", "edge_weight")
WITH_FEATURES = ("x", "edge_index", "edge_attr")
MODELS = {
    "gcn": Model(lambda: g.GCN(F, 4, 2, 3)),
    "gcn-weighted": Model(lambda: g.GCNConv(F, 3), WITH_WEIGHT),
    "gat": Model(lambda: g.GAT(F, 4, 2, 3, heads=2)),
    "gat-dropout": Model(lambda: g.GAT(F, 4, 2, 3, heads=2, dropout=0.5), draws=True),
    "gatv2-edges": Model(lambda: g.GATv2Conv(F, 3, edge_dim=2), WITH_FEATURES),
    "sage-max": Model(lambda: g.GraphSAGE(F, 4, 2, 3, aggr="max")),
    "gin": Model(lambda: g.GINConv(MLP())),
    "gine": Model(lambda: g.GINEConv(nn.Linear(F, 3), edge_dim=2), WITH_FEATURES),
    "pna": Model(lambda: g.PNAConv(F, 4, ["mean", "std", "min"], ["identity", "linear"], torch.ones(5).long())),
    "edge-conv": Model(lambda: g.EdgeConv(nn.Linear(2 * F, 3))),
    "transformer": Model(lambda: g.TransformerConv(F, 3, heads=2)),
    "attention": Model(Attention),
    "masked-loss": Model(MaskedLoss, ("x", "edge_index", "mask")),
    "no-graph": Model(MLP, ("x",)),
}


@dataclass(frozen=True)
class Compiled:
    """A model in float64 after one call over three parts.

    Attributes:
        module: the model; its parameters are those the programs read.
        values: by name, what it was called with.
        programs: by stage (see TRAINED).
        constants: tensors the model holds that are neither parameters nor buffers.
        texts: by stage, as `CompiledModule.program` prints them.
    """

    module: nn.Module
    values: dict[str, Tensor]
    programs: dict[str, Program]
    constants: dict[str, Tensor]
    texts: dict[str, str]


def tensors() -> dict[str, Tensor]:
    """Inputs by name; edges repeat, loop, and leave the last two nodes alone."""
    draw = torch.Generator().manual_seed(7)
    edge_index = torch.randint(0, N - 2, (2, E), generator=draw)
    edge_index[:, :4] = edge_index[:, 4:8]
    edge_index[1, 8:11] = edge_index[0, 8:11]
    real = {"x": (N, F), "edge_weight": (E,), "edge_attr": (E, 2)}
    made = {k: torch.rand(shape, generator=draw, dtype=torch.float64) for k, shape in real.items()}
    return {**made, "edge_index": edge_index, "mask": torch.rand(N, generator=draw) < 0.4}


@cache
def compiled(name: str) -> Compiled:
    """The programs of one of MODELS without kernels; what is returned is shared and must not be altered."""
    model, values = MODELS[name], tensors()
    torch.manual_seed(0)
    module = model.make().double()
    parts = sarc.partition(values["edge_index"], num_nodes=N, num_parts=3, method="contiguous")
    over_parts = sarc.compile(module, parts, backend="reference", placement="dst")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        over_parts(*(values[k] for k in model.inputs))
    variant = over_parts._last
    programs = dict(variant.stages.programs)
    programs |= {f"partitioned {stage}": program for stage, program in variant.binding.programs.items()}
    texts = {stage: over_parts.program(stage) for stage in programs}
    return Compiled(module, values, programs, variant.stages.captured.constants, texts)


def known_inputs(made: Compiled) -> dict[Input, Tensor]:
    """The value of every input that no other program makes."""
    return {
        **{Input("param", k): v.detach() for k, v in made.module.named_parameters()},
        **{Input("buffer", k): v.clone() for k, v in made.module.named_buffers()},
        **{Input("arg", k): v for k, v in made.values.items()},
        **{Input("constant", k): v for k, v in made.constants.items()},
        Input("rows", "N"): torch.empty(N, dtype=torch.uint8),
        Input("rows", "E"): torch.empty(E, dtype=torch.uint8),
        Input("rng", "rng"): torch.tensor([3, 5]),
    }


def run_step(
    made: Compiled, programs: dict[str, Program], forward: str = "forward", backward: str = "backward"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One training step by the interpreter: results and new buffers, then the gradients, by name.

    The cotangent of each result is all ones.
    """
    known = known_inputs(made)
    sizes = {"N": N, "E": E}
    results: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    for stage in ("structure", *(("data",) if "data" in programs else ()), forward, backward):
        program = programs[stage]
        found = interpret(program, [known[entry] for entry in program.inputs], sizes)
        for output, value in zip(program.outputs, found, strict=True):
            if output.kind in ("bound", "data", "saved"):
                known[Input(output.kind, output.name)] = value
            elif output.kind == "grad":
                grads[output.name] = value
            else:
                results[str(output)] = value
                known[Input("tangent", output.name)] = torch.ones_like(value)
    return results, grads
