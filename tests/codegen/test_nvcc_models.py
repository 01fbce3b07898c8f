"""nvcc takes every kernel of the listed models, and ptxas spills no registers of values up to 128 features wide."""

from __future__ import annotations

import pytest
import torch

from sarc.codegen.cuda_kernels import cuda_sources
from sarc.codegen.cuda_source import CudaSource
from sarc.codegen.nvcc import nvcc
from sarc.ir.edge_program import EdgeProgram
from tests.codegen.compile_together import compile_together
from tests.codegen.test_nvcc import assert_fits, check, kernels_of
from tests.equivalence.case import Case, standard_cut
from tests.equivalence.compare import build, compile_case, values_for
from tests.equivalence.model_lists import CASES

pytestmark = pytest.mark.skipif(nvcc() is None, reason="no nvcc on this machine")
ALL = [case for group in CASES.values() for case in group if not case.slow]
TOGETHER = 12  # models of one test: enough to share headers, few enough to share out over the cores


def programs_of(case: Case) -> list[EdgeProgram]:
    """The edge programs of a training step, forward and backward, in float32."""
    cut = standard_cut(1)
    values = values_for(case, cut, torch.float32)
    compiled = compile_case(case, build(case, torch.float32), cut, values, backend="reference")
    compiled.train()
    case.call(compiled, values)
    return kernels_of(compiled)


@pytest.mark.parametrize("first", range(0, len(ALL), TOGETHER))
def test_listed_models(first: int, tmp_path) -> None:
    sources: list[CudaSource] = []
    for case in ALL[first : first + TOGETHER]:
        sources += [source for program in programs_of(case) for _, source in cuda_sources(program)]
    for source, usage in compile_together(sources, tmp_path):
        assert_fits(source, usage)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_libraries_of_listed_models(case: Case) -> None:
    """As they are built to be launched: a library each, for all architectures."""
    check(programs_of(case))
