"""Budget: the plan with least extra work whose predicted memory fits, agreed by all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sarc.errors import BudgetError
from sarc.ir.program import Program
from sarc.ir.space import lengths
from sarc.runtime.binding import Binding, Values, schedule_stages
from sarc.runtime.host import Host
from sarc.runtime.memory_plan import MemoryPlan, make_memory_plans
from sarc.runtime.part_state import PartState
from sarc.runtime.work import AllGather, Work, run_parts

# Shares of the bytes that could be kept, tried in turn: less kept is more work, though not always a lower peak, since
# what is made again is there for a while. Each try lowers the program again, which takes as long as its first
# lowering.
_SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
_TERMS = 4
_WORTH_COMPARING = 16 << 20


def fit_budget(
    compiler: Any, host: Host, stages: Any, values: Values, binding: Binding, prefetch: int, budget: int
) -> Any:
    """Stages whose step fits into `budget` bytes on every part; enters them into `binding`.

    Keeping everything comes first, since it takes least time; then rows travel in chunks, and ever less is kept.

    Raises:
        BudgetError: none fits; on every rank.
    """
    rows = _largest(run_parts({s.rank: _local_rows(s) for s in binding.order.states}, host.transport))
    trained = "joint" in stages.programs
    everything = 0
    best: MemoryPlan | None = None
    for share in _SHARES if trained else (1.0,):
        if trained:
            stages = compiler.divide(stages, rows, share * everything if everything else math.inf)
            schedule_stages(compiler, host, stages, values, binding, prefetch)
            everything = everything or _kept_bytes(stages["forward"], rows)
        worst = _largest_plan(binding, host)
        if worst.total <= budget:
            return stages
        best = worst if best is None or worst.total < best.total else best
        if share == 1.0 and compiler.exchange_in_chunks():
            schedule_stages(compiler, host, stages, values, binding, prefetch)
            worst = _largest_plan(binding, host)
            if worst.total <= budget:
                return stages
            best = min(best, worst, key=lambda plan: plan.total)
        if not everything:
            break
    for candidate in compiler.fewer_tables(stages, rows) if trained else ():
        schedule_stages(compiler, host, candidate, values, binding, prefetch)
        worst = _largest_plan(binding, host)
        if worst.total <= budget:
            return candidate
        best = worst if best is None or worst.total < best.total else best
    assert best is not None
    largest = ", ".join(
        f"%{t.name} {t.nbytes} B ({t.category}{f', {t.loc}' if t.loc else ''})" for t in best.terms[:_TERMS]
    )
    raise BudgetError(
        f"memory_budget: a step needs at least {best.total} B on part {best.rank} (of them {best.loaded} B loaded: "
        f"parameters, features and structure), got {budget} B; the largest are {largest}; use more parts, a larger "
        f"budget or a narrower model"
    )


def least_peak(compiler: Any, host: Host, stages: Any, values: Values, binding: Binding, prefetch: int) -> Any:
    """The stages with the lowest predicted peak: `stages`, or those that keep everything, which take less time; under
    objective "memory" also those whose backward pass folds products from the edges.

    What is made again is there for a while, and may itself be the peak. Small graphs are left alone: each comparison
    takes another lowering.
    """
    least = _largest_plan(binding, host).peak
    if least < _WORTH_COMPARING:
        return stages
    candidates, everything = [], None
    if compiler.objective == "memory":
        rows = _largest(run_parts({s.rank: _local_rows(s) for s in binding.order.states}, host.transport))
        candidates += compiler.fewer_tables(stages, rows)
    if any("again" in n.meta for n in stages["joint"].graph.nodes):
        everything = compiler.divide(stages, None, math.inf)
        candidates.append(everything)
    chosen, scheduled = stages, stages
    for candidate in candidates:
        schedule_stages(compiler, host, candidate, values, binding, prefetch)
        scheduled = candidate
        peak = _largest_plan(binding, host).peak
        if peak < least or (peak == least and candidate is everything):
            chosen, least = candidate, peak
    if scheduled is not chosen:
        schedule_stages(compiler, host, chosen, values, binding, prefetch)
    return chosen


def send_less(compiler: Any, host: Host, stages: Any, values: Values, binding: Binding, prefetch: int) -> Any:
    """`stages`, or those whose gradients of rows are made of the forward pass's sums, where they send fewer bytes.

    The prices are those before a budget, or the peak, decides anew what is kept.
    """
    rows = _largest(run_parts({s.rank: _local_rows(s) for s in binding.order.states}, host.transport))
    factored = compiler.factored(stages, rows)
    if factored is None:
        return stages
    before = _sent_bytes(binding, host)
    schedule_stages(compiler, host, factored, values, binding, prefetch)
    after = _sent_bytes(binding, host)
    binding.notes = (
        f"gradients of rows by folds of the backward pass: a step sends {before} B; of sums of the forward pass: "
        f"{after} B; {'the latter' if after < before else 'the former'}, fewest bytes",
    )
    if after < before:
        return factored
    schedule_stages(compiler, host, stages, values, binding, prefetch)
    return stages


def _sent_bytes(binding: Binding, host: Host) -> int:
    """What all parts send in a step."""

    def share(k: int) -> Work:
        return (yield AllGather(sum(m.nbytes for each in binding.schedules.values() for _, m in each[k].sends())))

    answers = run_parts({s.rank: share(k) for k, s in enumerate(binding.order.states)}, host.transport)
    return sum(next(iter(answers.values())))


def _local_rows(state: PartState) -> Work:
    mine = {**state.local_sizes(), "halo": sum(state.part.halo_sizes)}
    return (yield AllGather(mine))


def _largest(answers: Mapping[int, list[dict[str, int]]]) -> dict[str, int]:
    """The largest of every number, over all parts."""
    everyone = next(iter(answers.values()))
    return {name: max(each.get(name, 0) for each in everyone) for name in everyone[0]}


def _largest_plan(binding: Binding, host: Host) -> MemoryPlan:
    """The plan of the part that needs most."""
    plans = {p.rank: p for p in make_memory_plans(binding)}

    def share(rank: int) -> Work:
        return (yield AllGather(plans[rank].summary))

    everyone = run_parts({rank: share(rank) for rank in plans}, host.transport)
    return max(next(iter(everyone.values())), key=lambda p: (p.total, -p.rank))


def _kept_bytes(forward: Program, rows: Mapping[str, int]) -> int:
    sizes = forward.spaces.numbers({**{s.name: 0 for s in forward.spaces if s.kind != "concat"}, **rows})
    kept = [n for n, o in zip(forward.returned, forward.outputs, strict=True) if o.kind == "saved"]
    return sum(math.prod(lengths(n.meta["type"], sizes)) * n.meta["type"].dtype.itemsize for n in kept)
