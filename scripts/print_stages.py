"""Writes docs/stages.md, the programs of a two-layer GAT at every stage: `python scripts/print_stages.py`."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import torch
from torch import Tensor, nn

import sarc

REPOSITORY = Path(__file__).resolve().parents[1]
PATH = REPOSITORY / "docs" / "stages.md"


class Layer(nn.Module):
    """One head of graph attention, as one would write it for a whole graph."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs, bias=False)
        self.a_src = nn.Parameter(torch.randn(outputs))
        self.a_dst = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        z = self.lin(x)
        logit = nn.functional.leaky_relu((z @ self.a_src)[src] + (z @ self.a_dst)[dst], 0.2)
        weight = logit.exp()
        total = torch.zeros_like(z[:, 0]).index_add(0, dst, weight)
        return torch.zeros_like(z).index_add(0, dst, (weight / total[dst])[:, None] * z[src])


class GAT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(16, 8), Layer(8, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


STAGES = {
    "raised": "Captured, in canonical form, every index by rows a gather or a reduce; typed.",
    "structure": "What depends on the graph alone: run once a graph.",
    "step": "The rest: what is differentiated.",
    "data": "What depends on x alone, which needs no gradient: made once a feature matrix.",
    "joint": "Forward and backward as one program.",
    "forward": "Everything over edges is in edge programs; what the backward pass reads is saved, over nodes only.",
    "backward": "Edge values are computed again from saved node values.",
    "partitioned forward": "The program of one part: rows of other parts are fetched, all that is ready at once.",
    "partitioned backward": "Partial sums of gradients return to the rows' owners; weight gradients are all-reduced.",
}


def document() -> str:
    """The text of docs/stages.md; source lines are relative to the repository."""
    before = Path.cwd()
    os.chdir(REPOSITORY)
    try:
        return _document()
    finally:
        os.chdir(before)


def _document() -> str:
    torch.manual_seed(0)
    edge_index = torch.randint(0, 24, (2, 80), generator=torch.Generator().manual_seed(0))
    parts = sarc.partition(edge_index, num_nodes=24, num_parts=2, method="contiguous")
    # Which rows of nodes kernels take is the business of the machine: the page shows what is the same everywhere.
    compiled = sarc.compile(GAT(), parts, backend="reference")
    compiled(torch.randn(24, 16), edge_index)
    source = inspect.getsource(Layer) + "\n\n" + inspect.getsource(GAT)
    parts = [
        "# A two-layer GAT, stage by stage\n\nMade by `python scripts/print_stages.py`. Do not edit. The format is "
        "described in `sarc/ir/print.py`; `sarc.ir.parse.parse_program` reads it.\n",
        f"The model:\n\n```python\n{source}```\n",
    ]
    for stage, words in STAGES.items():
        parts.append(f"## {stage}\n\n{words}\n\n```\n{compiled.program(stage)}```\n")
    schedule = compiled.schedule(0, "forward")
    parts.append(
        "## schedule\n\nPart 0 of 2, forward, on a graph of 24 nodes and 80 edges; `prefetch=1`.\n\n"
        f"```\n{schedule}\n```\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
