"""Counter-based draws: the published generator, and keys that do not depend on how rows are spread."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sarc.ir.draws import spread_keys
from sarc.ir.philox import philox, uniform
from sarc.ir.space import Rows

FULL = 0xFFFFFFFF

# Known answers of Philox4x32-10 published with the authors' library (Random123, kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected) -> None:
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def draw(rng: tuple[int, int], keys: torch.Tensor, features: int, op: int = 0) -> torch.Tensor:
    return uniform(torch.tensor(rng), (keys.numel(), features), 0, keys, op)


@given(st.permutations(range(12)), st.integers(1, 9), st.integers(0, 3))
def test_a_row_draws_by_its_key_alone(order: list[int], features: int, op: int) -> None:
    whole = draw((5, 2), torch.arange(12), features, op)
    keys = torch.tensor(order)
    assert torch.equal(draw((5, 2), keys, features, op), whole[keys])
    assert torch.equal(draw((5, 2), keys[:0], features, op), whole[:0])


def test_seed_step_operator_and_high_words_matter() -> None:
    keys = torch.arange(64)
    base = draw((1, 1), keys, 4)
    others = [
        draw((2, 1), keys, 4), draw((1 + (1 << 32), 1), keys, 4), draw((1, 2), keys, 4), draw((1, 1), keys, 4, op=1),
        draw((1, 1), keys + (1 << 33), 4), draw((-1, 1), keys, 4),
    ]  # fmt: skip
    for other in others:
        assert (other == base).float().mean() < 0.01


def test_draws_are_uniform() -> None:
    draws = draw((3, 0), torch.arange(20_000), 5)
    assert draws.dtype is torch.float32
    assert 0 <= draws.min() and draws.max() < 1
    # 100 000 draws: the mean is within five of its standard deviations of 1/2, each tenth holds its share.
    assert abs(float(draws.mean()) - 0.5) < 5 * (1 / 12 / 100_000) ** 0.5
    shares = torch.histc(draws, 10, 0, 1) / 100_000
    assert (shares - 0.1).abs().max() < 0.005


def test_more_rows_than_one_slice_draw_as_one() -> None:
    keys = torch.arange(40_000)
    whole = draw((3, 0), keys, 6)
    assert torch.equal(draw((3, 0), keys[33_000:33_010], 6), whole[33_000:33_010])


def test_rows_may_lie_on_another_axis() -> None:
    rng, keys = torch.tensor([8, 9]), torch.tensor([3, 1, 4])
    first = uniform(rng, (3, 5), 0, keys, 2)
    assert torch.equal(uniform(rng, (5, 3), 1, keys, 2), first.t())
    assert uniform(rng, (), None, keys, 2).shape == ()


@given(st.integers(1, 4), st.integers(1, 4), st.permutations(range(5)))
def test_flattened_rows_have_keys_of_their_own(before: int, after: int, order: list[int]) -> None:
    dim = Rows("N", before, after)
    whole = spread_keys(torch.arange(5), dim)
    assert sorted(whole.tolist()) == list(range(5 * before * after))
    # Entry (b, row, a) of any selection of rows has the key it has among all rows.
    picked = spread_keys(torch.tensor(order), dim).view(before, 5, after)
    assert torch.equal(picked, whole.view(before, 5, after)[:, order])
