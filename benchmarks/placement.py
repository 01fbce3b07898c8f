"""Bytes of an epoch by where edge programs run, against the SAR paper's scheme; nothing is timed but the planning.

    python -m benchmarks.placement
    python -m benchmarks.placement --graph rmat --parts 8 --only GAT

Three layers of equal width, x without a gradient, parts from METIS, all parts in one process. "sar" exchanges every
layer's rows as the model makes them and fetches them again backward; "bytes" is objective="bytes", free to choose.
The bytes of one forward are counted and compared with the plan by the run itself; a backward's are the plan's.

"limit of covers", of GAT, is no way of running it but the least that vertex covers of these parts allow, whoever writes
the kernels: F words for a source, forward, and 2 F backward (its features, made into scores where they arrive, and
their gradient); F + 3 H for a destination either way (its score in, maximum, sum and weighted sum out; its gradient and
three numbers a head in, with the identity that makes the score's gradient of the forward's sums).
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import click
import torch
from torch import Tensor, nn

import sarc
from benchmarks.graphs import KINDS, draw
from benchmarks.options import Options, set_threads
from benchmarks.report import Report
from sarc.data.generate import labelled_graph
from sarc.partition.cover import minimum_cover, ratio

GENERATED = "block-model"
CONTESTANTS: dict[str, dict[str, str]] = {
    "sar": {"exchange": "sar"},
    "dst": {"exchange": "whole", "placement": "dst", "objective": "bytes"},
    "src": {"exchange": "whole", "placement": "src", "objective": "bytes"},
    "cover": {"exchange": "whole", "placement": "cover", "objective": "bytes"},
    "bytes": {"exchange": "whole", "objective": "bytes"},
}
COLUMNS = ("placement", "sent MiB", "forward MiB", "of sar", "chosen", "bind s")


class Model(nn.Module):
    """Layers with relu between them."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, edge_index).relu()
        return self.layers[-1](x, edge_index)


def models(width: int, heads: int) -> dict[str, Model]:
    """The models, by name; parameters from seed 0."""
    from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, SAGEConv, TransformerConv

    torch.manual_seed(0)
    head = width // heads
    own = {"add_self_loops": False}
    return {
        "GAT": Model([GATConv(width, head, heads, **own) for _ in range(3)]),
        "GATv2": Model([GATv2Conv(width, head, heads, **own) for _ in range(3)]),
        "Transformer": Model([TransformerConv(width, head, heads) for _ in range(3)]),
        "SAGE": Model([SAGEConv(width, width) for _ in range(3)]),
        "GCN": Model([GCNConv(width, width) for _ in range(3)]),
    }


def run(edge_index: Tensor, name: str, parts: int, options: Options, report: Report) -> None:
    """Every model and contestant on one graph in `parts` parts."""
    nodes = options.nodes or 20_000
    cut = sarc.partition(edge_index, num_nodes=nodes, num_parts=parts, seed=0)
    x = torch.randn(nodes, options.width, generator=torch.Generator().manual_seed(1))
    for case in models(options.width, options.heads):
        if not options.wants(case):
            continue
        of_sar = 0
        for contestant, settings in CONTESTANTS.items():
            if options.contestants and contestant not in options.contestants:
                continue
            model = models(options.width, options.heads)[case]
            compiled = sarc.compile(model, cut, backend=options.backend, halo_budget=1 << 40, **settings)
            started = time.perf_counter()
            compiled(x, edge_index)
            spent = time.perf_counter() - started
            plan = compiled.plan()
            of_sar = of_sar or plan.sent_bytes
            sites = [c.chosen.site for _, c in plan.placements if c.chosen]
            report.add(
                graph=f"{name} N={nodes:,} E={edge_index.shape[1]:,}, {parts} parts", case=case, placement=contestant,
                **{
                    "sent MiB": plan.sent_bytes / (1 << 20),
                    "forward MiB": compiled.traffic()["sent_bytes"] / (1 << 20),
                    "of sar": plan.sent_bytes / of_sar if of_sar else None,
                    "chosen": ", ".join(f"{sites.count(s)} {s}" for s in dict.fromkeys(sites)),
                    "bind s": spent,
                },
            )  # fmt: skip
        if case == "GAT" and not options.contestants:
            limit = least_bytes(edge_index, cut, options.width, options.heads)
            report.add(
                graph=f"{name} N={nodes:,} E={edge_index.shape[1]:,}, {parts} parts", case=case,
                placement="limit of covers", **{"sent MiB": limit / (1 << 20), "of sar": limit / of_sar},
            )  # fmt: skip
        report.show()


def least_bytes(edge_index: Tensor, cut: sarc.Partitions, width: int, heads: int) -> int:
    """Bytes of the two later layers of a GAT, forward and backward, by minimum weighted covers of all pairs."""
    source, target = edge_index
    home, away = cut.assignment[target], cut.assignment[source]
    words = 0
    for p, q in itertools.permutations(range(cut.num_parts), 2):
        mine = (home == p) & (away == q)
        far, far_of = source[mine].unique(return_inverse=True)
        near, near_of = target[mine].unique(return_inverse=True)
        for weights in ((width, width + 3 * heads), (2 * width, width + 3 * heads)):
            cover = minimum_cover(far_of, near_of, far.numel(), near.numel(), ratio(*weights))
            words += int(cover.far.sum()) * weights[0] + int(cover.near.sum()) * weights[1]
    return 2 * 4 * words


@click.command
@click.option("--nodes", default=20_000, show_default=True, type=click.IntRange(1))
@click.option("--degree", default=20, show_default=True, help="E / N.")
@click.option("--width", default=128, show_default=True)
@click.option("--heads", default=4, show_default=True)
@click.option("--parts", "part_counts", multiple=True, type=click.IntRange(1), default=(4, 8), show_default=True)
@click.option(
    "--graph", "kinds", multiple=True, type=click.Choice([GENERATED, *KINDS]), default=(GENERATED, "rmat", "uniform"),
    show_default=True, help="A degree-corrected block model, or a kind of benchmarks/graphs.py.",
)  # fmt: skip
@click.option("--only", multiple=True, metavar="MODEL", help="GAT, GATv2, Transformer, SAGE or GCN.")
@click.option("--contestants", multiple=True, type=click.Choice(list(CONTESTANTS)))
@click.option("--backend", default="auto", show_default=True, help="Of sarc.compile.")
@click.option("--json", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write results.")
def main(kinds: tuple[str, ...], part_counts: tuple[int, ...], **given) -> None:
    """Bytes of an epoch by where edge programs run."""
    options = Options(threads=1, **given)
    set_threads(1)
    report = Report("placement", options, COLUMNS)
    nodes = options.nodes or 20_000
    for kind in kinds:
        if kind == GENERATED:
            edge_index = labelled_graph(nodes, average_degree=options.degree, num_features=1).edge_index
        else:
            edge_index = draw(kind, nodes, nodes * options.degree).edge_index
        for parts in part_counts:
            run(edge_index, kind, parts, options, report)


if __name__ == "__main__":
    main()
