"""Table and plot of `benchmarks.memory` for the documents: `python -m benchmarks.memory_page RESULTS.json
docs/memory.md`.

The table goes between the page's two markers, the plot beside the page as memory.svg.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import click

MEBI = 1 << 20
_BEGIN, _END = "<!-- table of benchmarks.memory -->", "<!-- end of table -->"
_COLORS = ("#1565c0", "#c62828", "#2e7d32", "#6a1b9a")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 360, 70, 50


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown; MiB."""
    lines = [
        f"N={results['nodes']:,}, E={results['nodes'] * results['degree']:,}, {results['threads']} thread a process, "
        f"`exchange={results['exchange']!r}`; MiB of a step beyond what is loaded.",
        "",
        "| graph | model | contestant | P | peak | between the passes | tracked | predicted |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        if "exponent" in row:
            continue
        sizes = [f"{row[k] / MEBI:.1f}" if k in row else "" for k in ("peak", "saved", "tracked", "predicted")]
        how = f"{row['parts']} ranks" if row["ranks"] else f"{row['parts']} in one process" if row["parts"] > 1 else "1"
        sizes[0] = sizes[0] or row.get("note", "")[:60]
        lines.append(f"| {row['graph']} | {row['model']} | {row['contestant']} | {how} | {' | '.join(sizes)} |")
    lines.append("")
    for row in results["rows"]:
        if "exponent" in row:
            which = f"{'peak' if row['of'] == 'ranks' else 'tracked peak'} of the largest of P {row['of']}"
            lines.append(f"- {row['graph']}, {row['model']}: {which} falls as P^{row['exponent']:.2f}")
    return "\n".join(lines)


def plot(results: dict[str, Any]) -> str:
    """Peak of a rank against P, both axes logarithmic, as SVG; dashed: 1/P."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in results["rows"]:
        if row.get("ranks") and "peak" in row:
            series.setdefault(f"{row['model']}, {row['graph']}", []).append((row["parts"], row["peak"] / MEBI))
    points = [p for line in series.values() for p in line]
    most = max(p for p, _ in points)
    low, high = min(v for _, v in points) / 1.5, max(v for _, v in points) * 1.3

    def x(parts: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 150) * (math.log(parts) / max(math.log(most), 1e-9))

    def y(size: float) -> float:
        return 20 + (_HEIGHT - 20 - _BOTTOM) * math.log(high / size) / math.log(high / low)

    head = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12"'
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {head}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for parts in sorted({p for p, _ in points}):
        made.append(f'<text x="{x(parts):.0f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{parts}</text>')
    ticks = [k * 10**e for e in range(-1, 6) for k in (1, 2, 5) if low <= k * 10**e <= high]
    for tick in ticks:
        made.append(f'<line x1="{_LEFT}" x2="{x(most):.0f}" y1="{y(tick):.0f}" y2="{y(tick):.0f}" stroke="#ddd"/>')
        made.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.0f}" text-anchor="end">{tick:g}</text>')
    made.append(f'<text x="{_LEFT}" y="14">MiB a rank, beyond what is loaded</text>')
    made.append(f'<text x="{x(most) / 2 + 30:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">P, ranks</text>')
    for (name, line), color in zip(series.items(), _COLORS, strict=False):
        ideal = [(p, line[0][1] * line[0][0] / p) for p, _ in line]
        for curve, dash in ((line, ""), (ideal, ' stroke-dasharray="4 4" opacity="0.5"')):
            path = " ".join(f"{x(p):.1f},{min(y(v), _HEIGHT - _BOTTOM):.1f}" for p, v in curve)
            made.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
        made += [f'<circle cx="{x(p):.1f}" cy="{y(v):.1f}" r="3" fill="{color}"/>' for p, v in line]
        last = line[-1]
        made.append(f'<text x="{x(last[0]) + 8:.0f}" y="{y(last[1]) + 4:.0f}" fill="{color}">{name}</text>')
    return "\n".join([*made, "</svg>", ""])


@click.command()
@click.argument("results", type=click.Path(exists=True, path_type=Path))
@click.argument("page", type=click.Path(exists=True, path_type=Path))
def main(results: Path, page: Path) -> None:
    """Put the table of RESULTS into PAGE and the plot beside it."""
    found = json.loads(results.read_text())
    text = re.sub(f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n{table(found)}\n{_END}", page.read_text(), flags=re.DOTALL)
    page.write_text(text)
    page.with_name("memory.svg").write_text(plot(found))


if __name__ == "__main__":
    main()
