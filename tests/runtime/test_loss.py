"""Losses in one process are torch's own, and say what does not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import sarc
from sarc.errors import GraphError

OUT = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, -100, 1, 0])
MASK = torch.tensor([True, False, True, True, True, False])
BINARY = (OUT > 0).double()


def test_losses_equal_torchs() -> None:
    found = [
        sarc.cross_entropy(OUT, Y),
        sarc.cross_entropy(OUT, Y, MASK, label_smoothing=0.1),
        sarc.cross_entropy(OUT, Y.clamp(min=0), ignore_index=1),
        sarc.cross_entropy(OUT, BINARY.softmax(dim=1), MASK),
        sarc.binary_cross_entropy(OUT, BINARY, MASK, pos_weight=torch.tensor([1.0, 2.0, 3.0])),
        sarc.binary_cross_entropy(OUT, OUT > 0),
        sarc.mse_loss(OUT, BINARY, MASK),
        sarc.mean(OUT[:, 0], MASK),
        sarc.accuracy(OUT, OUT.argmax(dim=1), MASK),
    ]
    wanted = [
        F.cross_entropy(OUT, Y),
        F.cross_entropy(OUT[MASK], Y[MASK], label_smoothing=0.1),
        F.cross_entropy(OUT, Y.clamp(min=0), ignore_index=1),
        F.cross_entropy(OUT[MASK], BINARY.softmax(dim=1)[MASK]),
        F.binary_cross_entropy_with_logits(OUT[MASK], BINARY[MASK], pos_weight=torch.tensor([1.0, 2.0, 3.0])),
        F.binary_cross_entropy_with_logits(OUT, BINARY),
        F.mse_loss(OUT[MASK], BINARY[MASK]),
        OUT[MASK][:, 0].mean(),
        torch.tensor(1.0, dtype=torch.float64),
    ]
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(a, b.to(a.dtype), atol=1e-12, rtol=1e-12, msg=f"loss {k}: {a}, expected {b}")


def test_a_loss_over_no_row_is_nan() -> None:
    assert sarc.cross_entropy(OUT, Y, torch.zeros(6, dtype=torch.bool)).isnan()


@pytest.mark.parametrize(
    ("message", "run"),
    [
        ("one target a row", lambda: sarc.cross_entropy(OUT, Y[:5])),
        ("classes from 0 to 2", lambda: sarc.cross_entropy(OUT, Y + 3)),
        ("classes from 0 to 2", lambda: sarc.cross_entropy(OUT, Y.clamp(min=-1))),
        ("mask: expected bool", lambda: sarc.cross_entropy(OUT, Y, MASK.long())),
        ("mask: expected bool", lambda: sarc.mean(OUT, MASK[:4])),
        ("output's shape", lambda: sarc.mse_loss(OUT, BINARY[:, :1])),
        ("output's shape", lambda: sarc.binary_cross_entropy(OUT, BINARY[:, 0])),
        ("float value", lambda: sarc.mean(Y)),
    ],
)
def test_what_does_not_fit(message: str, run) -> None:
    with pytest.raises(GraphError, match=message):
        run()
