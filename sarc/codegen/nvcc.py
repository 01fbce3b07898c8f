"""Building CUDA kernels with nvcc, in the cache of all kernels, and reading what ptxas says of them."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sarc.codegen.build import Toolchain, build_with, cache_directory
from sarc.codegen.cuda_source import CudaSource
from sarc.errors import CodegenError

COMPILE_FLAGS = (
    "-O3", "-std=c++17", "--expt-relaxed-constexpr", "-Xptxas", "-v",
    "-diag-suppress=177",  # functions of the prelude that a unit does not use
)  # fmt: skip
FLAGS = (*COMPILE_FLAGS, "-shared", "-Xcompiler", "-fPIC")
# Values that another kernel must find again to the bit are computed without contraction of products and sums.
TO_THE_BIT = "-fmad=false"
WITHOUT_A_GPU = (80, 90)
NVCC_SECONDS = 600.0

Launcher = Callable[[ctypes.Array, ctypes.Array, int], int]


@dataclass(frozen=True)
class Library:
    """A compiled stage.

    Attributes:
        launch: takes pointers, numbers and a stream; gives a status, 0 when the kernels were launched.
        describe: the text of a status.
        where: the file that holds its source.
    """

    launch: Launcher
    describe: Callable[[int], str]
    where: str


Load = Callable[[CudaSource, str], Library]


def load_library(source: CudaSource, what: str) -> Library:
    """The library of a kernel, compiled unless the cache holds it.

    Raises:
        CodegenError: no nvcc, it failed, or it does not know the GPU's architecture.
    """
    chain = toolchain(source.exact, what)
    library = build_with(chain, source.text, what)
    launch = getattr(library, source.name)
    launch.restype = ctypes.c_int
    launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    library.sarc_describe.restype = ctypes.c_char_p
    library.sarc_describe.argtypes = [ctypes.c_int]
    return Library(launch, lambda status: library.sarc_describe(status).decode(), str(source_file(library)))


def source_file(library: ctypes.CDLL) -> Path:
    """Where the source of a library is kept."""
    return Path(library._name).with_suffix(".cu")


def toolchain(exact: bool, what: str = "a kernel") -> Toolchain:
    """nvcc for the GPUs of this machine, or for the usual ones where there is none.

    Raises:
        CodegenError: no nvcc, or it does not know the GPU's architecture.
    """
    found = nvcc()
    if found is None:
        raise CodegenError(f"{what}: {NO_NVCC}")
    flags = (*FLAGS, *_architectures(present_architectures(), what), *([TO_THE_BIT] if exact else []))
    return Toolchain((found, *flags), _version(found), ".cu", NVCC_SECONDS, ".ptxas")


NO_NVCC = (
    "no nvcc found (CUDACXX, PATH, CUDA_HOME, /usr/local/cuda): install the CUDA toolkit, or use backend='auto' or "
    "'reference'"
)


@functools.cache
def nvcc() -> str | None:
    """Path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    for name in (os.environ.get("CUDACXX"), "nvcc", f"{home}/bin/nvcc"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def present_architectures() -> tuple[int, ...]:
    """Compute capabilities of this machine's GPUs, as 90 for 9.0; () without any."""
    if not torch.cuda.is_available():
        return ()
    found = (torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count()))
    return tuple(sorted({10 * major + minor for major, minor in found}))


def _architectures(present: tuple[int, ...], what: str) -> list[str]:
    """Flags for machine code of the present GPUs; of the usual ones, and PTX for later ones, with none present."""
    if not present:
        code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in WITHOUT_A_GPU]
        return [*code, f"-gencode=arch=compute_{WITHOUT_A_GPU[-1]},code=compute_{WITHOUT_A_GPU[-1]}"]
    known = known_architectures()
    flags = []
    for capability in present:
        if capability in known or not known:
            flags.append(f"-gencode=arch=compute_{capability},code=sm_{capability}")
            continue
        older = [a for a in known if a < capability]
        if not older:
            raise CodegenError(
                f"{what}: this GPU has compute capability {capability / 10}, which {nvcc()} no longer compiles for "
                f"(it knows {', '.join(map(str, known))}): install an older CUDA toolkit, or use backend='reference'"
            )
        flags.append(f"-gencode=arch=compute_{older[-1]},code=compute_{older[-1]}")  # the driver compiles PTX
    return flags


@functools.cache
def known_architectures() -> tuple[int, ...]:
    """The capabilities that nvcc compiles for; () when it does not tell."""
    command = [nvcc() or "nvcc", "--list-gpu-code"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return tuple(sorted({int(n) for n in re.findall(r"sm_(\d+)\b", said)}))


@functools.cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel on one architecture.

    Attributes:
        kernel: its mangled name.
        architecture: "sm_90".
        registers: of a thread.
        stack_bytes: of a thread's local memory.
        spill_bytes: stored to and loaded from local memory because registers ran out.
    """

    kernel: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int


def usage(source: CudaSource) -> list[Usage]:
    """What ptxas said of the kernels of a unit that `load_library` has built."""
    path = cache_directory() / f"{toolchain(source.exact).key(source.text)}.ptxas"
    return parse_usage(path.read_text())


_USAGE = re.compile(
    r"Compiling entry function '(?P<kernel>[^']+)' for '(?P<architecture>[^']+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def parse_usage(said: str) -> list[Usage]:
    """The kernels that `-Xptxas -v` reports."""
    return [
        Usage(m["kernel"], m["architecture"], int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]))
        for m in _USAGE.finditer(said)
    ]
