"""The mailbox of a user-defined DGL reduce function, recorded: [N, D, *F] in the user's eyes, [E, *F] in ours.

DGL groups nodes by in-degree D and calls the reduce function once a group. D differs from node to node, so no dense
tensor has this shape for the whole graph; a `Mailbox` behaves like one for what can be said of all nodes at once:

1. elementwise math among mailboxes, with node tensors [N, 1, *F] and with anything that broadcasts over *F;
2. ops along the feature axes (axis 2 and up): sums, softmax, linear layers, views, indexing, cat;
3. folds over axis 1: sum, mean, max, min, amax, amin give node tensors [N, *F]; softmax gives a Mailbox.

Everything else is refused with the user's line.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from sarc.frontends.dgl_mailbox_size import Arithmetic, MailboxSize, MailboxSpace
from sarc.frontends.dgl_messages import edge_softmax, fold, gather
from sarc.frontends.dgl_refusal import unsupported

UNARY = (
    "abs absolute neg negative exp expm1 log log1p log2 log10 sqrt rsqrt square sign sgn sin cos tan tanh sigmoid "
    "logsigmoid relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid hardswish "
    "threshold erf floor ceil round clamp clip clamp_min clamp_max reciprocal isnan isinf isfinite nan_to_num dropout "
    "zeros_like ones_like logical_not detach clone contiguous"
)
BINARY = (
    "add radd sub subtract rsub mul multiply rmul div divide true_divide truediv rtruediv rdiv pow rpow remainder fmod "
    "maximum minimum where lerp addcmul addcdiv masked_fill eq ne lt le gt ge logical_and logical_or"
)
ELEMENTWISE = frozenset(f"{UNARY} {BINARY}".split())
CONVERSIONS = frozenset("to type type_as float double half bfloat16 long int bool".split())
CREATIONS = frozenset("new_zeros new_ones new_full new_empty new_tensor".split())
# Ops that run along an axis, and the position of that argument.
ALONG_AXIS = dict.fromkeys("sum mean max min amax amin softmax log_softmax prod var std logsumexp any all".split(), 1)
ALONG_AXIS |= {"argmax": 1, "argmin": 1, "cumsum": 1, "norm": 2, "normalize": 2}
FOLDED = {"sum": "sum", "mean": "mean", "max": "max", "amax": "max", "min": "min", "amin": "min"}
NEAREST = "over axis 1 use sum, mean, max, min or softmax; otherwise elementwise math or axes from 2 on"
INSTEAD = {
    "lstm": "an LSTM over a mailbox is an ordered fold, and the messages have no order; use a mean, sum or max",
    "gru": "a GRU over a mailbox is an ordered fold, and the messages have no order; use a mean, sum or max",
    "var": "write (m * m).mean(1) - m.mean(1) ** 2",
    "std": "write ((m * m).mean(1) - m.mean(1) ** 2).relu().sqrt()",
    "log_softmax": "write torch.softmax(m, dim=1).log()",
    "matmul": "m @ W with a weight matrix W works; write other products out: (m * w).sum(-1)",
    "bmm": "write the product out: (m * w).sum(-1)",
    "einsum": "write the product out: (m * w).sum(-1)",
}


class Extremum(NamedTuple):
    """What torch.max(m, dim) gives."""

    values: Any
    indices: Any


class UnusablePositions:
    """Stands for positions inside a mailbox, which depend on the order of edges; any use is refused."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__torch_function__(None, ())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise unsupported("the position of an extremum in a mailbox", "use its value: m.max(1).values")


class Mailbox(Arithmetic):
    """Messages [N, D, *F] of one field, held as `per_edge` [E, *F]; see the module's docstring for what it can do."""

    def __init__(self, per_edge: Tensor, space: MailboxSpace) -> None:
        self.per_edge = per_edge
        self.space = space

    @property
    def shape(self) -> tuple[Any, ...]:
        return (self.space.num_nodes, self.space.size(), *self.per_edge.shape[1:])

    @property
    def ndim(self) -> int:
        return self.per_edge.dim() + 1

    @property
    def dtype(self) -> torch.dtype:
        return self.per_edge.dtype

    @property
    def device(self) -> torch.device:
        return self.per_edge.device

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def is_floating_point(self) -> bool:
        return self.per_edge.is_floating_point()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if not callable(getattr(Tensor, name, None)):
            raise unsupported(f"attribute {name!r} of a mailbox", NEAREST)
        return partial(_call_method, self, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func.__name__.strip("_"), func, args, kwargs or {})

    def _calculate(self, op: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        return _call(op.__name__, op, (left, right), {})

    def __matmul__(self, other: Any) -> Any:
        return self._calculate(operator.matmul, self, other)

    def __getitem__(self, key: Any) -> Mailbox:
        """Case 1: `m[..., i]`. Case 2: `m[:, :, i]`."""
        keys = key if isinstance(key, tuple) else (key,)
        if keys[0] is Ellipsis and sum(k is not None for k in keys[1:]) <= self.ndim - 2:  # Case 1
            return Mailbox(self.per_edge[keys], self.space)
        if all(isinstance(k, slice) and k == slice(None) for k in keys[:2]):  # Case 2
            return Mailbox(self.per_edge[(slice(None), *keys[2:])], self.space)
        raise unsupported(f"picking nodes or messages, m[{key}]", f"index features, m[:, :, i]; {NEAREST}")

    def _refuse(self) -> NoReturn:
        raise unsupported("len(), iteration or the truth value of a mailbox", NEAREST)

    __len__ = __iter__ = __bool__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def _call_method(mailbox: Mailbox, name: str, *args: Any, **kwargs: Any) -> Any:
    """Case 1: `m.relu_()` becomes `relu`, and the mailbox holds the result. Case 2: any other tensor method."""
    if name.endswith("_"):  # Case 1
        mailbox.per_edge = _call(name[:-1], getattr(Tensor, name[:-1], None), (mailbox, *args), kwargs).per_edge
        return mailbox
    return _call(name, getattr(Tensor, name), (mailbox, *args), kwargs)  # Case 2


def _call(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What torch function or method `name` means for the mailboxes among its arguments."""
    if name in ("max", "min") and len(args) == 2 and not isinstance(args[1], int):
        name = name + "imum"  # torch.max(a, b) of two tensors
    if name in ELEMENTWISE:
        return _elementwise(func, args, kwargs)
    first = args[0]
    if name in ("cat", "concat", "stack"):
        return _join(name, func, *args, **kwargs)
    if name == "expand_as" and isinstance(args[1], Mailbox):
        return Mailbox(_per_edge(first, args[1]).expand_as(args[1].per_edge), args[1].space)
    if not isinstance(first, Mailbox):
        raise _refused(name)
    if name in CREATIONS:
        return func(first.per_edge, *args[1:], **kwargs)
    if name in ALONG_AXIS:
        return _along_axis(name, func, first, list(args[1:]), kwargs)
    return Mailbox(_features(name, func, first, *args[1:], **kwargs), first.space)


def _elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mailbox:
    mailboxes = [value for value in (*args, *kwargs.values()) if isinstance(value, Mailbox)]
    like = max(mailboxes, key=Mailbox.dim)
    aligned = {key: _per_edge(value, like) for key, value in kwargs.items()}
    inplace = aligned.pop("inplace", False)
    result = Mailbox(func(*(_per_edge(value, like) for value in args), **aligned), like.space)
    if inplace:
        mailboxes[0].per_edge = result.per_edge
    return result


def _per_edge(value: Any, like: Mailbox) -> Any:
    """`value` so that it combines with `like.per_edge` [E, *F] as it would combine with [N, D, *F].

    Case 1: a mailbox. Case 2: a mailbox size. Case 3: no tensor, or one that broadcasts over *F only. Case 4: one value
    for every message, [1, *F]. Case 5: [1, 1, *F]. Case 6: a node tensor [N, 1, *F].
    """
    if isinstance(value, Mailbox):  # Case 1
        if value.ndim != like.ndim:
            raise unsupported(f"math between mailboxes of {value.ndim} and {like.ndim} axes", "unsqueeze feature axes")
        return value.per_edge
    if isinstance(value, MailboxSize):  # Case 2
        return value.edges_like(like.per_edge)
    if not isinstance(value, Tensor) or value.dim() <= like.ndim - 2:  # Case 3
        return value
    if value.dim() == like.ndim - 1 and _is_one(value.shape[0]):  # Case 4
        return value
    if value.dim() == like.ndim and _is_one(value.shape[1]):
        rows = value.squeeze(1)
        return rows if _is_one(value.shape[0]) else gather(rows, like.space.dst)  # Cases 5 and 6
    raise unsupported(
        f"a tensor of shape {tuple(value.shape)} meeting a mailbox of {like.ndim} axes",
        "give a node tensor a mailbox axis: nodes.data['h'].unsqueeze(1)",
    )


def spread_to_messages(func: Any, rows: Tensor, sizes: Sequence[Any]) -> Mailbox:
    """`rows.repeat(1, D, ...)` or `rows.expand(-1, D, ...)` of a node tensor [N, 1, *F], D a mailbox size."""
    kept = 1 if func.__name__ == "repeat" else -1
    if rows.dim() != len(sizes) or not isinstance(sizes[1], MailboxSize) or not _is_one(rows.shape[1]):
        raise unsupported(f"{func.__name__}() to the size of a mailbox here", "use x.unsqueeze(1).expand_as(m)")
    space = sizes[1].space
    return Mailbox(func(gather(rows.squeeze(1), space.dst), kept, *sizes[2:]), space)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1  # a symbolic size is never asked


def _join(name: str, func: Any, tensors: Any, dim: Any = 0, **kwargs: Any) -> Mailbox:
    if not all(isinstance(tensor, Mailbox) for tensor in tensors):
        raise unsupported(f"{name}() of mailboxes with other tensors", "expand them first: x.unsqueeze(1).expand_as(m)")
    first = tensors[0]
    axis = _feature_axis(name, dim, first.ndim + (name == "stack"))
    return Mailbox(func([tensor.per_edge for tensor in tensors], dim=axis, **kwargs), first.space)


def _along_axis(name: str, func: Any, mailbox: Mailbox, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Sum, softmax and the like. Case 1: over axis 1, the messages. Case 2: over feature axes."""
    key = "axis" if "axis" in kwargs else "dim"
    position = ALONG_AXIS[name] - 1
    dim = kwargs[key] if key in kwargs else args[position] if len(args) > position else None
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    if [_axis(d, mailbox.ndim) for d in dims] == [1]:  # Case 1
        keepdim = kwargs.get("keepdim", args[position + 1] if len(args) > position + 1 else False)
        return _fold_messages(name, mailbox, keepdim, kwargs.get("dtype"))
    axes = [_feature_axis(name, d, mailbox.ndim) for d in dims]  # Case 2
    if not axes:
        raise unsupported(f"{name}() over all nodes and messages", NEAREST)
    axis = axes[0] if isinstance(dim, int) else axes
    if key in kwargs:
        kwargs = {**kwargs, key: axis}
    else:
        args[position] = axis
    result = func(mailbox.per_edge, *args, **kwargs)
    if isinstance(result, tuple):
        return Extremum(*(Mailbox(part, mailbox.space) for part in result))
    return Mailbox(result, mailbox.space)


def _fold_messages(name: str, mailbox: Mailbox, keepdim: bool, dtype: torch.dtype | None) -> Any:
    space = mailbox.space
    values = mailbox.per_edge if dtype is None else mailbox.per_edge.to(dtype)
    if name == "softmax":
        return Mailbox(edge_softmax(values, space.dst, space.num_nodes), space)
    if name not in FOLDED:
        raise _refused(name)
    folded = fold(FOLDED[name], values, space.dst, space.num_nodes)
    folded = folded.unsqueeze(1) if keepdim else folded
    return Extremum(folded, UnusablePositions()) if name in ("max", "min") else folded


def _features(name: str, func: Any, mailbox: Mailbox, *args: Any, **kwargs: Any) -> Tensor:
    """Ops that leave nodes and messages where they are and act on feature axes; gives the new per-edge tensor."""
    values, ndim = mailbox.per_edge, mailbox.ndim
    if name in CONVERSIONS:
        return func(values, *(arg.per_edge if isinstance(arg, Mailbox) else arg for arg in args), **kwargs)
    if name == "linear" and ndim >= 3:
        return func(values, *args, **kwargs)
    if name == "matmul" and ndim >= 3 and isinstance(args[0], Tensor) and args[0].dim() <= 2:
        return func(values, args[0])
    if name == "layer_norm" and len(args[0]) <= ndim - 2:
        return func(values, *args, **kwargs)
    if name == "unsqueeze":
        return values.unsqueeze(_feature_axis(name, args[0] if args else kwargs["dim"], ndim + 1))
    if name == "squeeze" and args:
        return values.squeeze(_feature_axis(name, args[0], ndim))
    if name == "transpose":
        return values.transpose(_feature_axis(name, args[0], ndim), _feature_axis(name, args[1], ndim))
    if name in ("view", "reshape"):
        sizes = args[0] if isinstance(args[0], (tuple, list)) else args
        if len(sizes) >= 2 and isinstance(sizes[1], MailboxSize):
            features = list(sizes[2:])
            if -1 in features:  # found here: torch cannot infer it when there are no edges
                features[features.index(-1)] = math.prod(values.shape[1:]) // -math.prod(features)
            return values.reshape((values.shape[0], *features))
        raise unsupported(f"{name}() of a mailbox in this form", "keep both: m.view(m.shape[0], m.shape[1], ...)")
    raise _refused(name)


def _feature_axis(name: str, dim: int, ndim: int) -> int:
    """The per-edge axis of feature axis `dim` of a mailbox with `ndim` axes."""
    if _axis(dim, ndim) < 2:
        raise unsupported(f"{name}() along axis {dim} of a mailbox", INSTEAD.get(name, NEAREST))
    return _axis(dim, ndim) - 1


def _axis(dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise IndexError(f"expected an axis of a mailbox with {ndim} axes, got {dim}")
    return dim % ndim


def _refused(name: str) -> Exception:
    return unsupported(f"{name}() of a mailbox, in this form,", INSTEAD.get(name, NEAREST))
