"""Layout of the arrays that hold a narrow value of every edge of a block, and the loops over them.

By feature, `t[feature * 64 + q]` of edge q: any widths meet in one kernel, and a row's values are numbers in a loop
over edges. By edge, `t[q * width + feature]`, where all narrow values of a kernel have one width: a vector of 16 holds
the features of several edges, so that rows are loaded as they lie in memory and short rows fill their vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sarc.codegen.body import Body, features, width
from sarc.codegen.value import BLOCK, Value, linear, nest
from sarc.codegen.vectors import MARK, NoVector
from sarc.codegen.views import Index
from sarc.ir.space import Rows

LANES = 16


@dataclass(frozen=True)
class BlockLayout:
    """How block arrays lie.

    Attributes:
        width: features of every narrow value, where arrays lie by edge; 0 where they lie by feature.
    """

    width: int

    @property
    def lane(self) -> str:
        """The feature at hand in a loop over the lanes of vectors."""
        return f"(l % {self.width})"

    @property
    def padded(self) -> str:
        """C++ for the entries of a feature's edges (of all features) rounded up to whole vectors."""
        entries = f"count * {self.width}" if self.width else "count"
        return f"({entries} + {LANES - 1}) & ~{LANES - 1}"

    def array(self, name: str, dims: tuple) -> Value:
        """The reader of a block array, at edge q or in one of `loops`."""

        def at(i: str) -> str:
            if MARK in i:
                raise NoVector(i)
            if not self.width:
                return f"{name}[q]" if i == "0" else f"{name}[({i}) * {BLOCK} + q]"
            return f"{name}[v + l]" if i == self.lane else f"{name}[q * {self.width} + {i}]"

        return Value(lambda index: at(linear(index, dims)), dims, True, at)

    def loops(self, dims: tuple, body: Callable[[Index], str]) -> list[str]:
        """Loops over a block's edges and the features of `dims`: whole vectors, entries past the end are not read."""
        if self.width:
            statement = body(["0" if isinstance(d, Rows) or d == 1 else self.lane for d in dims])
            return [
                f"for (int v = 0; v < padded; v += {LANES})",
                f"SARC_SIMD for (int l = 0; l < {LANES}; ++l) {{",
                f"const int q = (v + l) / {self.width}; (void)q;",
                statement,
                "}",
            ]
        loop = nest(dims, body)
        heads = [f"for (int i{axis} = 0; i{axis} < {d}; ++i{axis})" for axis, d in loop.outer + loop.inner]
        return [*heads, f"SARC_SIMD for (int q = 0; q < padded; ++q) {loop.body[0]}"]

    def fold(self, op: str, name: str, size: int, into: str) -> str:
        """C++ that folds an array over a block's edges into an array of `size` features; op: sum, max or min."""
        if self.width:
            return f"sarc_{op}_lanes<{self.width}>({name}, count * {self.width}, {into});"
        return f"for (int i = 0; i < {size}; ++i) {into}[i] = sarc_{op}_of({name} + i * {BLOCK}, count, {into}[i]);"


def layout_of(body: Body) -> BlockLayout:
    """By edge where every narrow value has the same 2, 4 or 8 features on one axis; else by feature."""
    narrow = [n for n in body.nodes if n not in body.in_row and not body.is_wide(n)]
    widths = {width(n) for n in narrow}
    one_axis = all(sum(d != 1 for d in features(n.meta["type"].dims)) == 1 for n in narrow)
    return BlockLayout(widths.pop() if one_axis and len(widths) == 1 and widths <= {2, 4, 8} else 0)
