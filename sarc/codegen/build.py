"""Building kernels: compile a translation unit once, keep the library in the user's cache, load it with ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from sarc.errors import CodegenError

FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-fno-signed-zeros",
)  # fmt: skip


def cache_directory() -> Path:
    """SARC_CACHE_DIR, or `sarc` under the user's cache directory."""
    given = os.environ.get("SARC_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sarc"


@functools.cache
def compiler() -> str | None:
    """Path of the C++ compiler (CXX, g++, clang++), or None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


@functools.cache
def _machine() -> str:
    """What `-march=native` depends on: the compiler's version and the processor's features."""
    version = subprocess.run([compiler() or "", "--version"], capture_output=True, text=True, check=False).stdout
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), features)
    return version.splitlines()[0] + features if version else features


def build(text: str, what: str) -> ctypes.CDLL:
    """The loaded library of a C++ translation unit, compiled unless the cache holds it.

    Concurrent processes compile a unit once: the others wait for its lock.

    Raises:
        CodegenError: no compiler, or it failed; the message shows its first lines and where the source is kept.
    """
    require_compiler()
    key = hashlib.sha256("\0".join([text, *FLAGS, _machine()]).encode()).hexdigest()[:32]
    folder = cache_directory()
    folder.mkdir(parents=True, exist_ok=True)
    library, source = folder / f"{key}.so", folder / f"{key}.cpp"
    if not library.exists():
        with open(folder / f"{key}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile(text, source, library, what)
    return ctypes.CDLL(str(library))


def require_compiler() -> None:
    """Raises CodegenError when no C++ compiler is found."""
    if compiler() is None:
        raise CodegenError(
            "no C++ compiler found (CXX, g++, clang++, c++): install one, or use backend='auto' or 'reference'"
        )


def _compile(text: str, source: Path, library: Path, what: str) -> None:
    source.write_text(text)
    handle, partial = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    command = [compiler() or "c++", *FLAGS, str(source), "-o", partial]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        os.unlink(partial)
        shown = "\n".join(done.stderr.splitlines()[:12])
        raise CodegenError(f"{what}: {' '.join(command)} failed:\n{shown}\nthe source is kept in {source}")
    os.replace(partial, library)
