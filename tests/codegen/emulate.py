"""CUDA kernels on the CPU: the generated unit compiled as C++, its warps emulated (`emulated_warps.h`)."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from sarc.codegen.build import Toolchain, build_with, compiler
from sarc.codegen.cuda_prelude import FUNCTIONS
from sarc.codegen.cuda_source import CudaSource
from sarc.codegen.nvcc import Library

FLAGS = ("-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-w")
ORDERS = (0, 1, 2)  # of threads that may run: ascending, descending, mixed


def emulated(source: CudaSource, what: str, order: int = 0, flags: tuple[str, ...] = ()) -> Library:
    """The library of a kernel whose threads run in a given order."""
    library = _build(source, what, flags)

    def launch(pointers, numbers, stream) -> int:
        library.sarc_emulate(order)
        return library.sarc_launch(pointers, numbers, None)

    return Library(launch, lambda status: library.sarc_describe(status).decode(), library._name)


@functools.cache
def _build(source: CudaSource, what: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    text = (Path(__file__).parent / "emulated_warps.h").read_text() + FUNCTIONS + source.kernel
    library = build_with(Toolchain((compiler() or "c++", *FLAGS, *flags), "emulated"), text, what)
    library.sarc_launch.restype = ctypes.c_int
    library.sarc_describe.restype = ctypes.c_char_p
    return library
