"""The cache of compiled kernels: built once, whole or not there, and what a user reads when it cannot be built."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from sarc.codegen import build
from sarc.codegen.warn_once import warn_once
from sarc.errors import CodegenError

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")

ONE = 'extern "C" int answer() { return 1; }\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SARC_CACHE_DIR", str(folder))
    warn_once.cache_clear()
    return folder


def unit(number: int) -> str:
    """A translation unit of its own: a loaded library stays loaded in this process."""
    return ONE.replace("answer() { return 1", f"answer() {{ return {number}")


def load(text: str) -> int:
    return build.build(text, "kernel edges0 (model.py:3)").answer()


def library(cache: Path) -> Path:
    (found,) = cache.glob("*.so")
    return found


def count_compilations(monkeypatch) -> list[str]:
    seen, original = [], build._run

    def noted(command, seconds):
        seen.append(command[-3])
        return original(command, seconds)

    monkeypatch.setattr(build, "_run", noted)
    return seen


def compiler_script(monkeypatch, tmp_path: Path, body: str) -> Path:
    """A stand-in for the compiler."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(build, "compiler", lambda: str(path))
    return path


def test_a_unit_is_compiled_once_and_leaves_nothing_behind(cache: Path, monkeypatch) -> None:
    seen = count_compilations(monkeypatch)
    assert load(unit(11)) == load(unit(11)) == 11
    assert len(seen) == 1
    assert sorted(p.suffix for p in cache.iterdir()) == [".cpp", ".lock", ".so"]


@pytest.mark.parametrize("setting", ["FLAGS", "_machine"])
def test_flags_and_the_machine_are_in_the_key(setting: str, cache: Path, monkeypatch) -> None:
    load(unit(12))
    changed = (*build.FLAGS, "-DX=1") if setting == "FLAGS" else lambda: "another processor"
    monkeypatch.setattr(build, setting, changed)
    load(unit(12))
    assert len(list(cache.glob("*.so"))) == 2


def damage_truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_flip(content: bytes) -> bytes:
    at = len(content) // 3
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def damage_empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty])
def test_a_damaged_library_is_built_again(damage, cache: Path, monkeypatch) -> None:
    number = 20 + [damage_truncate, damage_flip, damage_empty].index(damage)
    script = f"import sarc.codegen.build as b; assert b.build({unit(number)!r}, 'kernel').answer() == {number}"
    subprocess.run([sys.executable, "-c", script], check=True)
    path = library(cache)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert load(unit(number)) == number
    assert build._is_whole(path)


def test_a_library_that_cannot_be_loaded_is_built_again(cache: Path) -> None:
    """Whole by its checksum, but of another machine."""
    script = f"import sarc.codegen.build as b; b.build({unit(30)!r}, 'kernel')"
    subprocess.run([sys.executable, "-c", script], check=True)
    content = b"of another machine"
    library(cache).write_bytes(content + build._MARK + hashlib.sha256(content).hexdigest().encode())
    assert load(unit(30)) == 30


def test_four_processes_compile_a_unit_once(cache: Path) -> None:
    script = (
        "import sarc.codegen.build as b, time; original = b._run\n"
        "def noted(*given):\n    print('built', flush=True); time.sleep(0.5); return original(*given)\n"
        f"b._run = noted; assert b.build({ONE!r}, 'kernel').answer() == 1\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [r.communicate()[0] for r in runs]
    assert all(r.returncode == 0 for r in runs)
    assert sum(o.count("built") for o in outputs) == 1


def unwritable(monkeypatch, tmp_path: Path, folder: Path) -> None:
    """`folder` under a file: no user, not even root, can make it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("SARC_CACHE_DIR", str(folder))


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch) -> None:
    """One warning; kernels are kept in a folder of this user alone, which the next process uses too."""
    unwritable(monkeypatch, tmp_path, tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="the cache of kernels .* cannot be used .* set SARC_CACHE_DIR") as caught:
        assert (load(unit(40)), load(unit(41))) == (40, 41)
    assert len(caught) == 1
    folder = tmp_path / f"sarc-{os.getuid()}"
    assert len(list(folder.glob("*.so"))) == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_home_that_is_read_only(tmp_path, monkeypatch) -> None:
    unwritable(monkeypatch, tmp_path, tmp_path)
    monkeypatch.delenv("SARC_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the cache of kernels .*/file/.cache/sarc cannot be used"):
        assert load(unit(42)) == 42


def test_a_temporary_folder_that_others_may_write_to_is_not_used(tmp_path, monkeypatch) -> None:
    unwritable(monkeypatch, tmp_path, tmp_path / "file" / "cache")
    build._own_directory.cache_clear()
    shared = tmp_path / f"sarc-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.warns(UserWarning):
        assert load(unit(43)) == 43
    assert not list(shared.iterdir())
    build._own_directory.cache_clear()


def test_a_cache_that_can_only_be_read_serves_what_it_holds(cache: Path, monkeypatch) -> None:
    load(unit(44))

    def refuse(*args, **kwargs):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(build, "_locked", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(unit(44)) == 44


def test_a_failing_compiler_shows_its_message(cache: Path) -> None:
    """With the user's line; the source is kept, nothing else is."""
    with pytest.raises(CodegenError, match="failed with exit code 1") as caught:
        build.build("this is no C++\n", "kernel edges0 (model.py:3)")
    message = str(caught.value)
    assert message.startswith("kernel edges0 (model.py:3): ") and "error" in message
    (source,) = cache.glob("*.cpp")
    assert f"the source is kept in {source}" in message and source.read_text() == "this is no C++\n"
    assert sorted(p.suffix for p in cache.iterdir()) == [".cpp", ".lock"]


def test_a_compiler_that_crashes(tmp_path, monkeypatch) -> None:
    compiler_script(monkeypatch, tmp_path, "echo internal error >&2; kill -SEGV $$")
    with pytest.raises(CodegenError, match="was ended by signal SIGSEGV:\ninternal error"):
        load(unit(50))


def test_a_compiler_that_cannot_be_started(tmp_path, monkeypatch) -> None:
    compiler_script(monkeypatch, tmp_path, "").chmod(0o600)
    with pytest.raises(CodegenError, match="kernel edges0 \\(model.py:3\\): .* cannot be started: .*Permission denied"):
        load(unit(54))


def test_a_compiler_that_makes_nothing(tmp_path, monkeypatch) -> None:
    compiler_script(monkeypatch, tmp_path, "exit 0")
    with pytest.raises(CodegenError, match="made no library"):
        load(unit(51))


def test_a_compiler_that_makes_something_else(tmp_path, monkeypatch) -> None:
    compiler_script(monkeypatch, tmp_path, 'for last; do :; done; echo no library > "$last"')
    with pytest.raises(CodegenError, match="cannot be loaded: .*set SARC_CACHE_DIR"):
        load(unit(52))


def test_a_compiler_that_hangs(tmp_path, monkeypatch) -> None:
    """It and the programs that it started are ended."""
    pid = tmp_path / "pid"
    compiler_script(monkeypatch, tmp_path, f"sleep 600 & echo $! > {pid}; wait")
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(CodegenError, match="did not end within 0.5 s"):
        load(unit(53))
    assert time.monotonic() - started < 10
    for _ in range(100):
        if not _runs(int(pid.read_text())):
            break
        time.sleep(0.05)
    assert not _runs(int(pid.read_text()))


def _runs(pid: int) -> bool:
    """Whether a process runs (one that has ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
