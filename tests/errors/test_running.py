"""What goes wrong when a model is built or runs: no memory, no disk, no compiler, no kernel, parts that disagree."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sarc
from sarc.codegen import build, nvcc
from sarc.errors import BudgetError, CodegenError, ExchangeError, OffloadError, SarcError
from sarc.ir.schedule import Schedule
from sarc.runtime.check_messages import check_messages
from sarc.runtime.module import CompiledModule
from sarc.runtime.work import AllReduce, Work, run_parts
from tests.errors.refusals import EDGES, PARTS, F, X, check_golden, refusal

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.lin(x).relu()
        return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])


class NoKernel(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edge_index[1], torch.cumsum(x[edge_index[0]], 1))


def check(case: str, kind: type[SarcError], error: SarcError) -> None:
    assert type(error) is kind
    check_golden("running", case, error)


def called(model: nn.Module, **options: Any) -> CompiledModule:
    compiled = sarc.compile(model, PARTS, **options)
    compiled(X, EDGES)
    return compiled


def test_a_budget_that_nothing_fits() -> None:
    check("a budget too small", BudgetError, refusal(lambda: called(Sum(), backend="reference", memory_budget=1000)))


def test_a_directory_for_offload_that_is_none() -> None:
    gone = refusal(lambda: called(Sum(), offload="disk", offload_dir="/nowhere/at/all"))
    check("offload to no directory", OffloadError, gone)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allocate = os.posix_fallocate

    def full(file: int, start: int, nbytes: int) -> None:
        if nbytes > 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(file, start, nbytes)

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(4096))
    many = 40_000
    ring = torch.stack([torch.arange(many), (torch.arange(many) + 1) % many])[:, 1:]
    compiled = sarc.compile(Sum(), sarc.partition(ring, num_nodes=many, num_parts=1), offload="disk",
                            offload_dir=tmp_path, backend="reference")  # fmt: skip
    error = refusal(lambda: compiled(torch.ones(many, F, dtype=torch.float64), ring))
    told = OffloadError(str(error).replace(str(tmp_path), "/scratch"))
    check("offload to a full disk", type(error), told)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compiler", lambda: None)
    check("cpp without a compiler", CodegenError, refusal(lambda: sarc.compile(Sum(), PARTS, backend="cpp")))


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarc.backend.nvcc", lambda: None)
    check("cuda without nvcc", CodegenError, refusal(lambda: sarc.compile(Sum(), PARTS, backend="cuda")))


def test_cuda_kernels_for_tensors_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarc.backend.nvcc", lambda: "nvcc")
    check("cuda on a CPU", CodegenError, refusal(lambda: called(Sum(), backend="cuda")))


@needs_compiler
def test_an_edge_program_without_a_kernel() -> None:
    check("cpp without a kernel", CodegenError, refusal(lambda: called(NoKernel(), backend="cpp")))


@needs_compiler
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'edges.cpp:1: error: no such processor' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(build, "compiler", lambda: str(broken))
    monkeypatch.setenv("SARC_CACHE_DIR", str(tmp_path / "cache"))
    error = str(refusal(lambda: called(Sum(), backend="cpp")))
    assert str(broken) in error and "no such processor" in error and "the source is kept in " in error
    assert error.startswith("kernel ") and "(tests/errors/test_running.py:" in error


def test_parts_that_run_different_programs() -> None:
    """Every part's messages are compared with the others' before anything is sent."""
    compiled = sarc.compile(Sum(), PARTS, exchange="ring", backend="reference")
    compiled(X.clone().requires_grad_(), EDGES)
    placed, schedules = compiled._placed, compiled._called().bound.schedules["forward"]

    def compare(made: list[Schedule]) -> None:
        run_parts({s.rank: check_messages(s) for s in made}, placed.transport)

    compare(schedules)
    without = [s if s.rank else replace(s, instructions=()) for s in schedules]
    check("parts of different programs", ExchangeError, refusal(lambda: compare(without)))


def test_a_part_that_ends_early() -> None:
    compiled = called(Sum(), exchange="ring", backend="reference")

    def joins() -> Work:
        yield AllReduce(torch.ones(1), "sum")

    def leaves() -> Work:
        return
        yield

    works = {0: joins(), 1: joins(), 2: leaves()}
    check("a part that ends early", ExchangeError, refusal(lambda: run_parts(works, compiled._placed.transport)))


def test_cuda_toolchain_without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "nvcc", lambda: None)
    check("a toolchain without nvcc", CodegenError, refusal(lambda: nvcc.toolchain(False, "edge program @edges0")))
