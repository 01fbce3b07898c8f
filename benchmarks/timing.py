"""Timing of contestants in turn: A B C A B C, so that a slow moment of the machine hits them all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch

Name = TypeVar("Name", bound=Hashable)
# Larger than the last-level caches in use, so that no contestant finds warm what it or another one left there.
SWEPT_BYTES = 64 << 20
WARM_UPS = 2


def interleave(
    steps: Mapping[Name, Callable[[], object]], refresh: Callable[[int], object], repeat: int
) -> dict[Name, list[float]]:
    """Seconds of `repeat` runs of every step, after warm-up runs that are not counted.

    Args:
        steps: by contestant. What a step returns is freed before the clock stops.
        refresh: called with the number of the repetition before each run, outside the clock: draws the inputs anew, the
            same for all contestants of a repetition, so that nothing computed before can be used again.
        repeat: counted repetitions.
    """
    sweep = torch.zeros(SWEPT_BYTES // 4)
    times: dict[Name, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()
    gc.freeze()  # what lives now is not searched again between repetitions
    try:
        for k in range(-WARM_UPS, repeat):
            for name, step in steps.items():
                refresh(k + WARM_UPS)
                sweep.add_(1.0)
                started = time.perf_counter()
                step()
                seconds = time.perf_counter() - started
                if k >= 0:
                    times[name].append(seconds)
            gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()
    return times


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return float(low), float(middle), float(high)


def median_ratio(seconds: list[float], base: list[float]) -> float:
    """Median over repetitions of time / time of the base in the same repetition."""
    return float(np.median(np.divide(seconds, base)))
