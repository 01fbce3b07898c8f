"""RowSizes: the symbolic numbers of rows of one capture, and what the model may ask of them.

A row count stays a symbol. A branch that the model itself takes on row counts (`if x.size(0) > 100`) goes the way it
goes on the partitioned graph. A row count turned into a Python number would bake one graph's count, or one part's, into
the program: refused at the line that does it, before a loop over rows can be unrolled.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sarc.errors import UnsupportedModelError
from sarc.frontends.source import asked_by_model, current_line


class RowSizes(ShapeEnv):
    """A ShapeEnv whose declared symbols are row counts.

    Args:
        counts: rows of the whole graph, by space; branches on others are decided by stand-in lengths.
    """

    def __init__(self, counts: Mapping[str, int]):
        super().__init__(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
        self.counts = counts
        self.names: dict[sympy.Basic, sympy.Symbol] = {}

    def create_symbol(self, *args, **kwargs):
        # PyTorch takes sizes to be positive, and answers `numel() == 0` from that; on a graph without edges it is true.
        if 0 in self.counts.values():
            kwargs["positive"] = None
        return super().create_symbol(*args, **kwargs)

    def declare(self, size: torch.SymInt, name: str) -> None:
        """`size` is the number of rows of space `name`."""
        self.names[size.node.expr] = sympy.Symbol(name)

    def shown(self, expr: sympy.Basic) -> str:
        """`expr` with spaces for symbols, as messages print it."""
        return str(expr.xreplace(self.names)) if isinstance(expr, sympy.Basic) else str(expr)

    def evaluate_expr(self, orig_expr, *args, **kwargs):
        if not isinstance(orig_expr, sympy.Basic) or not orig_expr.free_symbols & self.names.keys():
            return super().evaluate_expr(orig_expr, *args, **kwargs)
        if isinstance(orig_expr, sympy.Expr):
            raise self._baked(orig_expr)
        if asked_by_model() and orig_expr.free_symbols <= self._known().keys():
            return sympy.sympify(bool(orig_expr.subs(self._known())))
        before = len(self.guards)
        answer = super().evaluate_expr(orig_expr, *args, **kwargs)
        for guard in self.guards[before:]:
            if isinstance(guard.expr, sympy.Eq) and guard.expr.free_symbols & self.names.keys():
                raise self._fixed(guard.expr)
        return answer

    def _known(self) -> dict[sympy.Basic, int]:
        return {symbol: self.counts[str(name)] for symbol, name in self.names.items() if str(name) in self.counts}

    def _baked(self, expr: sympy.Basic) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{current_line()}: a number of rows, {self.shown(expr)}, is turned into a Python number (int, float, len, "
            f"range, math.*, torch.tensor(size), a loop over rows): expected it to stay a size, since the compiled "
            f"program runs on any part of the graph; use x.size(0) as it is, x.size(0) ** 0.5, or the tensor "
            f"x.new_ones(x.size(0)).sum()"
        )

    def _fixed(self, expr: sympy.Basic) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{current_line()}: the operator here fits only where {self.shown(expr.lhs)} == {self.shown(expr.rhs)}: "
            f"expected one that fits any number of rows; keep the rows whole (x.view(x.size(0), ...)) and take lengths "
            f"from the tensors themselves (x.size(0)), not from a literal count"
        )
