"""Why an edge program has no kernel, and the text of those it has."""

from __future__ import annotations

from sarc.codegen.cpp_source import Source
from sarc.codegen.cuda_kernels import cuda_sources
from sarc.codegen.cuda_source import CudaSource
from sarc.codegen.kernels import has_plain_rows, sources_of
from sarc.codegen.views import NoKernel
from sarc.ir.edge_program import EdgeProgram


def why_no_kernel(program: EdgeProgram) -> str:
    """The reason, in words that name an operator or a type; "" when the program has a kernel."""
    found = try_emit(program)
    return found if isinstance(found, str) else ""


def try_emit(program: EdgeProgram, target: str = "cpp") -> list[Source | CudaSource] | str:
    """The generated translation units of a program for "cpp" or "cuda", or why there are none. Nothing is compiled."""
    if not has_plain_rows(program):
        return "an operand or a result holds flattened rows"
    try:
        return [source for _, source in (cuda_sources if target == "cuda" else sources_of)(program)]
    except NoKernel as reason:
        return str(reason)
