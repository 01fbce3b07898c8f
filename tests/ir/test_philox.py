"""Philox4x32-10 against the known answers of its authors, and the draws made of it."""

from __future__ import annotations

import pytest
import torch

from sarc.ir.philox import philox, uniform

# Random123's known-answer vectors (Salmon et al., SC 2011): counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    k0, k1 = words(key)
    # Three equal counters: the answer does not depend on how many are asked for.
    found = philox(tuple(torch.full((3,), c, dtype=torch.int64) for c in words(counter)), (k0, k1))
    for word, wanted in zip(found, words(expected), strict=True):
        assert word.tolist() == [wanted] * 3


def rng(seed: int, step: int) -> torch.Tensor:
    return torch.tensor([seed, step])


def test_draws_are_uniform() -> None:
    draws = uniform(rng(1, 0), (500, 40), 0, torch.arange(500), 3).double()
    count = draws.numel()
    assert 0 <= float(draws.min()) and float(draws.max()) < 1
    # Four standard errors of the mean and the variance of a uniform variable.
    assert abs(float(draws.mean()) - 1 / 2) < 4 * (1 / 12 / count) ** 0.5
    assert abs(float(draws.var()) - 1 / 12) < 4 * (1 / 180 / count) ** 0.5
    buckets = torch.histc(draws, 16, 0, 1)
    chi_square = float(((buckets - count / 16).square() / (count / 16)).sum())
    assert chi_square < 50  # of 15 degrees of freedom: exceeded once in 10^5
    neighbours = torch.corrcoef(torch.stack([draws[:, :-1].flatten(), draws[:, 1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 4 / count**0.5
    assert draws.unique().numel() > 0.99 * count


@pytest.mark.parametrize("axis", [0, 1])
def test_a_row_draws_the_same_wherever_it_is(axis: int) -> None:
    keys = torch.tensor([9, 2, 2**33 + 2, 7])
    shape = (4, 6) if axis == 0 else (6, 4)
    everything = uniform(rng(5, 1), shape, axis, keys, 0)
    some = uniform(rng(5, 1), (2, 6) if axis == 0 else (6, 2), axis, keys[[2, 0]], 0)
    assert torch.equal(some, everything.index_select(axis, torch.tensor([2, 0])))
    rows = everything.movedim(axis, 0)
    assert not torch.equal(rows[1], rows[2]), "keys above 2^32 count"


def test_seed_step_and_operator_matter() -> None:
    keys = torch.arange(8)
    first = uniform(rng(5, 1), (8, 3), 0, keys, 0)
    for other in (rng(6, 1), rng(5, 2), rng(5 + 2**32, 1), rng(-5, 1)):
        assert not torch.equal(uniform(other, (8, 3), 0, keys, 0), first)
    assert not torch.equal(uniform(rng(5, 1), (8, 3), 0, keys, 1), first)
    assert torch.equal(uniform(rng(5, 1), (8, 3), 0, keys, 0), first)
    assert uniform(rng(5, 1), (0, 3), 0, keys[:0], 0).shape == (0, 3)
    assert uniform(rng(5, 1), (2, 3), None, keys, 0).shape == (2, 3)
