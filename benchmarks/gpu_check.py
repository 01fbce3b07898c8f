"""Builds, checks and times the CUDA kernels on this machine's GPU, in less than 8 minutes, and writes a report.

    python -m benchmarks.gpu_check                         # N = 1M, E = 20M; writes gpu_report.md and gpu_report.json
    python -m benchmarks.gpu_check --nodes 100000 --edges 2000000 --seconds 200
    python -m benchmarks.gpu_check --device cpu --nodes 2000 --edges 20000    # dry run of the script itself

It needs torch and nvcc; PyG, torch.compile and DGL are contestants where they are present. Times are medians of CUDA
events after warm-up; inputs are drawn anew for each run, and the memory that results are made in is poisoned with NaN.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import sarc
from benchmarks import gpu_models as models
from benchmarks.gpu_contestants import Given, contestants, rival_of
from benchmarks.graphs import power_law
from sarc.codegen.nvcc import nvcc

HEADS, FEATURES = 4, 32
WIDTH = HEADS * FEATURES
# Bounds on max|a - b| / max(1, max|b|) against the plain module in float64 on the CPU; in 16 bits, where two orders of
# one sum differ by as much as either does from the exact one, the plain module's own error times this.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
LOW_PRECISION_FACTOR = 3
LAYERS = ("attention", "attention v2", "transformer", "max", "sum", "weighted sum")
CHECKS = 0.45  # share of the time that checks may take


@dataclass
class Findings:
    """What goes into the report.

    Attributes:
        until: time.monotonic() at which nothing more is started.
    """

    until: float
    facts: list[tuple[str, str]] = field(default_factory=list)
    checks: list[tuple[str, str]] = field(default_factory=list)
    times: list[dict[str, object]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def late(self, what: str) -> bool:
        """Whether there is no time left for something; it is noted."""
        if time.monotonic() < self.until:
            return False
        self.skipped.append(what)
        return True


def main() -> None:
    given = _arguments()
    started = time.monotonic()
    found = Findings(started + given.seconds)
    device = torch.device(given.device, 0) if given.device == "cuda" else torch.device(given.device)
    found.facts += facts(device)
    only = given.only or LAYERS
    check_all(found, device, started, only)
    time_all(found, device, given.nodes, given.edges, given.repeat, only)
    found.facts.append(("took", f"{time.monotonic() - started:.0f} s"))
    text = report(found, given)
    Path(f"{given.out}.md").write_text(text)
    Path(f"{given.out}.json").write_text(json.dumps(found.__dict__ | {"until": None}, indent=1, default=str))
    print(text)
    if any(not said.startswith("ok") for _, said in found.checks):
        raise SystemExit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=20_000_000)
    parser.add_argument("--seconds", type=float, default=400.0, help="after which nothing more is started")
    parser.add_argument("--repeat", type=int, default=11)
    parser.add_argument("--only", action="append", choices=LAYERS, help="a layer; may be given several times")
    parser.add_argument("--out", default="gpu_report")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"no CUDA device: torch {torch.__version__} was built for CUDA {torch.version.cuda}; install a CUDA build "
            f"of torch on a machine with a GPU, or try the script with --device cpu --nodes 2000 --edges 20000"
        )
    return given


def facts(device: torch.device) -> list[tuple[str, str]]:
    found = [("python", platform.python_version()), ("torch", torch.__version__), ("nvcc", nvcc() or "none")]
    for name in ("torch_geometric", "dgl"):
        try:
            found.append((name, __import__(name).__version__))
        except Exception as error:  # a library that is there and does not load is as good as none
            found.append((name, f"none ({type(error).__name__})"))
    if device.type == "cuda":
        seen = torch.cuda.get_device_properties(device)
        found.append(("GPU", f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB, compute {seen.major}.{seen.minor}"))
        found.append(("copy bandwidth", f"{copy_bandwidth(device) / 1e9:.0f} GB/s read and written"))
    return found


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of 1 GiB reads and writes."""
    a = torch.empty(2**28, device=device)
    b = torch.empty_like(a)
    seconds = statistics.median(clock(lambda: b.copy_(a), lambda k: None, device, 9))
    return 2 * a.nbytes / seconds


# --- checks


def check_all(found: Findings, device: torch.device, started: float, only: Sequence[str]) -> None:
    """Every layer, on rows of no edge to hubs, in several dtypes, widths and numbers of parts, against the CPU."""
    usual, hub, long = "rows of about 10 edges", "a hub of 3,000", "a hub of 40,000"
    graphs = {usual: graph(0), hub: graph(3_000), long: graph(40_000)}
    main = (HEADS, FEATURES)
    plan = [(torch.float32, main, where, parts) for where, parts in ((usual, 1), (hub, 1), (long, 1), (usual, 3))]
    plan += [(torch.float32, shape, hub, 1) for shape in ((2, 3), (1, 257))]
    plan += [(dtype, main, hub, 1) for dtype in (torch.float64, torch.bfloat16, torch.float16)]
    for dtype, (heads, features), where, parts in plan:
        for name, make in ((n, m) for n, m in layers(heads, features).items() if n in only):
            what = f"{name} {heads} x {features}, {where}, {str(dtype)[6:]}, {parts} parts"
            if time.monotonic() > started + CHECKS * (found.until - started):
                found.skipped.append(f"check of {what}")
                continue
            found.checks.append((what, check(make(), graphs[where], heads * features, dtype, parts, device)))


def graph(hub: int) -> Tensor:
    """300 nodes, the last of them without edges, and one into which `hub` more edges go."""
    random = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 297, (2, 3_000), generator=random)
    into = torch.stack([torch.randint(0, 300, (hub,), generator=random), torch.zeros(hub, dtype=torch.int64)])
    return torch.cat([edges, into], 1)


def layers(heads: int, features: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        "attention": partial(models.AttentionCore, heads, features),
        "attention v2": partial(models.AttentionV2Core, heads, features),
        "transformer": partial(models.TransformerCore, heads, features),
        "max": models.Max,
        "sum": models.Sum,
    }


def check(
    model: nn.Module, edge_index: Tensor, width: int, dtype: torch.dtype, parts: int, device: torch.device
) -> str:
    """ "ok" with the error of values and gradients, or what went wrong."""
    torch.manual_seed(1)
    try:
        x, cotangent = torch.randn(300, width).to(dtype), torch.randn(300, width).to(dtype)
        model = model.to(dtype)
        exact = [v.double() for v in (x, cotangent)]
        expected = step(model.double(), exact[0], edge_index, exact[1])
        model = model.to(dtype)
        plain = step(model, x, edge_index, cotangent)
        model = model.to(device)
        cut = sarc.partition(edge_index, num_nodes=300, num_parts=parts, method="random")
        compiled = sarc.compile(model, cut, backend="cuda" if device.type == "cuda" else "auto")
        got = step(compiled, x.to(device), edge_index.to(device), cotangent.to(device))
        found = worst(got, expected)
        allowed = TOLERANCE.get(dtype) or LOW_PRECISION_FACTOR * worst(plain, expected)
        kernels = [e.runs.how for e in compiled.plan().edges]
    except Exception:  # everything else is still checked, and the report says what failed
        return traceback.format_exc(limit=-3)
    where = f"error {found:.1e}, {kernels.count('kernel')} of {len(kernels)} edge programs are kernels"
    return f"ok, {where}" if found <= allowed else f"WRONG, {where}, allowed {allowed:.1e}"


def worst(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(
        float((a.cpu().double() - b).abs().max() / max(1.0, float(b.abs().max())))
        for a, b in zip(got, expected, strict=True)
    )


def step(model: nn.Module, x: Tensor, edge_index: Tensor, cotangent: Tensor, *more: Tensor) -> list[Tensor]:
    """Result, and gradients of x and the parameters, of one call."""
    x = x.detach().requires_grad_()
    out = model(x, edge_index, *more)
    return [out.detach(), *torch.autograd.grad(out, [x, *model.parameters()], cotangent)]


# --- times


def time_all(
    found: Findings, device: torch.device, nodes: int, edges: int, repeat: int, only: Sequence[str]
) -> None:
    random = torch.Generator().manual_seed(0)
    edge_index = torch.stack(power_law(nodes, edges, random))
    parts = sarc.partition(edge_index, num_nodes=nodes, num_parts=1)
    on_device = edge_index.to(device)
    bandwidth = copy_bandwidth(device) if device.type == "cuda" else 0.0
    words = 4 * (nodes + edges)
    gather = words + 4 * WIDTH * (edges + nodes)
    forward = words + edges * (4 * WIDTH + 4 * HEADS) + nodes * (4 * WIDTH + 8 * HEADS)
    backward = words + edges * (4 * WIDTH + 12 * HEADS) + nodes * (16 * WIDTH + 12 * HEADS)
    bounds = {"attention": forward + backward, "sum": 2 * gather, "max": 2 * gather}
    weights = torch.rand(edges, generator=random).to(device)
    cases = [(name, make, ()) for name, make in layers(HEADS, FEATURES).items()]
    cases = [c for c in (*cases, ("weighted sum", models.WeightedSum, (weights,))) if c[0] in only]
    backend = "cuda" if device.type == "cuda" else "auto"
    done: dict[tuple[str, str], dict[str, object]] = {}
    for first in (True, False):  # what the figures need, then the rest as far as the time goes
        for name, make, more in cases:
            torch.manual_seed(0)
            given = Given(name, make().to(device), on_device, more, parts, nodes, backend)
            for who, function in contestants(given, HEADS, FEATURES):
                if needed(name, who) != first or found.late(f"time of {name} by {who}"):
                    continue
                row = done[name, who] = measure(name, who, function, on_device, more, nodes, device, repeat)
                if who == "sarc" and name in bounds and bandwidth and "ms" in row:
                    row["share of the byte bound"] = f"{bounds[name] / bandwidth / (float(str(row['ms'])) / 1e3):.0%}"
                ours = done.get((name, rival_of(who)), done.get((name, "sarc"), {}))
                if not who.startswith("sarc"):
                    row |= {f"times sarc's {w}": times for w in ("ms", "peak MiB") if (times := ratio(row, ours, w))}
                print(row, flush=True)
    found.times += [row for name, _, _ in cases for (layer, _), row in done.items() if layer == name]


def needed(layer: str, who: str) -> bool:
    """Whether a figure is about a contestant, or holds it against this one."""
    return who in ("sarc", rival_of("PyG")) or any((layer, who) == figure[:2] for figure in FIGURES)


def ratio(row: dict[str, object], ours: dict[str, object], what: str) -> str:
    """How many times sarc's a contestant's number is, or "" where one of them has none."""
    if what not in row or float(str(ours.get(what, 0))) <= 0:
        return ""
    return f"{float(str(row[what])) / float(str(ours[what])):.2f}"


def measure(
    name: str, who: str, make, edge_index: Tensor, more: tuple, nodes: int, device: torch.device, repeat: int
) -> dict[str, object]:
    """Median milliseconds of forward and backward, and the peak of memory above what the inputs take."""
    row: dict[str, object] = {"layer": name, "by": who}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        model = make()
        x = torch.empty(nodes, WIDTH, device=device, requires_grad=True)
        cotangent = torch.empty(nodes, WIDTH, device=device)

        def refresh(k: int) -> None:
            with torch.no_grad():
                x.normal_()
                cotangent.normal_()
                del_me = torch.full_like(x, float("nan"))  # what is freed here, results are made in
                del del_me

        def run() -> None:
            out = model(x, edge_index, *more)
            torch.autograd.grad(out, [x, *model.parameters()], cotangent, allow_unused=True)

        first = time.perf_counter()
        refresh(0)
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        row["first call s"] = f"{time.perf_counter() - first:.1f}"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            torch.cuda.synchronize()
            row["peak MiB"] = f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.0f}"
        row["ms"] = f"{1e3 * statistics.median(clock(run, refresh, device, repeat)):.3f}"
    except torch.OutOfMemoryError:
        row["failed"] = "out of memory"
    except Exception as error:  # one contestant's failure is a row, not the end
        row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    return row


def clock(run: Callable[[], object], refresh: Callable[[int], None], device: torch.device, repeat: int) -> list[float]:
    """Seconds of `repeat` runs, after two that are not counted."""
    seconds = []
    for k in range(-2, repeat):
        refresh(k)
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            spent = start.elapsed_time(end) / 1e3
        else:
            begun = time.perf_counter()
            run()
            spent = time.perf_counter() - begun
        if k >= 0:
            seconds.append(spent)
    return seconds


# --- the report


def report(found: Findings, given: argparse.Namespace) -> str:
    lines = ["# GPU report", "", f"`python -m benchmarks.gpu_check` with {vars(given)}", ""]
    lines += [f"- {name}: {value}" for name, value in found.facts]
    bad = [(what, said) for what, said in found.checks if not said.startswith("ok")]
    good = len(found.checks) - len(bad)
    lines += ["", "## Checks", "", f"{good} of {len(found.checks)} agree with plain torch in float64."]
    for what, said in bad:
        lines += ["", f"**{what}**", "", "```", said, "```"]
    lines += ["", "## Figures", "", "| | wanted | found |", "|---|---|---|"]
    lines += [f"| {what} | at least {least} | {said} |" for what, least, said in figures(found.times)]
    columns = ["layer", "by", "ms", "times sarc's ms", "peak MiB", "times sarc's peak MiB", "share of the byte bound"]
    columns += ["first call s", "failed"]
    lines += ["", f"## Forward and backward, {HEADS} x {FEATURES} features, N={given.nodes:,} E={given.edges:,}", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in found.times]
    if found.skipped:
        shown = "; ".join(found.skipped[:5]) + ("; ..." if len(found.skipped) > 5 else "")
        lines += ["", f"{len(found.skipped)} not done, for want of time (--seconds): {shown}"]
    return "\n".join(lines) + "\n"


FIGURES = (
    ("attention", "PyG", "times sarc's ms", "5"),
    ("attention", "PyG, torch.compile", "times sarc's ms", "3"),
    ("attention", "PyG", "times sarc's peak MiB", "6"),
    ("attention", "sarc", "share of the byte bound", "60%"),
    ("attention v2", "PyG", "times sarc's ms", "3"),
    ("transformer", "PyG", "times sarc's ms", "3"),
    ("max", "PyG", "times sarc's ms", "3"),
    ("sum", "torch.sparse", "times sarc's ms", "1"),
    ("weighted sum", "torch.sparse", "times sarc's ms", "1"),
)
"""(layer, contestant, column, least value) of what the kernels are to reach on a GPU at the default size."""


def figures(times: list[dict[str, object]]) -> list[tuple[str, str, str]]:
    """(what, least value, what was measured) of each figure."""
    rows = {(row["layer"], row["by"]): row for row in times}
    return [
        (f"{layer}, {who}: {column}", least, str(rows.get((layer, who), {}).get(column, "not measured")))
        for layer, who, column, least in FIGURES
    ]


if __name__ == "__main__":
    main()
