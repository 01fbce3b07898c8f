"""The op table: for every operator, how rows pass through it; and the type inference that reads it.

Shapes and dtypes are inferred by running the operator on meta tensors of surrogate lengths (see `Spaces`); what the
table adds is whether that is legal on rows that are spread over parts, how the rows are laid out in the result, and
which results are partial (a contraction of a space: each part computes a share, an all-reduce completes it).

`TABLE` maps an operator to its rule. Operators tagged pointwise by PyTorch need no entry. An operator without a rule is
legal on replicated values only. The operator itself is its reference, PyTorch's autograd its derivative.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.fx as fx

from sarc.ir import dialect_rules
from sarc.ir import layout_rules as rules
from sarc.ir.call import MIXES_ROWS, PAIRS_ROWS, Call, Dims, named_arguments
from sarc.ir.dialect import GATHER, MM_OVER, OWN_ROWS, REDUCE, ROW_IDS, SEGMENT_IDS, SELECT_ROWS, UNIFORM, WIDEN_ROWS
from sarc.ir.meta_results import meta_results
from sarc.ir.program import map_sizes
from sarc.ir.space import DTYPE_NAMES, Dim, Rows, Size, Spaces, ValueType

aten = torch.ops.aten

Types = ValueType | tuple[ValueType, ...]


@dataclass(frozen=True)
class OpDef:
    """How one operator treats rows.

    Attributes:
        layout: rule that gives the dimensions of the result(s) from those of the operands.
        contracts: all-reduce ("sum", "max", "min") that completes the result when a space is contracted; "" when
            the operator may not contract one.
        stages: stages of a program that may hold the operator; empty for all of them.
    """

    layout: Callable[[Call], Dims | list[Dims]]
    contracts: str = ""
    stages: tuple[str, ...] = ()

    @property
    def doc(self) -> str:
        """The rule in words."""
        return (self.layout.__doc__ or "").splitlines()[0]

    @property
    def work(self) -> str:
        """What an application costs (`sarc.cost`): "view" nothing; "create" writes its result; "move" reads and writes
        rows; "entry" also computes one number a result entry; "fold" one an operand entry; "product" a matrix product.
        """
        return _WORK.get(self.layout, "entry")


_WORK: dict[object, str] = {
    **dict.fromkeys((rules.view, rules.expand, rules.permute, rules.transpose, rules.unsqueeze), "view"),
    **dict.fromkeys((rules.squeeze, rules.select, rules.slice_), "view"),
    rules.created: "create",
    **dict.fromkeys((rules.cat, rules.stack, rules.repeat, rules.flip), "move"),
    **dict.fromkeys((dialect_rules.gather, dialect_rules.owned, dialect_rules.select_rows), "move"),
    **dict.fromkeys((rules.over_dims, rules.along_features, dialect_rules.reduce), "fold"),
    **dict.fromkeys((rules.matmul, rules.add_product, rules.product_over), "product"),
}
# What makes rows of other spaces than its operands have, and contracts none.
_KEEP_ROWS = {
    GATHER, OWN_ROWS, WIDEN_ROWS, SELECT_ROWS, ROW_IDS, SEGMENT_IDS, UNIFORM, aten.cat.default, aten.slice.Tensor,
}  # fmt: skip
# Row ids and selections belong to the structure of the graph: they are bound before a step runs.
_BOUND_ONCE = ("raised", "structure")
# What alters an operand is no value of a program that passes still rewrite: add-products and reuse-storage make it.
_LAST = ("data", "forward", "backward")


TABLE: dict[object, OpDef] = {
    GATHER: OpDef(dialect_rules.gather),
    REDUCE: OpDef(dialect_rules.reduce, "sum"),
    OWN_ROWS: OpDef(dialect_rules.owned),
    WIDEN_ROWS: OpDef(dialect_rules.owned),
    ROW_IDS: OpDef(rules.created, stages=_BOUND_ONCE),
    SEGMENT_IDS: OpDef(dialect_rules.segment_ids, stages=_BOUND_ONCE),
    SELECT_ROWS: OpDef(dialect_rules.select_rows, stages=_BOUND_ONCE),
    UNIFORM: OpDef(rules.created),
    aten.full.default: OpDef(rules.created),
    aten.scalar_tensor.default: OpDef(rules.created),
    aten.arange.start_step: OpDef(rules.created),
    aten.eye.default: OpDef(rules.created),
    aten.view.default: OpDef(rules.view),
    aten.reshape.default: OpDef(rules.view),
    aten.expand.default: OpDef(rules.expand),
    aten.permute.default: OpDef(rules.permute),
    aten.t.default: OpDef(rules.transpose),
    aten.transpose.int: OpDef(rules.transpose),
    aten.unsqueeze.default: OpDef(rules.unsqueeze),
    aten.squeeze.default: OpDef(rules.squeeze),
    aten.squeeze.dim: OpDef(rules.squeeze),
    aten.squeeze.dims: OpDef(rules.squeeze),
    aten.select.int: OpDef(rules.select),
    aten.slice.Tensor: OpDef(rules.slice_),
    aten.cat.default: OpDef(rules.cat),
    aten.stack.default: OpDef(rules.stack),
    aten.flip.default: OpDef(rules.flip),
    aten.repeat.default: OpDef(rules.repeat),
    aten.mm.default: OpDef(rules.matmul, "sum"),
    aten.bmm.default: OpDef(rules.matmul, "sum"),
    aten.addmm_.default: OpDef(rules.add_product, stages=_LAST),
    MM_OVER: OpDef(rules.product_over, stages=_LAST),
    aten.sum.default: OpDef(rules.over_dims, "sum"),
    aten.sum.dim_IntList: OpDef(rules.over_dims, "sum"),
    aten.amax.default: OpDef(rules.over_dims, "max"),
    aten.amin.default: OpDef(rules.over_dims, "min"),
    aten.max.default: OpDef(rules.over_dims, "max"),
    aten.min.default: OpDef(rules.over_dims, "min"),
    aten.any.default: OpDef(rules.over_dims, "max"),
    aten.any.dim: OpDef(rules.over_dims, "max"),
    aten.any.dims: OpDef(rules.over_dims, "max"),
    aten.all.default: OpDef(rules.over_dims, "min"),
    aten.all.dim: OpDef(rules.over_dims, "min"),
    aten.prod.dim_int: OpDef(rules.over_dims),
    aten.max.dim: OpDef(rules.over_dims),
    aten.min.dim: OpDef(rules.over_dims),
    aten.argmax.default: OpDef(rules.over_dims),
    aten.argmin.default: OpDef(rules.over_dims),
    aten.logsumexp.default: OpDef(rules.over_dims),
    aten.linalg_vector_norm.default: OpDef(rules.over_dims),
    aten.mean.dim: OpDef(rules.over_dims),
    aten.var.correction: OpDef(rules.over_dims),
    aten._softmax.default: OpDef(rules.along_features),
    aten._log_softmax.default: OpDef(rules.along_features),
    aten._softmax_backward_data.default: OpDef(rules.along_features),
    aten._log_softmax_backward_data.default: OpDef(rules.along_features),
    aten.cumsum.default: OpDef(rules.along_features),
    aten.cumprod.default: OpDef(rules.along_features),
    aten.sort.default: OpDef(rules.along_features),
    aten.sort.stable: OpDef(rules.along_features),
    aten.topk.default: OpDef(rules.along_features),
    aten.split.Tensor: OpDef(rules.along_features),
    aten.split_with_sizes.default: OpDef(rules.along_features),
    aten.unsafe_split.Tensor: OpDef(rules.along_features),
    aten.unsafe_split_with_sizes.default: OpDef(rules.along_features),
    aten.unbind.int: OpDef(rules.along_features),
    aten.index_select.default: OpDef(rules.along_features),
    aten.glu.default: OpDef(rules.along_features),
    aten.glu_backward.default: OpDef(rules.same),
    aten.gather.default: OpDef(rules.feature_index),
    aten.scatter.value: OpDef(rules.feature_index),
    aten.scatter.src: OpDef(rules.feature_index),
    aten.scatter_add.default: OpDef(rules.feature_index),
    aten.select_backward.default: OpDef(rules.select_backward),
    aten.slice_backward.default: OpDef(rules.slice_backward),
    aten.select_scatter.default: OpDef(rules.scatter_along),
    aten.slice_scatter.default: OpDef(rules.scatter_along),
    aten.detach.default: OpDef(rules.same),
    aten.fill.Scalar: OpDef(rules.same),
    aten.fill.Tensor: OpDef(rules.same),
    aten.clone.default: OpDef(rules.same),
    aten._to_copy.default: OpDef(rules.same),
    aten.elu_backward.default: OpDef(rules.pointwise),
    aten.threshold_backward.default: OpDef(rules.pointwise),
    aten.leaky_relu_backward.default: OpDef(rules.pointwise),
    aten.gelu_backward.default: OpDef(rules.pointwise),
    aten.softplus_backward.default: OpDef(rules.pointwise),
    aten.log_sigmoid_forward.default: OpDef(rules.rows_and_nothing),
    aten.log_sigmoid_backward.default: OpDef(rules.same),
}
POINTWISE = OpDef(rules.pointwise)

_CREATE_ON_DEVICE = {
    aten.full.default, aten.eye.default, aten.scalar_tensor.default, aten.arange.start_step,
}  # fmt: skip


_UNKNOWN = ("is not known to work row by row", "use operators of docs/ops.md, or apply it to replicated values")


def definition(target: Any) -> OpDef | None:
    """The rule of an operator; None when sarc knows none (legal on replicated values only)."""
    found = TABLE.get(target)
    if found is None and isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return POINTWISE
    return found


def infer(node: fx.Node, spaces: Spaces) -> Types:
    """The type of a call from the types of its operands.

    Raises:
        UnsupportedModelError: the operator may not be applied to rows like these.
    """
    if node.target is operator.getitem:
        return node.args[0].meta["type"][node.args[1]]
    rule = definition(node.target)
    if node.target is SELECT_ROWS:
        return ValueType(dialect_rules.select_rows(Call(node, spaces, {}, ())), torch.int64)
    try:
        results = meta_results(node.target, node.args, placed(node, node.kwargs, torch.device("meta")), spaces)
    except NotImplementedError as error:
        raise Call(node, spaces, named_arguments(node), ()).refuse(*_UNKNOWN) from error
    except (RuntimeError, IndexError, ValueError) as error:
        call = Call(node, spaces, named_arguments(node), ())
        raise call.refuse(
            f"does not fit rows like these ({_in_spaces(str(error).splitlines()[0], spaces)})",
            "expected operands over the same rows: use sizes of the tensors themselves (x.size(0)) for shapes",
        ) from error
    flat = tuple(tuple(spaces.of_number(length) for length in r.shape) for r in results)
    call = Call(node, spaces, named_arguments(node), flat)
    unknown = next((r.dtype for r in results if r.dtype not in DTYPE_NAMES), None)
    if unknown is not None:
        raise call.refuse(f"makes {str(unknown)[6:]} numbers", "expected real numbers: keep them as two real features")
    carries_rows = any(isinstance(d, Rows) for dims in flat for d in dims) or any(t.spaces for t in call.operands)
    if not carries_rows:
        types = tuple(ValueType(dims, r.dtype) for dims, r in zip(flat, results, strict=True))
        return types if call.returns_several else types[0]
    if rule is None:
        raise call.refuse(*_UNKNOWN)
    found = rule.layout(call)
    several = found if isinstance(found, list) else [found]
    types = tuple(ValueType(dims, r.dtype) for dims, r in zip(several, results, strict=True))
    if contracted(node, types[0]) and not rule.contracts:
        raise call.refuse(*MIXES_ROWS)
    if any(len(set(t.spaces)) < len(t.spaces) for t in types):
        raise call.refuse(*PAIRS_ROWS)
    return types if isinstance(found, list) else types[0]


def contracted(node: fx.Node, result: Types) -> bool:
    """Whether the call contracts a space, so that each part's result is a share of the whole."""
    if node.target in _KEEP_ROWS:
        return False
    if node.target is operator.getitem or not isinstance(result, ValueType):
        return False
    if node.target is REDUCE:
        return not isinstance(result.dims[node.args[2]], Rows)
    before = {s for n in node.all_input_nodes if isinstance(n.meta["type"], ValueType) for s in n.meta["type"].spaces}
    return bool(before - set(result.spaces))


def _in_spaces(message: str, spaces: Spaces) -> str:
    """`message` with surrogate lengths replaced by the names of their spaces."""
    for name, length in sorted(spaces.surrogates.items(), key=lambda item: -item[1]):
        message = message.replace(str(length), name)
    return message


def placed(node: fx.Node, kwargs: Any, device: torch.device) -> Any:
    """The keywords of a call, with the device of a tensor that it makes of numbers alone."""
    return {**kwargs, "device": device} if "device" in kwargs or node.target in _CREATE_ON_DEVICE else kwargs


def size_of(dim: Dim, spaces: Spaces) -> Size | int:
    """The operand that stands for a dimension's length."""
    return Size(spaces.sizes[dim.space] * (dim.before * dim.after)) if isinstance(dim, Rows) else dim


def resolve_sizes(
    node: fx.Node, args: Any, kwargs: Any, local: Mapping[str, int], total: Mapping[str, int]
) -> tuple[Any, Any]:
    """Operands with numbers for sizes: local rows where the operator takes a shape, whole-graph rows elsewhere."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return args, kwargs
    names, shapes = shape_operands(node.target)

    def number(name: str, value: Any) -> Any:
        sizes = local if name in shapes else total
        return map_sizes(value, lambda size: size.value(sizes))

    return (
        tuple(number(name, value) for name, value in zip(names, args, strict=False)),
        {name: number(name, value) for name, value in kwargs.items()},
    )


@lru_cache(maxsize=1024)
def shape_operands(target: Any) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of an operator's operands, and of those that are lengths: schemas call factors `number`."""
    if not isinstance(target, torch._ops.OpOverload):
        return (), frozenset()
    specs = target._schema.arguments
    return tuple(s.name for s in specs), frozenset(s.name for s in specs if "int" in str(s.real_type))
