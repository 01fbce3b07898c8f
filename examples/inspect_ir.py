"""Look inside a compiled model: programs, plan, schedule, a trace and a report.

    python examples/inspect_ir.py [FOLDER]      writes trace.json and report.html there (default: the current folder)

The same on the command line: sarc dump | plan | explain | report examples/models.py:'GAT(16, 7, 8, 4, 0.6)'
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from models import SETTINGS, build_model

import sarc
from sarc.report.make_report import make_report
from sarc.report.predict import measure_rates


def main(folder: Path) -> None:
    data = sarc.data.labelled_graph(1000, num_features=16, seed=0)
    torch.manual_seed(0)
    model = build_model("gat", data.num_features, data.num_classes, SETTINGS["gat"])
    compiled = sarc.compile(model, sarc.partition(data.edge_index, data.num_nodes, 4))

    def step() -> None:
        out = compiled(data.x, data.edge_index)
        sarc.cross_entropy(out, data.y, data.train_mask).backward()

    step()  # captures and compiles
    print(compiled.program("raised"))  # the model on the whole graph
    print(compiled.program("partitioned forward"))  # what every part runs
    print(compiled.plan())
    print(compiled.schedule(rank=0))

    with sarc.profile(folder / "trace.json") as measured:  # opens in ui.perfetto.dev
        step()
    make_report(compiled, measured, rates=measure_rates()).save(folder / "report.html")
    print(f"wrote {folder / 'trace.json'} and {folder / 'report.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
