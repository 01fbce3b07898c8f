"""What the examples show: a line that follows the epochs, and the tables at the end."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table


class EpochLog:
    """Follows one run: a progress bar on a terminal, a line every twentieth epoch elsewhere, JSON lines in a file.

    Args:
        epochs: how many epochs there will be at most.
        path: file that receives one JSON object an epoch (appended to), or None.
        silent: show and write nothing (every rank but the first).
    """

    def __init__(self, epochs: int, seed: int, path: Path | None, *, silent: bool) -> None:
        self.epochs, self.seed, self.silent = epochs, seed, silent
        self.file = path.open("a", encoding="utf-8") if path is not None and not silent else None
        console = Console()
        self.on_terminal = console.is_terminal
        self.progress = Progress(
            TextColumn(f"seed {seed}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=silent or not self.on_terminal,
        )
        self.task = self.progress.add_task("epochs", total=epochs, line="compiling")

    def __enter__(self) -> EpochLog:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()
        if self.file is not None:
            self.file.close()

    def add(self, epoch: int, seconds: float, loss: float, accuracy: dict[str, float]) -> None:
        """Shows one epoch; `seconds` of the training step, `accuracy` in [0, 1] by mask name."""
        percents = " ".join(f"{name} {100 * value:.1f} %" for name, value in accuracy.items())
        line = f"{1000 * seconds:.0f} ms loss {loss:.4f} {percents}"
        self.progress.update(self.task, completed=epoch, line=line)
        if not self.silent and not self.on_terminal and (epoch == 1 or epoch % 20 == 0):
            print(f"seed {self.seed}, epoch {epoch}/{self.epochs}: {line}", flush=True)
        if self.file is not None:
            row = {"seed": self.seed, "epoch": epoch, "seconds": seconds, "loss": loss, **accuracy}
            self.file.write(json.dumps(row) + "\n")


def report(runs: list[Any], processes: list[dict[str, Any]]) -> None:
    """Prints the accuracies of the runs (one a seed) and what each process held and sent."""
    console = Console()
    console.print(_accuracy_table(runs))
    console.print(_process_table(processes))


def _accuracy_table(runs: list[Any]) -> Table:
    table = Table(title="Accuracy at the best validation epoch")
    for heading in ("run", "best epoch", "validation", "test", "median s/epoch"):
        table.add_column(heading, justify="right")
    for number, run in enumerate(runs, start=1):
        seconds = statistics.median(run.step_seconds) if run.step_seconds else 0.0
        accuracies = (f"{100 * run.val_accuracy:.2f} %", f"{100 * run.test_accuracy:.2f} %")
        table.add_row(str(number), str(run.best_epoch), *accuracies, f"{seconds:.4f}")
    if len(runs) > 1:
        means = [_mean_and_deviation([getattr(run, key) for run in runs]) for key in ("val_accuracy", "test_accuracy")]
        seconds = statistics.median(step for run in runs for step in run.step_seconds)
        table.add_section()
        table.add_row("mean", "", *means, f"{seconds:.4f}")
    table.caption = "seconds of the training step, without evaluation"
    return table


def _mean_and_deviation(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f} %"


def _process_table(processes: list[dict[str, Any]]) -> Table:
    table = Table(title="Per process; bytes are per epoch")
    for heading in ("rank", "parts", "owned", "halo rows", "peak memory", "sent", "all-reduced"):
        table.add_column(heading, justify="right")
    for row in processes:
        table.add_row(
            str(row["rank"]),
            _range(row["parts"]),
            str(row["owned_nodes"]),
            str(row["halo_rows"]),
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
            f"{row['sent_bytes'] / 2**10:.1f} KiB",
            f"{row['all_reduce_bytes'] / 2**10:.1f} KiB",
        )
    return table


def _range(parts: list[int]) -> str:
    """Consecutive part numbers as "2" or "2-5"."""
    return str(parts[0]) if len(parts) == 1 else f"{parts[0]}-{parts[-1]}"
