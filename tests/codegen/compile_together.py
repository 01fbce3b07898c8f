"""Many CUDA kernels in one translation unit: nvcc reads its headers once, and compiles for one architecture."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sarc.codegen.cuda_prelude import FUNCTIONS, RUNTIME
from sarc.codegen.cuda_source import CudaSource
from sarc.codegen.nvcc import COMPILE_FLAGS, TO_THE_BIT, WITHOUT_A_GPU, Usage, nvcc, parse_usage

ARCHITECTURE = WITHOUT_A_GPU[-1]


def compile_together(sources: Sequence[CudaSource], folder: Path) -> list[tuple[CudaSource, Usage]]:
    """What ptxas says of the kernels of some sources, equal ones compiled once.

    Args:
        folder: keeps the units and their machine code.
    """
    found = []
    for exact in (False, True):
        distinct = list({s.kernel: s for s in sources if s.exact == exact}.values())
        if not distinct:
            continue
        unit = folder / f"{'exact' if exact else 'contracted'}.cu"
        unit.write_text(_unit(distinct))
        flags = [*COMPILE_FLAGS, f"-arch=sm_{ARCHITECTURE}", "-cubin", *([TO_THE_BIT] if exact else [])]
        command = [nvcc() or "", *flags, str(unit), "-o", str(unit.with_suffix(".cubin"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = parse_usage(done.stderr)
        each = [(distinct[int(re.findall(r"unit_(\d+)_", u.kernel)[0])], u) for u in said]
        assert {id(source) for source, _ in each} == {id(source) for source in distinct}, "ptxas did not name them all"
        found += each
    return found


def _unit(sources: Sequence[CudaSource]) -> str:
    """Each kernel in a namespace of its own, its launcher under a name of its own."""
    apart = (
        f"#define {s.name} {s.name}_{k}\nnamespace unit_{k}_ {{\n{s.kernel}\n}}\n#undef {s.name}\n"
        for k, s in enumerate(sources)
    )
    return RUNTIME + FUNCTIONS + "".join(apart)
