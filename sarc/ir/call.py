"""Call: one application of an operator as the op table's rules see it, and how operators are named in text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from sarc.errors import UnsupportedModelError
from sarc.ir.nearest_form import nearest_form
from sarc.ir.space import Dim, Spaces, ValueType

Dims = tuple[Dim, ...]

MIXES_ROWS = (
    "mixes rows of different owners",
    "rows may meet through gather and reduce along edges, or in a sum, mean, max or min over all rows",
)
PAIRS_ROWS = (
    "makes a matrix of rows by rows (every node against every other)",
    "score pairs of nodes along edges: gather both ends, (x[src] * x[dst]).sum(-1), and fold with index_add",
)


@dataclass(frozen=True)
class Call:
    """One application of an operator.

    Attributes:
        node: the call in its graph; its operands are typed.
        spaces: of the program; a rule may add a derived one.
        arguments: operands by schema name.
        results: dimensions of each result as read from a run on meta tensors: every length names its space, but not
            how flattened rows are laid out.
    """

    node: fx.Node
    spaces: Spaces
    arguments: dict[str, Any]
    results: tuple[Dims, ...]

    def type(self, name: str) -> ValueType:
        """The type of the operand called `name` in the schema."""
        return self.arguments[name].meta["type"]

    @property
    def operands(self) -> list[ValueType]:
        """Types of the tensor operands, once each, in order."""
        return [n.meta["type"] for n in self.node.all_input_nodes if isinstance(n.meta["type"], ValueType)]

    @property
    def returns_several(self) -> bool:
        """Whether the operator returns a tuple or a list of tensors."""
        returns = self.node.target._schema.returns
        return len(returns) > 1 or isinstance(returns[0].type, torch.ListType)

    def refuse(self, why: str, instead: str) -> UnsupportedModelError:
        """An error that names the operator, its operands' types and the user's line."""
        shapes = ", ".join(str(t) for t in self.operands)
        instead = nearest_form(self.node.target, instead)
        return UnsupportedModelError(f"{location(self.node)}{op_name(self.node.target)}({shapes}) {why}; {instead}")


def location(node: fx.Node) -> str:
    """ "file:line: " of the user's code for messages, or ""; an input or a constant takes that of its first use."""
    line = node.meta.get("loc") or next((user.meta["loc"] for user in node.users if user.meta.get("loc")), "")
    return f"{line}: " if line else ""


def op_name(target: Any) -> str:
    """The operator's name as printed: `aten.add.Tensor`, `sarc.gather`, `getitem`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    return getattr(target, "__name__", str(target))


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """The call's operands by schema name; {} for a target without a schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    schema = node.target._schema.arguments
    return {**{spec.name: value for spec, value in zip(schema, node.args, strict=False)}, **node.kwargs}
