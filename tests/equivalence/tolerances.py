"""How far a compiled result may be from the plain one, and why.

Both sum the same terms in another order. A sum of k terms in another order differs by at most about k * eps of the sum
of magnitudes; a model chains a few sums, normalises by small numbers and multiplies by weights, for which a factor
stands. Errors are judged against max(1, max|reference|): some gradients are mathematically zero, and rounding leaves
1e-16 on both sides there.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The promise of the project: in float64 the reordering of sums is below this on every test graph, with room to spare.
FLOAT64 = 1e-10

# Longest sum of the test graphs: the weight gradients, over the edges (90) or the nodes (23).
REDUCTION_LENGTH = 100

# Between a reordering and the result it reaches lie a few layers and divisions by standard deviations of about 0.1.
AMPLIFICATION = 10

# A type of 8 significant bits rounds every operator's result by up to 0.4 %: two orders of one sum may differ by as
# much as either differs from the exact one. So the distance from the float64 result is compared, with room for luck.
LOW_PRECISION_FACTOR = 3


def tolerance(dtype: torch.dtype) -> float:
    """Bound on max|a - b| / max(1, max|b|)."""
    if dtype == torch.float64:
        return FLOAT64
    return AMPLIFICATION * REDUCTION_LENGTH * torch.finfo(dtype).eps


def error(actual: Tensor | None, expected: Tensor | None) -> float:
    """max|a - b| / max(1, max|b|); a missing gradient is one of zeros; equal infinities and NaNs do not differ."""
    if actual is None or expected is None:
        found = expected if actual is None else actual
        return 0.0 if found is None or not found.numel() else float(found.detach().double().abs().max())
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    if not actual.numel():
        return 0.0
    a, b = actual.detach().double(), expected.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
    scale = b[b.isfinite()].abs().max().clamp(min=1.0) if bool(b.isfinite().any()) else torch.tensor(1.0)
    return float(gap.max() / scale)
