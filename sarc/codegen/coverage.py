"""How each edge program runs, and why where it is not a kernel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch.fx as fx

from sarc.codegen.cuda_kernels import cuda_sources
from sarc.codegen.kernels import has_plain_rows, sources_of
from sarc.codegen.views import NoKernel
from sarc.errors import CodegenError
from sarc.ir.call import location, op_name
from sarc.ir.edge_program import EdgeProgram
from sarc.ir.ops import definition

KERNEL, BLOCKS, REFERENCE = "kernel", "blocks of torch", "reference"


@dataclass(frozen=True)
class Run:
    """How one edge program runs.

    Attributes:
        how: "kernel"; "blocks of torch", when the body holds a matrix product of every edge, which torch does best; or
            "reference", when plain torch stands in for a kernel.
        why: what is in the way of a kernel, with the user's line; "" of a kernel, and where nobody asked for one.
    """

    how: str
    why: str = ""

    @property
    def is_fallback(self) -> bool:
        """Whether a kernel was asked for and should have been there."""
        return self.how == REFERENCE and bool(self.why)


def scalar_form(program: EdgeProgram, target: str = "cpp") -> Run:
    """How a program can run: as a kernel for "cpp" or "cuda", unless something is in the way."""
    product = next((n for n in program.body.nodes if _is_product(n)), None)
    if product is not None:
        return Run(BLOCKS, f"{op_name(product.target)} of every edge{_at(product, program)}")
    if not has_plain_rows(program):
        return Run(REFERENCE, f"rows that share an axis with features{_at(None, program)}")
    try:
        (cuda_sources if target == "cuda" else sources_of)(program)
    except NoKernel as error:
        node = next((n for n in program.body.nodes if str(error).startswith(op_name(n.target))), None)
        return Run(REFERENCE, f"{error}{_at(node, program)}")
    return Run(KERNEL)


def runs(
    programs: Sequence[EdgeProgram], kernels: Collection[str], backend: str, target: str, lacks: str
) -> list[Run]:
    """How each program runs.

    Args:
        kernels: names of those that were compiled.
        backend: of the compiled module.
        target: of the device that it runs on.
        lacks: what this machine has none of, and compilation needs; "" where it has all.
    """
    if backend == "reference":
        return [Run(REFERENCE)] * len(programs)
    return [Run(KERNEL) if p.name in kernels else _without_kernel(p, target, lacks) for p in programs]


def require_kernels(programs: Sequence[EdgeProgram], kernels: Collection[str], target: str = "cpp") -> None:
    """CodegenError for a program that has no kernel and holds no matrix product of every edge."""
    for program in programs:
        found = scalar_form(program, target) if program.name not in kernels else Run(KERNEL)
        if found.how == REFERENCE:
            raise CodegenError(
                f"edge program @{program.name} over {program.space} has no kernel: {found.why}; backend='auto' runs it "
                f"in plain torch, as backend='reference' runs all of them"
            )


def _without_kernel(program: EdgeProgram, target: str, lacks: str) -> Run:
    found = scalar_form(program, target)
    if found.how != KERNEL:
        return found
    return Run(REFERENCE, f"no {lacks}" if lacks else "its compilation failed")


def _is_product(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    rule = definition(node.target)
    return rule is not None and rule.work == "product"


def _at(node: fx.Node | None, program: EdgeProgram) -> str:
    """ " (file:line)" of a body value, else of the program."""
    line = (location(node).removesuffix(": ") if node is not None else "") or program.loc
    return f" ({line})" if line else ""
