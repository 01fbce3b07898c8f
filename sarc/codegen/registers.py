"""Registers: the loop over a block's edges in vectors, with a row's accumulators in registers meanwhile.

Where a vector's numbers do not divide the features, the last vector starts earlier and holds some of them again: it
computes the same there, and what it folds is the same. Sums over features take what no earlier vector had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sarc.codegen.loops import Declaration, Loop
from sarc.codegen.vectors import LANES, MARK

LEAST = 4  # features
MOST = 16  # vectors of 64 bytes: half of what AVX-512 has
_UNROLL = "#pragma GCC unroll 64"  # loops over registers: a count of numbers is one of vectors once it is known


@dataclass(frozen=True)
class Registers:
    """What is done before the edges of a block, for each of them, and behind them."""

    before: tuple[str, ...]
    edge: tuple[str, ...]
    after: tuple[str, ...]


def in_registers(code: list[str | Loop], accumulators: list[tuple[str, int]], kind: str) -> Registers | None:
    """Loops over an edge's features as one loop over vectors.

    Args:
        code: what is done for one edge.
        accumulators: (name, features) of the arrays that are folded into.
        kind: C++ type of the wide values, or "" where they have several.

    Returns:
        None where some of it has no vector form, the features are too few, or the registers would not do.
    """
    declared = [item for item in code if isinstance(item, Declaration)]
    loops = [item for item in code if isinstance(item, Loop)]
    if not kind or not loops or len(declared) + len(loops) != len(code):
        return None
    joined: Loop | None = loops[0]
    for loop in loops[1:]:
        joined = joined.join(loop) if joined else None
    if joined is None or joined.vector is None or len(joined.inner) != 1:
        return None
    ((axis, features),) = joined.inner
    outer = math.prod(d for _, d in joined.outer)
    most = MOST * (16 if kind == "float" else 8)
    if features < LEAST or max(outer * features, sum(size for _, size in accumulators)) > most:
        return None
    edge: list[str] = [*declared]
    for outer_axis, d in joined.outer:
        edge += [_UNROLL, f"for (int i{outer_axis} = 0; i{outer_axis} < {d}; ++i{outer_axis}) {{"]
    edge += ["{", *joined.vector.before, _UNROLL, "for (int v = 0; v < vectors; ++v) {"]
    edge += [f"const int i{axis} = sarc_start(v, lanes, {features});", *joined.vector.body, "}"]
    edge += [*joined.vector.after, "}", *["}"] * len(joined.outer)]
    before = ["{", f"constexpr int lanes = sarc_lanes<{kind}>({features});"]
    before.append(f"constexpr int vectors = ({features} + lanes - 1) / lanes;")
    after = []
    for name, size in accumulators:
        each = f"for (int i = 0; i < {size // features} * vectors; ++i)"
        place = f"{name} + i / vectors * {features} + sarc_start(i % vectors, lanes, {features})"
        before += [f"sarc_vector<{kind}, lanes> {name}_in[{size // features} * vectors];", _UNROLL]
        before += [f"{each} {name}_in[i] = sarc_get<lanes>({place});"]
        after += [_UNROLL, f"{each} sarc_put({place}, {name}_in[i]);"]
    spelled = tuple(line.replace(MARK, "").replace(LANES, "lanes") for line in edge)
    return Registers(tuple(before), spelled, (*after, "}"))
