"""Settings every test runs under: the DGL backend, hypothesis profiles, threads."""

from __future__ import annotations

import os

os.environ["DGLBACKEND"] = "pytorch"  # before any import of dgl: it prints advice to stderr when unset

import torch
from hypothesis import HealthCheck, settings

# A first example pays for captures and caches, hence no deadline; a red run must be red again, hence derandomised.
_SLOW_START = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "fast", max_examples=10, deadline=None, derandomize=True, print_blob=True, suppress_health_check=_SLOW_START
)
settings.register_profile(
    "thorough", max_examples=300, deadline=None, derandomize=False, print_blob=True, suppress_health_check=_SLOW_START
)
settings.load_profile(os.environ.get("SARC_HYPOTHESIS_PROFILE", "fast"))

# The cores are shared by the xdist workers: more threads than cores make small ops many times slower.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // _workers)))
