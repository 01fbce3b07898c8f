"""Models that no partitioned program can run exactly as written, each with a part of the reason it is refused for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch_geometric.nn as g
from torch import nn

from tests.equivalence.case import Case, F
from tests.equivalence.plain_models import Formula, H


@dataclass(frozen=True)
class Refused:
    """A case and words of its refusal."""

    case: Case
    reason: str


def refused(name: str, function: Callable, reason: str, inputs: str = "x") -> Refused:
    return Refused(Case(name, lambda: Formula(function, lin=nn.Linear(F, H)), inputs), reason)


def numbered_selection(m, x, mask):
    chosen = m.lin(x)[mask]
    return chosen * torch.arange(chosen.size(0))[:, None]


def segments_of_selection(m, x, mask, sizes):
    return torch.segment_reduce(m.lin(x)[mask], "sum", lengths=sizes)


REFUSED: tuple[Refused, ...] = (
    refused("every node against every other", lambda m, x: x @ x.t(), "rows by rows"),
    refused("distances of all pairs", lambda m, x: torch.cdist(x, x), "euclidean"),
    refused("sort over nodes", lambda m, x: m.lin(x).sort(0).values, "mixes rows"),
    refused("softmax over nodes", lambda m, x: m.lin(x).softmax(0), "mixes rows"),
    refused("cumulative sum over nodes", lambda m, x: m.lin(x).cumsum(0), "mixes rows"),
    refused("position of the largest node", lambda m, x: x[:, 0].argmax(), "argmax"),
    refused("a node by its position", lambda m, x: m.lin(x)[0], "position"),
    refused("rows of a selection are numbered", numbered_selection, "positions of selected rows", "x mask"),
    refused("segments of a selection", segments_of_selection, "selection", "x mask sizes"),
    refused("rows chosen by features", lambda m, x: m.lin(x[x[:, 0] > 0]).sum(0), "features or parameters"),
    Refused(Case("SuperGATConv in training", lambda: g.SuperGATConv(F, H)), "Python number"),
    Refused(Case("ClusterGCNConv", lambda: g.ClusterGCNConv(F, H)), "same rows"),
)
