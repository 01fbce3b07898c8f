"""Building kernels: compile a translation unit once, keep the library in the user's cache, load it with ctypes.

A library is kept under a name made of everything it depends on, and ends in a checksum of itself: one that was cut
short or altered is built again. Files appear whole (written beside, then renamed), so processes may share a cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sarc.codegen.warn_once import warn_once
from sarc.errors import CodegenError

# C++14: under C++17 <cmath> takes twice as long to compile, for functions that no kernel calls.
FLAGS = (
    "-O3", "-march=native", "-mprefer-vector-width=512", "-std=c++14", "-fopenmp", "-shared", "-fPIC",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-signed-zeros",
)  # fmt: skip
# Far more than any kernel takes: a compiler that is not done by then hangs.
COMPILE_SECONDS = 120.0
_MARK = b"\nsarc sha256 "
_SHOWN_LINES = 12
_COMMENT_LINES = re.compile(r"^\s*//.*\n", re.MULTILINE)


@dataclass(frozen=True)
class Toolchain:
    """How translation units are compiled.

    Attributes:
        command: the compiler and its flags, before the source and `-o`.
        identity: what its output depends on besides the unit and the command.
        suffix: of sources.
        seconds: after which it is taken to hang.
        report: suffix of the file that keeps what it says; "" keeps nothing.
    """

    command: tuple[str, ...]
    identity: str
    suffix: str = ".cpp"
    seconds: float = COMPILE_SECONDS
    report: str = ""

    def key(self, text: str) -> str:
        """The name under which the library of a unit is kept: kernels that differ in comments alone share one."""
        code = _COMMENT_LINES.sub("", text)
        return hashlib.sha256("\0".join([code, *self.command[1:], self.identity]).encode()).hexdigest()[:32]


def build(text: str, what: str) -> ctypes.CDLL:
    """The loaded library of a C++ translation unit, compiled unless the cache holds it (see `build_with`)."""
    require_compiler()
    return build_with(Toolchain((compiler() or "c++", *FLAGS), _machine(), seconds=COMPILE_SECONDS), text, what)


def build_with(toolchain: Toolchain, text: str, what: str) -> ctypes.CDLL:
    """The loaded library of a translation unit, compiled unless the cache holds it.

    Concurrent processes compile a unit once: the others wait for its lock.

    Args:
        toolchain: compiles it.
        text: the translation unit.
        what: the kernel and the user's line, for messages.

    Raises:
        CodegenError: the compiler failed, crashed or did not end; the message shows its first lines and where the
            source is kept. Or the library cannot be loaded.
    """
    key = toolchain.key(text)
    folder = cache_directory()
    try:
        return _build_in(toolchain, folder, key, text, what)
    except OSError as error:
        other = _temporary_directory()
        warn_once(
            f"the cache of kernels {folder} cannot be used ({error.strerror or error}): they are kept in {other} "
            f"instead; set SARC_CACHE_DIR to a folder that can be written to"
        )
        return _build_in(toolchain, other, key, text, what)


def build_ahead(builds: Iterable[Callable[[], object]]) -> None:
    """Fill the cache, several units at a time: a compiler takes a second or more a unit, on one core.

    What fails here fails again, and is said, when the kernel is made.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for made in [pool.submit(one) for one in builds]:
            made.exception()


def require_compiler() -> None:
    """Raises CodegenError when no C++ compiler is found."""
    if compiler() is None:
        raise CodegenError(
            "no C++ compiler found (CXX, g++, clang++, c++): install one, or use backend='auto' or 'reference'"
        )


@functools.cache
def compiler() -> str | None:
    """Path of the C++ compiler (CXX, g++, clang++), or None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def cache_directory() -> Path:
    """SARC_CACHE_DIR, or `sarc` under the user's cache directory. It may be deleted at any time."""
    given = os.environ.get("SARC_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "sarc"


def _temporary_directory() -> Path:
    """A folder of this user alone, the same for all processes: what is loaded from it must not be another user's."""
    folder = Path(tempfile.gettempdir()) / f"sarc-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return _own_directory()


@functools.cache
def _own_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="sarc-"))


@functools.cache
def _machine() -> str:
    """What `-march=native` depends on: the compiler's version and the processor's features."""
    version = subprocess.run([compiler() or "", "--version"], capture_output=True, text=True, check=False).stdout
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), features)
    return version.splitlines()[0] + features if version else features


def _build_in(toolchain: Toolchain, folder: Path, key: str, text: str, what: str) -> ctypes.CDLL:
    """`build` in one folder; OSError when it cannot be written to and does not hold the library."""
    library = folder / f"{key}.so"
    if _is_whole(library):
        with contextlib.suppress(OSError):  # built for another machine, or the folder forbids it: build it here
            return ctypes.CDLL(str(library))
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{key}.lock"):
        if not _is_whole(library):
            _compile(toolchain, text, folder / f"{key}{toolchain.suffix}", library, what)
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        _compile(toolchain, text, folder / f"{key}{toolchain.suffix}", library, what)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise CodegenError(
            f"{what}: the library that {toolchain.command[0]} made cannot be loaded: {error}; if its folder forbids "
            f"programs (noexec), set SARC_CACHE_DIR to another one"
        ) from error


def _is_whole(library: Path) -> bool:
    """Whether a library ends in its own checksum."""
    try:
        content, mark, checksum = library.read_bytes().rpartition(_MARK)
    except FileNotFoundError:
        return False
    return bool(mark) and hashlib.sha256(content).hexdigest().encode() == checksum


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; all of them where the file system has no locks: each file is renamed into place whole."""
    with open(path, "w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(toolchain: Toolchain, text: str, source: Path, library: Path, what: str) -> None:
    """Compile into a file of this process's own, then rename it."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as scratch:
        mine, made = Path(scratch) / source.name, Path(scratch) / library.name
        mine.write_text(text)
        os.replace(mine, source)
        command = [*toolchain.command, str(source), "-o", str(made)]
        try:
            code, output = _run(command, toolchain.seconds)
        except OSError as error:
            raise CodegenError(f"{what}: {command[0]} cannot be started: {error}") from error
        if code != 0 or not made.exists():
            shown = "\n".join(output.splitlines()[:_SHOWN_LINES])
            ended = f"{what}: {' '.join(command)} {_ended(code, toolchain.seconds)}"
            raise CodegenError(f"{ended}:\n{shown}\nthe source is kept in {source}")
        if toolchain.report:
            said = Path(scratch) / f"{source.stem}{toolchain.report}"
            said.write_text(output)
            os.replace(said, source.with_suffix(toolchain.report))
        content = made.read_bytes()
        made.write_bytes(content + _MARK + hashlib.sha256(content).hexdigest().encode())
        os.replace(made, library)


def _run(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit code (None: it did not end in time) and errors of a command; nothing of it is left running."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            return None, process.communicate()[1]
        except BaseException:
            _kill(process)
            raise
    return process.returncode, errors


def _kill(process: subprocess.Popen) -> None:
    """End a compiler and the programs it started: they share its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _ended(code: int | None, seconds: float) -> str:
    if code is None:
        return f"did not end within {seconds:g} s"
    if code < 0:
        return f"was ended by signal {signal.Signals(-code).name}"
    return "made no library" if code == 0 else f"failed with exit code {code}"
