"""What `sarc.compile` may be given, apart from the partitions."""

from __future__ import annotations

import math
import operator
import re
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sarc.errors import OptionError
from sarc.frontends.inputs import EDGES, NODES
from sarc.ir.exchange import EXCHANGES


def check_options(model: Any, spaces: Any, prefetch: Any, seed: Any) -> None:
    """OptionError unless the model is a plain module and the options have values that they can have."""
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; put a function into a module's forward"
        )
    if getattr(model.forward, "__func__", None) is nn.Module.forward:
        raise OptionError(f"model: expected a module with a forward, got {type(model).__name__}, which defines none")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise OptionError(
            f"model: expected the plain model, got it wrapped in {type(model).__name__}; pass model.module: gradients "
            f"of a compiled module arrive summed over the ranks already"
        )
    if spaces is not None and not isinstance(spaces, Mapping):
        raise OptionError(f"spaces: expected a dict like {{'x': 'N'}}, got {type(spaces).__name__}")
    for name, space in (spaces or {}).items():
        if not isinstance(name, str) or space not in (NODES, EDGES, None):
            raise OptionError(
                f"spaces: expected argument names with 'N' (a row a node), 'E' (a row an edge) or None (replicated), "
                f"got {name!r}: {space!r}"
            )
    if not _is_int(prefetch) or prefetch < 0:
        raise OptionError(f"prefetch: expected a number of chunks, 0 or more, got {prefetch!r}")
    if seed is not None and not _is_int(seed):
        raise OptionError(f"seed: expected an int, or None for torch's initial seed, got {seed!r}")


def check_exchange(exchange: Any, halo_budget: Any, comm_dtype: Any) -> None:
    """OptionError unless the options of exchanges have values that they can have."""
    if exchange not in EXCHANGES:
        raise OptionError(f"exchange: expected one of {', '.join(map(repr, EXCHANGES))}, got {exchange!r}")
    if not _is_int(halo_budget) or halo_budget < 0:
        raise OptionError(f"halo_budget: expected a number of bytes, 0 or more, got {halo_budget!r}")
    if comm_dtype not in (None, torch.bfloat16, torch.float16, torch.float32):
        raise OptionError(
            f"comm_dtype: expected None or a floating-point dtype narrower than the model's, such as torch.bfloat16, "
            f"got {comm_dtype!r}"
        )


def _is_int(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
          "TIB": 2**40}  # fmt: skip


def budget_bytes(budget: Any) -> int | None:
    """Bytes of `memory_budget`: a number of them, or text like "8GiB"; None when there is no limit.

    Raises:
        OptionError: it is neither.
    """
    if budget is None or budget == math.inf:
        return None if budget is None else sys.maxsize
    found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]+)\s*", budget) if isinstance(budget, str) else None
    try:
        if found is not None and found[2].upper() in _UNITS:
            return int(float(found[1]) * _UNITS[found[2].upper()])
        if not isinstance(budget, str | bool) and budget > 0:
            return int(budget)
    except (TypeError, ValueError):
        pass
    raise OptionError(
        f"memory_budget: expected bytes that a part may take (2**33) or text with a unit ('8GiB', '500 MB'), "
        f"got {budget!r}"
    )


def offload_directory(offload: Any, directory: Any) -> str | None:
    """The directory for large tensors of a step; None: they are in memory.

    Raises:
        OptionError: `offload` is neither None, "cpu" nor "disk", or a directory is given without the last.
    """
    if offload not in (None, "cpu", "disk"):
        raise OptionError(
            f"offload: expected None, 'cpu' (of a GPU's tables) or 'disk' (with offload_dir=DIRECTORY), got {offload!r}"
        )
    if offload != "disk" and directory is not None:
        raise OptionError(
            f"offload_dir: expected offload='disk' with it, got offload={offload!r} and {str(directory)!r}"
        )
    if offload != "disk":
        return None
    return str(directory) if directory is not None else tempfile.gettempdir()
