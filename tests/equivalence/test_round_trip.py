"""Every program of every listed model, at every stage and after every pass, reads back as it is printed."""

from __future__ import annotations

import warnings

import pytest
import torch

from sarc.ir.parse import parse_program
from sarc.ir.print import format_program
from sarc.ir.program import Program
from sarc.ir.verify import verify
from sarc.pipeline import Pipeline
from tests.equivalence.case import Case, standard_cut
from tests.equivalence.compare import build, compile_case, values_for
from tests.equivalence.model_lists import CASES

# Not typed yet: what these two make is shown, not read back.
UNTYPED = ("capture", "canonicalise")
ALL = [case for group in CASES.values() for case in group]


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_program_reads_back(case: Case, training: bool) -> None:
    cut = standard_cut(3)
    values = values_for(case, cut)
    compiled = compile_case(case, build(case), cut, values)
    seen: list[tuple[str, str]] = []

    def observe(name: str, program: Program) -> None:
        seen.append((name, format_program(program)))

    compiled._compiler = compiled._variants.compiler = Pipeline(observe=observe)
    compiled.train(training)
    with warnings.catch_warnings(), torch.set_grad_enabled(training):
        warnings.simplefilter("ignore")
        case.call(compiled, values)
    names = {name for name, _ in seen}
    assert {"capture", "canonicalise", "raise-graph-ops", "bind", "fuse-edge-programs", "partition-program"} <= names
    for name, text in seen:
        if name not in UNTYPED:
            assert format_program(verify(parse_program(text))) == text, name
