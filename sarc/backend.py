"""How edge programs run on a device: as kernels of a target, or in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sarc.codegen.build import build_ahead, compiler, require_compiler
from sarc.codegen.coverage import Run, require_kernels, runs
from sarc.codegen.cuda_kernels import CudaKernel, compile_cuda_kernels, cuda_builds, has_cuda_kernel
from sarc.codegen.explain import try_emit, why_no_kernel
from sarc.codegen.kernels import CppKernel, compile_kernels, cpp_builds, has_kernel
from sarc.codegen.nvcc import NO_NVCC, nvcc
from sarc.codegen.warn_once import warn_once
from sarc.errors import CodegenError
from sarc.ir.edge_program import EdgeProgram, edge_call
from sarc.ir.program import Program
from sarc.runtime.logs import log

BACKENDS = ("auto", "cpp", "cuda", "reference")
TARGETS = {"cpu": "cpp", "cuda": "cuda"}  # by type of device


def find_lack(backend: str) -> str:
    """What to warn of before a model is compiled for a backend: "auto" without a C++ compiler; "" when nothing.

    Raises:
        CodegenError: this machine lacks what the backend cannot do without.
    """
    if backend == "cpp":
        require_compiler()
    if backend == "cuda" and nvcc() is None:
        raise CodegenError(NO_NVCC)
    if backend == "auto" and compiler() is None:
        return "no C++ compiler found (CXX, g++, clang++, c++): edge programs run in plain torch, which is slower"
    return ""


@dataclass(frozen=True)
class Backend:
    """Where kernels come from.

    Attributes:
        name: one of `BACKENDS` (see `sarc.compile`).
    """

    name: str

    def target(self, device: torch.device) -> str | None:
        """Whose kernels run on a device, "cpp" or "cuda"; None where plain torch runs everything.

        Raises:
            CodegenError: the backend makes kernels for another device, or this machine lacks nvcc for it.
        """
        name = TARGETS.get(device.type)
        if self.name == "reference" or name is None:
            return None
        if self.name not in ("auto", name):
            raise CodegenError(
                f"backend={self.name!r}: the model and its tensors are on {device}, which runs {name!r} kernels: "
                f"move them with .to({'cuda' if self.name == 'cuda' else 'cpu'!r}), or use backend='auto'"
            )
        if name == "cpp":
            return name if compiler() is not None else None
        if nvcc() is not None:
            return name
        if self.name == "cuda":
            raise CodegenError(NO_NVCC)
        warn_once(f"{NO_NVCC.partition(':')[0]}: edge programs run in plain torch on the GPU, which is slower")
        return None

    def kernels(self, program: Program, device: torch.device) -> dict[str, CppKernel] | dict[str, CudaKernel]:
        """Edge programs of a partitioned program, compiled for a device, by name; the others run in plain torch.

        Raises:
            CodegenError: backend "cpp" or "cuda", and one that should have a kernel has none.
        """
        programs = edge_programs(program)
        log("kernels", lambda: "\n".join(f"{program.stage} {e}: {why_no_kernel(e) or 'a kernel'}" for e in programs))
        target = self.target(device)
        if target is None:
            return {}
        build_ahead(cuda_builds(programs) if target == "cuda" else cpp_builds(programs))
        compile_all: Callable[..., dict[str, Any]] = compile_cuda_kernels if target == "cuda" else compile_kernels
        if self.name == target:
            made = compile_all(programs)
            require_kernels(programs, made, target)
            return made
        made = {}
        for edges in programs:
            try:
                made |= compile_all([edges])
            except CodegenError as error:
                warn_once(f"a kernel could not be built, plain torch runs in its place: {error}")
        return made

    def runs(self, program: Program, kernels: Mapping[str, Any], device: torch.device) -> dict[str, Run]:
        """How each edge program of a partitioned program runs on a device, by name."""
        programs = edge_programs(program)
        target = TARGETS.get(device.type, "cpp")
        there, what = (nvcc(), "nvcc") if target == "cuda" else (compiler(), "C++ compiler")
        found = runs(programs, kernels, self.name, target, "" if there else what)
        return {edges.name: run for edges, run in zip(programs, found, strict=True)}


def has_kernels(target: str | None) -> Callable[[EdgeProgram], bool] | None:
    """Tells which edge programs have a kernel of a target; None where plain torch runs everything."""
    if target is None:
        return None
    return has_cuda_kernel if target == "cuda" else has_kernel


def kernel_texts(program: Program, target: str) -> list[tuple[EdgeProgram, list[str] | str]]:
    """Every edge program of a partitioned program with the texts of its kernels, or why it has none."""
    found = [(edges, try_emit(edges, target)) for edges in edge_programs(program)]
    return [(edges, made if isinstance(made, str) else [s.text for s in made]) for edges, made in found]


def edge_programs(program: Program) -> list[EdgeProgram]:
    """The edge programs of a program, in order."""
    return [n.args[0] for n in program.graph.nodes if n.target is edge_call]
