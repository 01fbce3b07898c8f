"""What is kept for a second pass and what is made again: exact for a given price of work, near-exact under a limit.

A value that the second pass needs is kept from the first one (its bytes) or made again (its work) from its operands,
which are then needed in turn. For a price p the cheapest choice, bytes + p work, is a minimum cut: every value v is
two nodes, "made again" v1 and "there" v2, on the sink's side when they hold. The arc source -> v1 costs p work(v), the
arc v1 -> v2 bytes(v); v2 -> w1 without capacity says that who makes w again needs v. (The same graph as Jia et al. and
PyTorch's min-cut partitioner, with work in place of a rule of what may be made again.)

Under a limit, prices give the choices on the lower hull of (bytes, work); what lies between two of them is found by
branch and bound, whose bounds are these cuts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

# A choice this close to a proven bound is good enough.
_GAP = 0.005
_SCALE = 10**12


@dataclass(frozen=True)
class Problem:
    """Values in an order in which operands come first.

    Attributes:
        nbytes: of each value; None where it may not be kept.
        work: of making each value once its operands are there.
        operands: of each value, by number; inputs of the program, which are always there, are left out.
        wanted: values that the second pass reads.
    """

    nbytes: tuple[int | None, ...]
    work: tuple[float, ...]
    operands: tuple[tuple[int, ...], ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """Values kept and values made again, with the bytes and the work of both."""

    kept: frozenset[int]
    again: frozenset[int]
    nbytes: int
    work: float


def choose(problem: Problem, kept: frozenset[int]) -> Choice:
    """The choice in which a value is kept when it is in `kept` and needed."""
    held: set[int] = set()
    again: set[int] = set()
    stack = list(problem.wanted)
    while stack:
        v = stack.pop()
        if v in held or v in again:
            continue
        if v in kept:
            held.add(v)
        else:
            again.add(v)
            stack.extend(problem.operands[v])
    nbytes = sum(problem.nbytes[v] or 0 for v in held)
    return Choice(frozenset(held), frozenset(again), nbytes, sum(problem.work[v] for v in sorted(again)))


def keep_all(problem: Problem) -> Choice:
    """The choice with least work: everything that may be kept is."""
    return choose(problem, frozenset(v for v, size in enumerate(problem.nbytes) if size is not None))


def least_bytes(problem: Problem, most_work: float, cuts: int = 0) -> Choice | None:
    """The choice with least bytes whose work is at most `most_work`; None when there is none.

    Args:
        cuts: most minimum cuts computed; 0: as many as a second or two allows, counted by the size of the problem.
    """
    return _Search(problem, "nbytes", "work", most_work, cuts).run()


def least_work(problem: Problem, most_bytes: float, cuts: int = 0) -> Choice | None:
    """The choice with least work whose kept values have at most `most_bytes`; None when there is none."""
    return _Search(problem, "work", "nbytes", most_bytes, cuts).run()


class _Search:
    """Least `goal` under a limit of the other measure."""

    def __init__(self, problem: Problem, goal: str, limited: str, limit: float, cuts: int):
        self.problem, self.goal, self.limited, self.limit = problem, goal, limited, limit
        arcs = 3 * len(problem.work) + sum(map(len, problem.operands))
        self.left = cuts or max(12, min(600, 40_000 // max(arcs, 1)))
        self.best: Choice | None = None

    def run(self) -> Choice | None:
        open_: list[dict[int, bool]] = [{}]
        while open_ and self.left > 0:
            fixed = open_.pop()
            branch = self._bound(fixed)
            if branch is not None:
                # The half that resembles the best choice is explored first.
                first = self.best is not None and branch in self.best.kept
                open_ += [{**fixed, branch: not first}, {**fixed, branch: first}]
        return self.best

    def _bound(self, fixed: Mapping[int, bool]) -> int | None:
        """Walk down the hull of the choices with these values fixed; a value to branch on, or None."""
        over = self._cut(fixed, 1.0, 0.0)
        if over is None or not self._is_better(self._goal(over)):
            return None
        if self._fits(over):
            self._offer(over)
            return None
        under = self._cut(fixed, 0.0, 1.0)
        if under is None or not self._fits(under):
            return None
        self._offer(under)
        while self.left > 0:
            price = (self._goal(under) - self._goal(over)) / (self._limited(over) - self._limited(under))
            between = self._cut(fixed, 1.0, price)
            assert between is not None
            value = self._goal(between) + price * self._limited(between)
            if value >= (self._goal(under) + price * self._limited(under)) * (1 - 1e-9):
                if not self._is_better(value - price * self.limit):
                    return None
                break
            if self._fits(between):
                under = between
                self._offer(between)
            else:
                over = between
        differ = (over.kept ^ under.kept) - fixed.keys()
        sizes = self.problem.nbytes
        return max(differ, key=lambda v: (sizes[v] or 0, -v), default=None)

    def _goal(self, choice: Choice) -> float:
        return getattr(choice, self.goal)

    def _limited(self, choice: Choice) -> float:
        return getattr(choice, self.limited)

    def _fits(self, choice: Choice) -> bool:
        return self._limited(choice) <= self.limit

    def _is_better(self, bound: float) -> bool:
        return self.best is None or bound < self._goal(self.best) * (1 - _GAP)

    def _offer(self, choice: Choice) -> None:
        if self.best is None or (self._goal(choice), self._limited(choice)) < (
            self._goal(self.best),
            self._limited(self.best),
        ):
            self.best = choice

    def _cut(self, fixed: Mapping[int, bool], of_goal: float, of_limited: float) -> Choice | None:
        """The choice with least of_goal goal + of_limited limited, where `fixed` says of some values whether they are
        kept when needed; None when there is none."""
        self.left -= 1
        by = {self.goal: of_goal, self.limited: of_limited}
        found = cheapest(self.problem, by["nbytes"], by["work"], fixed)
        return found


def cheapest(
    problem: Problem, per_byte: float, per_work: float, fixed: Mapping[int, bool] | None = None
) -> Choice | None:
    """The choice with least per_byte bytes + per_work work: a minimum cut.

    Of equal ones, that with fewest values made again. None when `fixed` (value -> whether it is kept when needed)
    allows no choice.
    """
    fixed = fixed or {}
    relevant = choose(problem, frozenset()).again
    total = per_byte * sum(problem.nbytes[v] or 0 for v in relevant) + per_work * sum(problem.work[v] for v in relevant)
    # Integers, so that cuts compare exactly; the small terms decide between equal choices.
    scale = _SCALE / max(total, 1e-30)
    graph = nx.DiGraph()
    graph.add_nodes_from(("source", "sink"))
    for v in sorted(relevant):
        made, there = (v, "made"), (v, "there")
        size = problem.nbytes[v]
        if fixed.get(v) is True:
            graph.add_edge("source", made)
        else:
            graph.add_edge("source", made, capacity=1 + round(scale * per_work * problem.work[v]))
        if size is None or fixed.get(v) is False:
            graph.add_edge(made, there)
        else:
            graph.add_edge(made, there, capacity=1 + round(scale * per_byte * size))
        for u in problem.operands[v]:
            graph.add_edge((u, "there"), made)
    for v in problem.wanted:
        graph.add_edge((v, "there"), "sink")
    try:
        _, (left, _) = nx.minimum_cut(graph, "source", "sink")
    except nx.NetworkXUnbounded:
        return None
    kept = frozenset(
        v for v in relevant if (v, "made") in left and problem.nbytes[v] is not None and fixed.get(v) is not False
    )
    return choose(problem, kept)
