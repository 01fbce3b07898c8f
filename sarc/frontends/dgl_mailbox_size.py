"""The in-degree D as a user-defined DGL reduce function meets it: the size of the mailbox axis, `m.size(1)`.

In DGL it is a Python int, the same for all nodes of a call; recorded, one `MailboxSize` stands for the D of every node.
It can be calculated with (PNA scales by `h * (numpy.log(D + 1) / delta)`) but not branched on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import SymInt, Tensor

from sarc.frontends.dgl_messages import broadcast_rows, degrees, gather
from sarc.frontends.dgl_refusal import unsupported

TENSOR_ARITHMETIC = frozenset("add radd sub rsub mul rmul div true_divide truediv rtruediv pow rpow".split())
NUMPY_TO_TORCH = {name: name for name in "log log2 log10 log1p exp sqrt square add subtract multiply negative".split()}
NUMPY_TO_TORCH |= {"divide": "div", "power": "pow"}


class Arithmetic:
    """Python's operators, all but matmul, through `_calculate(op, left, right)`."""

    def _calculate(self, op: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        raise NotImplementedError

    def __add__(self, other: Any) -> Any:
        return self._calculate(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return self._calculate(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return self._calculate(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._calculate(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return self._calculate(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._calculate(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._calculate(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._calculate(operator.truediv, other, self)

    def __pow__(self, other: Any) -> Any:
        return self._calculate(operator.pow, self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._calculate(operator.pow, other, self)

    def __neg__(self) -> Any:
        return self * -1

    def __eq__(self, other: object) -> Any:
        return self._calculate(operator.eq, self, other)

    def __ne__(self, other: object) -> Any:
        return self._calculate(operator.ne, self, other)

    def __lt__(self, other: Any) -> Any:
        return self._calculate(operator.lt, self, other)

    def __le__(self, other: Any) -> Any:
        return self._calculate(operator.le, self, other)

    def __gt__(self, other: Any) -> Any:
        return self._calculate(operator.gt, self, other)

    def __ge__(self, other: Any) -> Any:
        return self._calculate(operator.ge, self, other)


@dataclass(frozen=True)
class MailboxSpace:
    """Which node each message goes to, `dst` int64 [E], and the number of nodes N."""

    dst: Tensor
    num_nodes: int | SymInt

    def size(self) -> MailboxSize:
        # A node of degree 0 never meets a reduce function; 1 keeps its row, zeroed later, free of log(0) and 1 / 0.
        return MailboxSize(degrees(self.dst, self.num_nodes).clamp(min=1).to(torch.float64), self)


class MailboxSize(Arithmetic):
    """A number that differs from node to node: `per_node` float64 [N], as precise as the Python number it replaces."""

    def __init__(self, per_node: Tensor, space: MailboxSpace) -> None:
        self.per_node = per_node
        self.space = space

    def rows_like(self, other: Tensor) -> Tensor:
        """The number for each row of node tensor `other` [N, *F]: [N, 1, ..., 1], in the dtype a float would take."""
        return broadcast_rows(self.per_node, max(other.dim(), 1)).to(_dtype_with_a_float(other))

    def edges_like(self, other: Tensor) -> Tensor:
        """The number of each edge's destination, for edge tensor `other` [E, *F]: [E, 1, ..., 1]."""
        per_edge = gather(self.per_node, self.space.dst)
        return broadcast_rows(per_edge, other.dim()).to(_dtype_with_a_float(other))

    def _calculate(self, op: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        """Case 1: with a tensor of one value, which acts as a number. Case 2: a node tensor. Case 3: a number."""
        other = right if left is self else left
        if isinstance(other, Tensor) and self._acts_as_number(other):  # Case 1
            sides = (side.per_node if side is self else side.reshape(()) for side in (left, right))
            return MailboxSize(op(*sides), self.space)
        if isinstance(other, Tensor):  # Case 2
            return op(*(self.rows_like(other) if side is self else side for side in (left, right)))
        if isinstance(other, (int, float, MailboxSize)):  # Case 3
            sides = (side.per_node if isinstance(side, MailboxSize) else side for side in (left, right))
            return MailboxSize(op(*sides), self.space)
        return NotImplemented  # a Mailbox on the other side knows how

    def _acts_as_number(self, tensor: Tensor) -> bool:
        if tensor.dim() == 0:
            return True
        one_value = tensor.dim() == 1 and isinstance(tensor.shape[0], int) and tensor.shape[0] == 1
        one_node = isinstance(self.space.num_nodes, int) and self.space.num_nodes == 1
        return one_value and not one_node

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Case 1: `x.repeat(1, D, 1)`, `x.expand(-1, D, -1)` of a node tensor [N, 1, *F]. Case 2: `h * D`."""
        if not all(issubclass(t, (Tensor, cls)) for t in types):
            return NotImplemented  # a Mailbox among the arguments knows how
        if func.__name__ in ("repeat", "expand"):  # Case 1
            from sarc.frontends.dgl_mailbox import spread_to_messages  # each of the two classes makes the other

            return spread_to_messages(func, args[0], args[1] if isinstance(args[1], (tuple, list)) else args[1:])
        sizes = [arg for arg in args if isinstance(arg, cls)]
        if func.__name__.strip("_") not in TENSOR_ARITHMETIC or kwargs or len(sizes) != 1 or len(args) != 2:
            raise unsupported(f"torch.{func.__name__} of the mailbox size", "h * D, h / D and numpy.log(D) work")
        return sizes[0]._calculate(func, *args)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> MailboxSize:
        """`numpy.log(D)` and the like."""
        name = NUMPY_TO_TORCH.get(ufunc.__name__)
        if method != "__call__" or kwargs or name is None:
            raise unsupported(f"numpy.{ufunc.__name__} of the mailbox size", f"use one of {', '.join(NUMPY_TO_TORCH)}")
        operands = [side.per_node if isinstance(side, MailboxSize) else float(side) for side in inputs]
        operands = [torch.as_tensor(side, dtype=torch.float64) for side in operands]
        return MailboxSize(getattr(torch, name)(*operands), self.space)

    def _refuse(self, *_: Any) -> NoReturn:
        raise unsupported(
            "the size of a mailbox as a Python number (in a comparison, range(), math.log() or as a tensor's size)",
            "it differs from node to node: calculate with it (numpy.log(D), h * D, h / D); expand with expand_as(m)",
        )

    __bool__ = __int__ = __float__ = __index__ = __lt__ = __le__ = __gt__ = __ge__ = __floordiv__ = __mod__ = _refuse
    __eq__ = __ne__ = _refuse  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def _dtype_with_a_float(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.is_floating_point() else torch.get_default_dtype()
