"""What every benchmark is asked for on the command line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from benchmarks.graphs import KINDS, Graph, draw

# N, E: a feature table that exceeds the last-level cache of most machines at 128 floats a row, and one that fits it.
SIZES = ((100_000, 2_000_000), (20_000, 1_000_000))


@dataclass(frozen=True)
class Options:
    """Settings of one run.

    Attributes:
        nodes: N; None: the benchmark's own sizes.
        degree: E / N; with `nodes` None it is unused.
        width: F, float32 columns of a node's row.
        heads: H, attention heads of width F / H each.
        repeat: timed repetitions of every contestant.
        threads: of torch, DGL and all kernels.
        graph: kind of graph, a key of `graphs.KINDS`.
        only: names of the cases to run; empty: all.
        contestants: names of the contestants to run; empty: all.
        backend: of sarc.compile.
        torch_compile: whether torch.compile takes part.
        memory: whether peak memory is measured, one child process a contestant.
        json: file for the results.
    """

    nodes: int | None = None
    degree: int = 20
    width: int = 128
    heads: int = 4
    repeat: int = 7
    threads: int = 2
    graph: str = "power-law"
    only: tuple[str, ...] = ()
    contestants: tuple[str, ...] = ()
    backend: str = "cpp"
    torch_compile: bool = True
    memory: bool = True
    json: Path | None = None

    def graphs(self, default: tuple[tuple[int, int], ...] = SIZES) -> Iterator[Graph]:
        """The graphs to run on, one after the other."""
        for nodes, edges in default if self.nodes is None else ((self.nodes, self.nodes * self.degree),):
            yield draw(self.graph, nodes, edges)

    def wants(self, case: str) -> bool:
        return not self.only or case.lower() in {name.lower() for name in self.only}

    def invites(self, contestant: str) -> bool:
        if "torch.compile" in contestant and not self.torch_compile:
            return False
        return not self.contestants or contestant.lower() in {name.lower() for name in self.contestants}


_DEFAULT = Options()
_OPTIONS = (
    click.option("--nodes", type=click.IntRange(1), help="N; default: the benchmark's own sizes."),
    click.option("--degree", default=_DEFAULT.degree, show_default=True, help="E / N, together with --nodes."),
    click.option("--width", default=_DEFAULT.width, show_default=True, help="Floats in a node's row."),
    click.option("--heads", default=_DEFAULT.heads, show_default=True, help="Attention heads; must divide --width."),
    click.option("--repeat", type=click.IntRange(1), default=_DEFAULT.repeat, show_default=True),
    click.option("--threads", type=click.IntRange(1), default=_DEFAULT.threads, show_default=True),
    click.option("--graph", type=click.Choice(list(KINDS)), default=_DEFAULT.graph, show_default=True),
    click.option("--only", multiple=True, metavar="CASE", help="Run this case; may be repeated."),
    click.option("--contestants", multiple=True, metavar="NAME", help="Run this contestant; may be repeated."),
    click.option("--backend", default=_DEFAULT.backend, show_default=True, help="Of sarc.compile."),
    click.option("--torch-compile/--no-torch-compile", default=True, help="It takes minutes to compile."),
    click.option("--memory/--no-memory", default=True, help="Peak memory, one child process a contestant."),
    click.option("--json", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write results."),
)


def command(run: Callable[[Options], object]) -> click.Command:
    """A command line for `run`, whose docstring is the help text."""

    @functools.wraps(run)
    def main(**given) -> None:
        options = Options(**given)
        set_threads(options.threads)
        run(options)

    for option in reversed(_OPTIONS):
        main = option(main)
    return click.command(main)


def set_threads(threads: int) -> None:
    """Threads of torch, of DGL and, through OpenMP's setting, of kernels loaded later."""
    torch.set_num_threads(threads)
    try:
        from dgl.utils import set_num_threads
    except ImportError:
        return
    set_num_threads(threads)
