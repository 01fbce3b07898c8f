"""Compile a C++ file of this folder with g++ and load it with ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path

from torch import Tensor

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "benchmarks"
# Flags of their own: what sarc's kernels are compiled with must not move the yardstick.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")


@functools.cache
def load(name: str, **constants: int) -> ctypes.CDLL:
    """The library of `name`.cpp with `constants` as macros; compiled once for each text, flags and processor.

    Raises:
        RuntimeError: the compiler is missing or failed.
    """
    texts = [path.read_text() for path in (HERE / f"{name}.cpp", *sorted(HERE.glob("*.h")))]
    macros = [f"-D{key}={value}" for key, value in sorted(constants.items())]
    processor = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags")), "")
    key = hashlib.sha256("\0".join([*texts, *FLAGS, *macros, processor]).encode()).hexdigest()[:16]
    library = BUILD / f"{name}-{key}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        command = ["g++", *FLAGS, *macros, str(HERE / f"{name}.cpp"), "-o", str(partial)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise RuntimeError("the hand-written loops need g++") from error
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[:2000]}")
        partial.replace(library)
    return ctypes.CDLL(str(library))


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Address of a contiguous tensor's first element."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
