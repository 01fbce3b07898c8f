"""`sarc doctor`: what of sarc works on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess

import torch

from sarc.codegen.build import FLAGS, build, cache_directory, compiler
from sarc.codegen.nvcc import nvcc
from sarc.commands.output import as_records, write_json, write_table
from sarc.errors import CodegenError
from sarc.runtime.distributed import available_backends

_HEAD = ("what", "state", "found")
PACKAGES = ("sarc", "torch", "torch_geometric", "dgl", "pymetis", "numpy", "scipy", "networkx", "sympy")
_OPENMP = '#include <omp.h>\nextern "C" int sarc_threads() { return omp_get_max_threads(); }\n'


def doctor(as_json: bool) -> bool:
    """Print the state of everything sarc leans on; returns whether training works at all."""
    rows = [*_versions(), *_compiler(), *_devices(), *_exchange(), *_cache()]
    if as_json:
        write_json(as_records(_HEAD, rows))
    else:
        write_table(
            "sarc doctor", _HEAD, rows, "missing is fine unless you use it: METIS cuts better, kernels run faster"
        )
    return all(state != "broken" for _, state, _ in rows)


def _versions() -> list[tuple[str, str, str]]:
    rows = [("python", "ok", platform.python_version()), ("machine", "ok", f"{platform.system()} {platform.machine()}")]
    for name in PACKAGES:
        try:
            rows.append((name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "missing", ""))
    return rows


def _compiler() -> list[tuple[str, str, str]]:
    path = compiler()
    if path is None:
        return [
            ("C++ compiler", "missing", "CXX, g++, clang++, c++: backend='cpp' needs one"),
            ("OpenMP", "missing", ""),
        ]
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    rows = [("C++ compiler", "ok", f"{path}: {version[0] if version else 'no version'}")]
    try:
        count = build(_OPENMP, "doctor").sarc_threads()
        rows.append(
            ("OpenMP", "ok", f"{count} threads ({' '.join(f for f in FLAGS if 'march' in f or 'openmp' in f)})")
        )
    except (CodegenError, OSError) as error:
        rows.append(("OpenMP", "broken", str(error).splitlines()[0]))
    return rows


def _devices() -> list[tuple[str, str, str]]:
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    cuda = f"torch built for {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
    found = ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    return [
        ("threads", "ok", threads),
        ("CUDA", "ok" if torch.cuda.is_available() else "missing", f"{cuda}{f': {found}' if found else ''}"),
        ("CUDA kernels", "ok" if nvcc() else "missing", nvcc() or "nvcc: CUDACXX, PATH, CUDA_HOME, /usr/local/cuda"),
    ]


def _exchange() -> list[tuple[str, str, str]]:
    there = available_backends()
    return [(name, "ok" if present else "missing", "torch.distributed") for name, present in there.items()]


def _cache() -> list[tuple[str, str, str]]:
    folder = cache_directory()
    files = sorted(folder.glob("*.so")) if folder.is_dir() else []
    size = sum(f.stat().st_size for f in files)
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    state = "ok" if os.access(parent, os.W_OK) else "broken"
    return [("kernel cache", state, f"{folder}: {len(files)} libraries, {size / 2**20:.1f} MiB")]
