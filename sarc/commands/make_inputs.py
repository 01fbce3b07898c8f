"""Inputs: what a model is called with, from a graph and `--input` specifications.

A specification is NAME or NAME:TYPE, TYPE as programs print it: "x:f32[N, 16]", "edge_weight:f32[E]", "batch:i64[N]<3"
(whole numbers below 3), "mask:bool[N]", "edge_index:i64[2, E]", "g:dgl" (a DGLGraph). Without a type, the name tells.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sarc.commands.find_model import Found
from sarc.data import GraphData, labelled_graph, load
from sarc.data.to_dgl import to_dgl
from sarc.errors import CommandError
from sarc.frontends.placeholders import graph_spaces
from sarc.ir.operand_text import read_types
from sarc.ir.space import Rows, ValueType

GENERATED = "generated"
# What an argument of this name is, when nothing says otherwise; {F} is the width of the features.
BY_NAME = {
    "x": "f32[N, {F}]", "h": "f32[N, {F}]", "feat": "f32[N, {F}]", "features": "f32[N, {F}]", "inputs": "f32[N, {F}]",
    "edge_index": "i64[2, E]", "edges": "i64[2, E]", "edge_weight": "f32[E]", "edge_attr": "f32[E, {D}]",
    "w": "f32[E]", "mask": "bool[N]", "batch": "i64[N]<4", "y": "i64[N]<8", "edge_type": "i64[E]<4",
    "g": "dgl", "graph": "dgl",
}  # fmt: skip
_FEATURE_WIDTH = ("in_channels", "in_features", "in_feats", "_in_src_feats", "_in_feats", "input_size")
_SPEC = re.compile(r"\s*(\w+)\s*(?::\s*(dgl|\w+\[[^\]]*\])\s*(?:<\s*(\d+))?)?\s*")


@dataclass(frozen=True)
class Inputs:
    """A graph and the arguments of a call.

    Attributes:
        graph: the graph, or None where the arguments came from the model's factory.
        arguments: positional.
        partitioned: what `sarc.partition` cuts: an edge_index or a DGLGraph.
        num_nodes: N.
        described: one text an argument: "x: f32[N, 16]".
    """

    graph: GraphData | None
    arguments: tuple[Any, ...]
    partitioned: Any
    num_nodes: int | None
    described: tuple[str, ...]


def load_graph(name: str, nodes: int) -> GraphData:
    """The graph called `name`, or a generated one of `nodes` nodes."""
    if name == GENERATED:
        return labelled_graph(nodes, num_classes=min(8, nodes), seed=0)
    return load(name)


def make_inputs(found: Found, specs: Sequence[str], data: str, nodes: int) -> Inputs:
    """Arguments for a call of the model.

    Raises:
        CommandError: a specification cannot be read, or an argument's type cannot be told.
    """
    if found.arguments is not None:
        if specs:
            raise CommandError(f"{found.name} brings its own arguments: leave --input out")
        return _given(found.arguments)
    graph = load_graph(data, nodes)
    width = graph.num_features if data != GENERATED else feature_width(found.model) or graph.num_features
    wanted = [_read(spec, width) for spec in specs] if specs else _from_signature(found, width)
    values, described = [], []
    for k, (name, kind, below) in enumerate(wanted):
        values.append(_value(name, kind, below, graph, seed=k))
        described.append(f"{name}: {kind}")
    dgl = next((v for v, (_, kind, _) in zip(values, wanted, strict=True) if kind == "dgl"), None)
    return Inputs(graph, tuple(values), graph.edge_index if dgl is None else dgl, graph.num_nodes, tuple(described))


def feature_width(model: nn.Module) -> int | None:
    """The number of input features that the first layer with a known one states."""
    for module in model.modules():
        for name in _FEATURE_WIDTH:
            value = getattr(module, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _given(arguments: tuple[Any, ...]) -> Inputs:
    for value in arguments:
        if isinstance(value, Tensor) and value.ndim == 2 and value.shape[0] == 2 and not value.is_floating_point():
            rows = next((a.shape[0] for a in arguments if isinstance(a, Tensor) and a.is_floating_point()), None)
            return Inputs(None, arguments, value, rows, ())
        if type(value).__module__.startswith("dgl."):
            return Inputs(None, arguments, value, None, ())
    raise CommandError("the model's factory returns arguments without a graph: expected an edge_index or a DGLGraph")


def _read(spec: str, width: int) -> tuple[str, Any, int]:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise CommandError(f"--input: expected NAME or NAME:TYPE such as 'x:f32[N, 16]', got {spec!r}")
    return _typed(match[1], match[2], match[3], width)


def _typed(name: str, text: str | None, below: str | None, width: int) -> tuple[str, Any, int]:
    if text is None:
        if name not in BY_NAME:
            raise CommandError(
                f"argument {name}: its type cannot be told from its name; give all arguments in order, for example "
                f"--input x --input edge_index --input '{name}:f32[N, 8]'"
            )
        text, _, below = BY_NAME[name].format(F=width, D=width).partition("<")
    if text == "dgl":
        return name, text, 0
    try:
        return name, read_types(text, graph_spaces()), int(below or 2)
    except ValueError as error:
        raise CommandError(f"--input {name}:{text}: {error}; N are nodes, E edges") from error


def _from_signature(found: Found, width: int) -> list[tuple[str, Any, int]]:
    parameters = inspect.signature(found.model.forward).parameters.values()
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not required:
        raise CommandError(f"{found.name}: its forward names no arguments; give them: --input x --input edge_index")
    return [_typed(p.name, None, None, width) for p in required]


def _value(name: str, kind: Any, below: int, graph: GraphData, seed: int) -> Any:
    if kind == "dgl":
        return to_dgl(graph)
    assert isinstance(kind, ValueType)
    if kind.dims == (2, Rows("E")) and not kind.dtype.is_floating_point:
        return graph.edge_index
    if graph.x is not None and kind.dims == (Rows("N"), graph.x.shape[1]) and kind.dtype.is_floating_point:
        return graph.x.to(kind.dtype)
    counts = {"N": graph.num_nodes, "E": graph.num_edges}
    shape = [counts[d.space] * d.before * d.after if isinstance(d, Rows) else d for d in kind.dims]
    draw = torch.Generator().manual_seed(seed)
    if kind.dtype == torch.bool:
        return torch.rand(shape, generator=draw) < 0.5
    if not kind.dtype.is_floating_point:
        values = torch.randint(0, below, shape, generator=draw).to(kind.dtype)
        return values.sort().values if name == "batch" else values
    return torch.rand(shape, generator=draw, dtype=torch.float64).to(kind.dtype)
