"""The command line `sarc`: how each command is called. What they do is in `sarc/commands/`.

Importing this file defines the commands; each imports what it needs when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from sarc.errors import SarcError

if TYPE_CHECKING:
    from sarc.commands.run_model import Wanted


class _Commands(click.Group):
    """Reports what sarc refuses as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SarcError as error:
            raise click.ClickException(f"{error}" if str(error) else type(error).__name__) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sarc", message="sarc %(version)s")
def main() -> None:
    """See what the compiler does with a model: its programs, plan, kernels and costs.

    MODEL is FILE.py:NAME, where NAME is a module class, a function that returns a module (or a module and the arguments
    of a call), or a module; 'FILE.py:NAME(32, 7)' passes literals. Output is plain text when piped; --json gives JSON.
    """


_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")


def _backend(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--backend", type=click.Choice(["auto", "cpp", "reference"]), default=default, show_default=True,
        help="How parts compute: as kernels where they have one, or in plain torch.",
    )  # fmt: skip


_data = click.option(
    "--data",
    default="generated",
    show_default=True,
    help="Graph: generated, a name sarc.data.load knows, or a .npz file.",
)
_nodes = click.option("--nodes", default=400, show_default=True, type=click.IntRange(1), help="Of the generated graph.")
_parts = click.option("--parts", default=4, show_default=True, type=click.IntRange(1), help="Number of partitions.")


def _about_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """The argument MODEL and the options of its call; the command receives them as `wanted`."""
    options = [
        click.argument("model"),
        click.option(
            "--input", "specs", multiple=True, metavar="SPEC",
            help="An argument of the call, in order: NAME or NAME:TYPE, as in x:f32[N,16], batch:i64[N]<3, g:dgl.",
        ),
        _data,
        _nodes,
        _parts,
        click.option("--method", help="How the graph is cut: metis, random or contiguous."),
        click.option("--eval", "evaluation", is_flag=True, help="Eval mode, instead of a training step."),
        click.option(
            "--space", "spaces", multiple=True, metavar="NAME=N|E|none", help="Whose rows an argument holds."
        ),
        click.option("--prefetch", default=1, show_default=True, type=click.IntRange(0), help="Chunks posted ahead."),
        click.option(
            "--exchange", default="auto", show_default=True, type=click.Choice(["auto", "ring", "whole", "sar"]),
            help="How rows travel between parts.",
        ),
        click.option(
            "--placement", default="auto", show_default=True, type=click.Choice(["auto", "dst", "src", "cover"]),
            help="Where edges run whose ends two parts own.",
        ),
        click.option(
            "--objective", default="time", show_default=True, type=click.Choice(["time", "bytes", "memory"]),
            help="What decides it.",
        ),
        click.option("--memory-budget", metavar="SIZE", help="Of a step on one part, with a unit: 8GiB."),
        click.option("--offload", type=click.Choice(["disk"]), help="Large tensors of a step lie in files."),
    ]  # fmt: skip

    def run(
        model: str, specs: tuple[str, ...], data: str, nodes: int, parts: int, method: str | None, evaluation: bool,
        spaces: tuple[str, ...], prefetch: int, exchange: str, placement: str, objective: str,
        memory_budget: str | None, offload: str | None, backend: str = "reference", **rest: Any,
    ) -> None:  # fmt: skip
        from sarc.commands.run_model import Wanted

        named = dict(_space(s) for s in spaces)
        training = not evaluation
        how: dict[str, Any] = {
            "exchange": exchange, "placement": placement, "objective": objective, "memory_budget": memory_budget,
            "offload": offload,
        }  # fmt: skip
        command(Wanted(model, specs, data, nodes, parts, method, backend, training, prefetch, named, **how), **rest)

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
    for option in reversed(options):
        run = option(run)
    return run


def _space(text: str) -> tuple[str, str | None]:
    name, separator, space = text.partition("=")
    if not separator or space not in ("N", "E", "none"):
        raise click.BadParameter(f"expected NAME=N, NAME=E or NAME=none, got {text!r}", param_hint="--space")
    return name, None if space == "none" else space


@main.command()
@_json
@click.option("--bytes", "with_bytes", is_flag=True, help="Add the bytes of every value to the text.")
@click.option("--stage", help="Only programs of this stage: raised, step, joint, forward, backward, ...")
@click.option(
    "--format", "format_", type=click.Choice(["text", "python", "dot", "json"]), default="text", show_default=True,
    help="text reads back (run-pass).",
)  # fmt: skip
@click.option("--diff", is_flag=True, help="What every pass (or that of --after) changed.")
@click.option("--all", "everything", is_flag=True, help="After every pass.")
@click.option("--after", metavar="PASS", help="After this pass; without it, what the parts run.")
@_backend("reference")
@_about_a_model
def dump(
    wanted: Wanted, as_json: bool, after: str | None, everything: bool, diff: bool, format_: str, **rest: Any
) -> None:
    """Print the program after any pass, with spaces, shapes, bytes and your lines."""
    from sarc.commands.dump import dump
    from sarc.commands.run_model import start

    dump(start(wanted), after, everything, diff, "json" if as_json else format_, **rest)


@main.command("run-pass")
@click.argument("file")
@click.option("--pass", "names", multiple=True, required=True, metavar="NAME", help="A pass; several run in order.")
@click.option("--stage", help="Which program of the file, when it holds several.")
@click.option("--wrt", multiple=True, help="differentiate: by these inputs instead of all parameters.")
@click.option("--remote", multiple=True, help="partition-program: columns that reach other parts; all, unless given.")
@_json
def run_pass(file: str, names: tuple[str, ...], stage: str | None, wrt: tuple[str, ...], remote: tuple[str, ...],
             as_json: bool) -> None:  # fmt: skip
    """Run passes on a printed program: one command that reproduces what a pass does."""
    from sarc.commands.run_pass import run_pass

    run_pass(file, names, stage, wrt, remote or None, as_json)


@main.command()
@_json
@click.option("--run", is_flag=True, help="Also measure one step: memory, and predicted against measured.")
@_backend("auto")
@_about_a_model
def plan(wanted: Wanted, run: bool, as_json: bool) -> None:
    """Print what a step exchanges, stores and keeps, edge program by edge program."""
    from sarc.commands.plan import plan
    from sarc.commands.run_model import start

    plan(start(wanted), run, as_json)


@main.command()
@_json
@click.option("--list", "table", is_flag=True, help="Which edge programs have kernels, without sources.")
@click.option("--only", metavar="NAME", help="One edge program: edges0, ...")
@click.option("--target", type=click.Choice(["cpp", "cuda"]), default="cpp", show_default=True)
@_about_a_model
def kernels(wanted: Wanted, target: str, only: str | None, table: bool, as_json: bool) -> None:
    """Print the generated code of every edge program, or why it has none."""
    from sarc.commands.kernels import kernels
    from sarc.commands.run_model import start

    kernels(start(wanted), target, only, table, as_json)


@main.command()
@click.argument("name", required=False)
@_json
def passes(name: str | None, as_json: bool) -> None:
    """List the compiler's passes, or show one with its example."""
    from sarc.commands.passes import passes

    passes(name, as_json)


@main.command()
@_json
@_about_a_model
def explain(wanted: Wanted, as_json: bool) -> None:
    """Say whether a model can be compiled, what of it runs how, and what costs."""
    from sarc.commands.explain import explain

    if not explain(wanted, as_json):
        raise SystemExit(1)


@main.command()
@_data
@_nodes
@_parts
@click.option("--method", help="Only this one: metis, random or contiguous.")
@click.option("--seed", default=0, show_default=True)
@click.option("--matrix", is_flag=True, help="Also the rows that each part needs from each other.")
@click.option("--time", "timed", is_flag=True, help="Also the seconds that cutting took.")
@_json
def partition(data: str, nodes: int, parts: int, method: str | None, seed: int, **rest: Any) -> None:
    """Compare the methods that cut a graph: cut, halo, replication, balance, volume."""
    from sarc.commands.partition import compare_methods

    compare_methods(data, nodes, parts, method, seed, **rest)


@main.command()
@_json
@click.option("-o", "--out", default="sarc-report.html", show_default=True, help="The file to write.")
@_backend("auto")
@_about_a_model
def report(wanted: Wanted, out: str, as_json: bool) -> None:
    """Measure one step and write an HTML page: programs, exchange, timeline, memory, kernels."""
    from sarc.commands.report import report
    from sarc.commands.run_model import start

    report(start(wanted), out, as_json)


@main.command()
@_json
def doctor(as_json: bool) -> None:
    """Look at the machine: compiler, OpenMP, CUDA, transports, cache, versions."""
    from sarc.commands.doctor import doctor

    if not doctor(as_json):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
