"""Writes docs/coverage.md, which models are covered and what fell back: `python scripts/coverage.py` (minutes).

Every model of tests/equivalence/model_lists.py is compiled over four parts, one of them empty and one of a single row,
and compared with the plain module in float64: outputs, all gradients, buffers.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("DGLBACKEND", "pytorch")  # before any import of dgl

REPOSITORY = Path(__file__).resolve().parents[1]
PATH = REPOSITORY / "docs" / "coverage.md"
PARTS = 4
LETTERS = {"kernel": "k", "blocks of torch": "b", "reference": "f"}

INTRODUCTION = f"""# Coverage

Made by `python scripts/coverage.py` from the model lists of `tests/equivalence`. Each model runs unmodified on a
directed multigraph with self loops, repeated edges and isolated nodes, cut into {PARTS} parts of which one is empty and
one owns a single row, in train mode and float64. Dropout is compared by replaying the compiled module's masks in the
plain one.

- **error**: the largest error of any output, gradient or buffer against the plain module, max|a - b| / max(1, max|b|),
  as the next power of ten; the promise is 1e-10.
- **edge programs**: traversals of the edges in the forward and in the backward pass.
- **run as**: how many edge programs (those over other row sets included) become kernels (k), hold matrix products of
  every edge and so run in plain torch, some edges at a time (b), or fall back to plain torch without (f), and why.
- **edge tensors**: values of E rows that exist as tensors, and why; everything else over edges is computed chunk by
  chunk. *returned*: to the caller, as results or as gradients of edge inputs. *read first* and *folded later*: a
  traversal exchanges rows through one column of the edges; those of a second one are fetched before it or folded after
  it. *regrouped*: another row set is made of them (self loops appended, edges selected), or two traversals share them.
"""


@dataclass
class Row:
    """What the table says of one model."""

    name: str
    error: float
    forward: int
    backward: int
    runs: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)
    stored: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        order = "0" if self.error == 0 else f"1e{math.ceil(math.log10(self.error))}"
        stored = ", ".join(f"{count} {reason}" for reason, count in sorted(self.stored.items())) or "none"
        runs = " ".join(f"{self.runs[how]}{letter}" for how, letter in LETTERS.items() if self.runs[how]) or "none"
        why = f": {'; '.join(dict.fromkeys(self.reasons))}" if self.reasons else ""
        return f"| {self.name} | {order} | {self.forward} + {self.backward} | {runs}{why} | {stored} |"


def examine(case) -> Row:
    """Compile a case, compare one training step, count its traversals and stored edge tensors."""
    from sarc.backend import edge_programs
    from sarc.codegen.coverage import scalar_form
    from sarc.runtime.replay import replay
    from tests.equivalence.case import standard_cut
    from tests.equivalence.compare import observe, pair, worst

    plain, compiled, values = pair(case, standard_cut(PARTS))
    plain.train()
    compiled.train()
    actual = observe(case, compiled, values)
    with replay(compiled):
        expected = observe(case, plain, values)
    programs = compiled._called().binding.programs
    forms = [scalar_form(edges) for program in programs.values() for edges in edge_programs(program)]
    counts = {stage: len(_traversals(programs[stage])) if stage in programs else 0 for stage in ("forward", "backward")}
    stored = sum((_stored(program) for program in programs.values()), Counter())
    return Row(
        case.name,
        worst(actual, expected)[0],
        counts["forward"],
        counts["backward"],
        Counter(form.how for form in forms),
        [form.why.split(" (")[0] for form in forms if form.is_fallback],
        stored,
    )


def _traversals(program) -> list:
    from sarc.ir.edge_program import edge_call

    return [
        n.args[0] for n in program.graph.nodes if n.target is edge_call and program.spaces[n.args[0].space].on_edges
    ]


def _stored(program) -> Counter[str]:
    """Edge tensors by reason."""
    traversals = _traversals(program)
    total = sum(r.kind == "store" for e in traversals for r in e.results)
    found = Counter(
        {
            "read first": sum("_read" in e.name for e in traversals),
            "folded later": sum("_fold" in e.name for e in traversals),
            "returned": sum(
                any(program.spaces[s].on_edges for s in n.meta["type"].spaces)
                for n, o in zip(program.returned, program.outputs, strict=True)
                if o.kind in ("result", "grad")
            ),
        }
    )
    found["regrouped"] = max(0, total - found.total())
    return +found


def refusal(refused) -> str:
    """The reason a model is refused for, without the place."""
    from sarc.errors import UnsupportedModelError
    from tests.equivalence.case import standard_cut
    from tests.equivalence.compare import compile_case, values_for

    cut = standard_cut(3)
    module, values = refused.case.make().double(), values_for(refused.case, cut)
    try:
        refused.case.call(compile_case(refused.case, module, cut, values), values)
    except UnsupportedModelError as error:
        return str(error).split(": ", 1)[1].replace("|", "\\|")
    raise AssertionError(f"{refused.case.name} is not refused")


def document() -> str:
    from tests.equivalence.model_lists import CASES, REFUSED

    lines, rows = [INTRODUCTION], []
    for group, cases in CASES.items():
        found = [examine(case) for case in cases]
        rows += found
        head = "| model | error | edge programs | run as | edge tensors |"
        lines += [f"## {group}", "", head, "|---|---|---|---|---|"]
        lines += [*map(str, found), ""]
    runs = sum((row.runs for row in rows), Counter())
    fallen = sum(bool(row.reasons) for row in rows)
    clean = sum(not row.stored.keys() - {"returned"} for row in rows)
    lines += [
        "## Refused",
        "",
        "| model | reason |",
        "|---|---|",
        *(f"| {r.case.name} | {refusal(r)} |" for r in REFUSED),
        "",
        "## Sum",
        "",
        f"{len(rows)} models run, worst error {max(r.error for r in rows):.0e}; {clean} of them hold no edge tensor "
        f"but those they return. {len(REFUSED)} are refused.",
        f"Of their {runs.total()} edge programs {runs['kernel']} are kernels, {runs['blocks of torch']} run in blocks "
        f"of torch, {runs['reference']} fall back, in {fallen} models.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    warnings.simplefilter("ignore")
    PATH.write_text(document(), encoding="utf-8")
    print(f"wrote {PATH.relative_to(REPOSITORY)}")
