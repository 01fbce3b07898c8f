"""What is kept is what an exhaustive search keeps, within 2 %; exactly so for a price of work; and large programs take
seconds."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from sarc.passes.joint.choose_kept import Choice, Problem, cheapest, choose, keep_all, least_bytes, least_work

NEAR = 1.02


def draw(seed: int) -> Problem:
    """Up to 25 values with up to three operands; some may not be kept, some are free to make."""
    rng = random.Random(seed)
    count = rng.randint(4, 25)
    kept = [k for k in range(count) if rng.random() < 0.8]
    kept = set(rng.sample(kept, min(len(kept), 13)))
    nbytes = tuple(rng.choice((4, 16, 128, 512, 752)) if k in kept else None for k in range(count))
    work = tuple(float(rng.choice((0, 1, 4, 30, 100, 250))) for _ in range(count))
    operands = tuple(tuple(sorted(rng.sample(range(k), min(k, rng.randint(0, 3))))) for k in range(count))
    wanted = tuple(sorted(rng.sample(range(count), rng.randint(1, max(1, count // 2)))))
    return Problem(nbytes, work, operands, wanted)


def all_choices(problem: Problem) -> list[Choice]:
    may = [v for v, size in enumerate(problem.nbytes) if size is not None]
    subsets = itertools.chain.from_iterable(itertools.combinations(may, k) for k in range(len(may) + 1))
    return list({choose(problem, frozenset(s)).kept: choose(problem, frozenset(s)) for s in subsets}.values())


@pytest.mark.parametrize("seed", range(25))
def test_limits_are_kept_and_the_choice_is_near_the_best(seed: int) -> None:
    problem = draw(seed)
    everything = all_choices(problem)
    fastest, smallest = keep_all(problem), min(everything, key=lambda c: c.nbytes)
    for share in (0.0, 0.1, 0.3, 0.7):
        most_work = fastest.work + share * max(fastest.work, 100.0)
        found = least_bytes(problem, most_work)
        best = min(c.nbytes for c in everything if c.work <= most_work)
        assert found is not None and found.work <= most_work and found.nbytes <= NEAR * best
        most_bytes = smallest.nbytes + share * (fastest.nbytes - smallest.nbytes)
        found = least_work(problem, most_bytes)
        best_work = min(c.work for c in everything if c.nbytes <= most_bytes)
        assert found is not None and found.nbytes <= most_bytes and found.work <= NEAR * best_work
    assert least_work(problem, -1.0) is None or smallest.nbytes == 0


@pytest.mark.parametrize("seed", range(25))
def test_for_a_price_the_cut_is_the_best_choice(seed: int) -> None:
    problem = draw(seed)
    everything = all_choices(problem)
    for price in (0.01, 0.5, 3.0, 1000.0):
        found = cheapest(problem, 1.0, price)
        assert found is not None
        best = min(c.nbytes + price * c.work for c in everything)
        assert found.nbytes + price * found.work == pytest.approx(best, rel=1e-9)


def test_fixed_values_are_respected_and_contradictions_found() -> None:
    problem = Problem((8, 8), (1.0, 5.0), ((), (0,)), (1,))
    assert cheapest(problem, 1.0, 1.0, {1: True}).kept == {1}
    assert cheapest(problem, 1.0, 1.0, {1: False, 0: True}).kept == {0}
    never = Problem((None,), (1.0,), ((),), (0,))
    assert cheapest(never, 1.0, 1.0, {0: True}) is None


def test_a_deep_chain_takes_seconds() -> None:
    """Four hundred values, as sixteen layers of attention have."""
    rng = random.Random(0)
    count = 400
    operands = tuple(tuple({max(0, k - 1), max(0, k - rng.randint(1, 20))} - {k}) for k in range(count))
    nbytes = tuple(rng.choice((16, 512)) if rng.random() < 0.6 else None for _ in range(count))
    problem = Problem(nbytes, tuple(rng.random() * 10 for _ in range(count)), operands, tuple(range(0, count, 2)))
    started = time.process_time()
    fastest = keep_all(problem)
    found = least_bytes(problem, 1.1 * fastest.work)
    assert time.process_time() - started < 10
    assert found is not None and found.work <= 1.1 * fastest.work and found.nbytes < fastest.nbytes
