"""Products of rows by a matrix whose width fills no vector register: `python -m benchmarks.products`.

The executor's product (`sarc/ir/products.py`) and the library's, in turn, into memory that is there: median
milliseconds, and the median ratio, for each width.
"""

from __future__ import annotations

import click
import torch

from benchmarks.timing import interleave, median_ratio, quartiles
from sarc.ir.products import multiply_into

WIDTHS = (40, 47, 60, 100, 172, 188, 349)


@click.command()
@click.option("--nodes", default=100_000, show_default=True)
@click.option("--inner", default=128, show_default=True, help="Columns of the rows.")
@click.option("--width", "widths", multiple=True, type=int, default=WIDTHS, show_default=True, help="Of the matrix.")
@click.option("--threads", default=1, show_default=True)
@click.option("--repeat", default=15, show_default=True)
def main(nodes: int, inner: int, widths: tuple[int, ...], threads: int, repeat: int) -> None:
    """Time of products by their width, float32."""
    torch.set_num_threads(threads)
    x = torch.randn(nodes, inner)
    print(f"{nodes:,} rows of {inner}, {threads} threads, {repeat} products of each in turn")
    for width in widths:
        matrix, out = torch.randn(width, inner).t(), torch.empty(nodes, width)
        steps = {
            "library": lambda matrix=matrix, out=out: torch.mm(x, matrix, out=out),
            "sarc": lambda matrix=matrix, out=out: multiply_into(x, matrix, out=out),
        }
        taken = interleave(steps, lambda k: None, repeat)
        (_, library, _), (_, ours, _) = (quartiles(taken[name]) for name in ("library", "sarc"))
        ratio = median_ratio(taken["sarc"], taken["library"])
        print(f"width {width:4}: library {1e3 * library:7.2f} ms, sarc {1e3 * ours:7.2f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
