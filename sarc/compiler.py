"""The compiler: `compile()`, which checks what it is asked for; the list of its passes is `sarc/pipeline.py`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sarc.backend import BACKENDS, find_lack
from sarc.codegen.warn_once import warn_once
from sarc.errors import OptionError, PartitionError
from sarc.frontends.check_options import budget_bytes, check_exchange, check_options, offload_directory
from sarc.ir.exchange import ExchangeOptions
from sarc.ir.placement import OBJECTIVES, PLACEMENTS
from sarc.partition.layout import Partitions
from sarc.pipeline import DEFAULT_BACKEND, DEFAULT_OBJECTIVE, DEFAULT_PLACEMENT, Pipeline
from sarc.runtime.logs import logs_from_environment
from sarc.runtime.module import CompiledModule


def compile(
    model: nn.Module,
    partitions: Partitions | int | Tensor,
    *,
    spaces: Mapping[str, str | None] | None = None,
    memory_budget: int | float | str | None = None,
    offload: str | None = None,
    offload_dir: str | os.PathLike[str] | None = None,
    prefetch: int = 1,
    seed: int | None = None,
    backend: str = DEFAULT_BACKEND,
    placement: str = DEFAULT_PLACEMENT,
    objective: str = DEFAULT_OBJECTIVE,
    verify: bool = False,
    exchange: str = "auto",
    halo_budget: int = ExchangeOptions.halo_budget,
    comm_dtype: torch.dtype | None = None,
) -> CompiledModule:
    """Compile `model` to run full-batch, and exactly, over the partitions of a graph.

    Args:
        model: an ordinary single-graph module: PyG, DGL or plain torch. It is not altered; the compiled module shares
            its parameters and buffers. Its forward, forward hooks of submodules included, runs when a call needs a new
            capture, on a copy and without data: what hooks return counts, what they store elsewhere does not.
        partitions: from `sarc.partition` or a shard; or a number of parts or an assignment int64 [N], with which the
            graph of the first call is cut.
        spaces: for arguments whose rows cannot be told from their shapes: name -> "N", "E" or None (replicated).
        memory_budget: bytes, or text like "8GiB", that a step may take on one part, parameters, features and structure
            included, gradients and optimizer states outside the compiled module not. The plan with the least extra work
            that fits is taken. None: what costs less than it saves is made again in the backward pass, at under 15 %
            extra work; `float("inf")`: nothing is. `plan()` predicts the bytes. Under a budget no memory is kept
            between passes.
        offload: "disk": tensors of a step of a megabyte and more lie in files of `offload_dir` (None: the system's
            directory for temporary files), mapped into memory; the system holds in memory what is in use. For graphs
            whose activations do not fit: partition them, and one part is in use at a time. The files have no names and
            go with the process. "cpu": of several parts on one GPU, tables of a megabyte and more wait in the CPU's
            memory while another part runs, and what is kept between the passes until it is read; features may be on
            the CPU.
        prefetch: chunks of rows posted ahead of the one in use; at most 2 (1 + prefetch) are alive on a part.
        seed: of dropout and other random operators; None takes torch's initial seed. All ranks use rank 0's.
        backend: "auto" runs each edge program as a kernel where it has a scalar form, for the device of the call: C++
            on a CPU (built in a fraction of a second, kept in a cache), CUDA on a GPU (built in seconds); and in plain
            torch where it has none or the machine has no compiler, which a warning says once; "cpp" and "cuda" raise
            where "auto" would fall back; "reference" runs all in plain torch. Matrix products of every edge run in
            plain torch under each. `plan()` says how each edge program runs, and why.
        placement: where an edge program runs whose edges join rows of two parts: "dst", at the owner of its
            destination; "src", at the owner of its source; "cover", each edge at either, so that the rows that travel
            are a vertex cover of the least bytes; "auto", at whichever `objective` prices lowest. Results are the same.
            `plan()` lists the candidates.
        objective: of "auto" placement: "time" as predicted for bytes, messages and edges of the slowest part; "bytes"
            sent by all parts; "memory" of the largest part: then the plan with the lowest predicted peak is taken, at
            some cost in time, and no memory is kept between passes.
        verify: the first call in each mode also runs the plain module, with the same random draws, and prints the
            largest difference of every result, buffer and gradient to stderr. In one process only.
        exchange: how rows travel between parts. "auto": all rows of a step of a layer at once, in one all-to-all, while
            the halo fits `halo_budget`, and beyond it chunk by chunk in a ring, with at most 2 (1 + prefetch) chunks
            alive; "whole" and "ring" force one of them; "sar" is the scheme of the SAR paper, for comparison.
            Under all but "sar", what depends on arguments that need no gradient alone is exchanged and computed once,
            and again when they change: sums over neighbours of a linear first layer, or the halo's rows of x.
        halo_budget: bytes of other parts' rows that a part may hold at once under "auto"; and of what is kept of data.
        comm_dtype: torch.bfloat16 sends rows and partial sums rounded to it, half the bytes; None sends them as they
            are. It changes results: by about 2^-9 of each number sent.

    Returns:
        A module called like `model`: with whole-graph tensors in one process; under torchrun with the rows a rank owns
        (`shard.x`, `shard.graph`), returning its owned rows.

    Raises:
        OptionError: `model` is no module, or an option has a value that it cannot have.
        UnsupportedModelError: at the first call, when the model cannot be captured or partitioned.
        BudgetError: at the first call, when no plan fits the budget; names the least bytes and the largest values.
        PartitionError, GraphError: partitions that do not fit the world or the call.
        OffloadError: the directory for offload cannot be used; at a call, when its disk is full.
        CodegenError: backend "cpp" without a C++ compiler, "cuda" without nvcc; at the first call, with an edge program
            that has no kernel.
        DifferenceError: with verify, when results or gradients differ by more than rounding in their dtype.
    """
    check_options(model, spaces, prefetch, seed)
    check_exchange(exchange, halo_budget, comm_dtype)
    if isinstance(model, CompiledModule):
        raise OptionError("model: expected a plain module, got one that sarc.compile made; compile its .model")
    if isinstance(partitions, bool) or not isinstance(partitions, (Partitions, int, Tensor)):
        raise PartitionError(
            f"expected partitions (sarc.partition(...), shard.partitions), a number of parts or an assignment tensor "
            f"int64 [N], got {type(partitions).__name__}"
        )
    if isinstance(partitions, int) and partitions < 1:
        raise PartitionError(f"expected at least 1 part, got {partitions}")
    _check_word("backend", backend, BACKENDS)
    _check_word("placement", placement, PLACEMENTS)
    _check_word("objective", objective, OBJECTIVES)
    lack = find_lack(backend)
    if lack:
        warn_once(lack)
    logs_from_environment()
    pipeline = Pipeline(
        backend,
        exchange=ExchangeOptions(exchange, halo_budget, comm_dtype),
        placement=placement,
        objective=objective,
    )
    if verify and offload == "cpu":
        raise OptionError(
            "verify=True runs the plain module on the whole graph, which offload='cpu' keeps from the GPU: expected "
            "one of them; verify once on a graph that fits"
        )
    return CompiledModule(
        model, partitions, pipeline, spaces=dict(spaces or {}), prefetch=prefetch, seed=seed, verify=bool(verify),
        memory_budget=budget_bytes(memory_budget), offload_dir=offload_directory(offload, offload_dir),
        offload_host=offload == "cpu",
    )  # fmt: skip


def _check_word(name: str, given: object, known: Sequence[str]) -> None:
    """OptionError unless an option is one of the words it may be."""
    if given not in known:
        raise OptionError(f"{name}: expected one of {', '.join(map(repr, known))}, got {given!r}")
