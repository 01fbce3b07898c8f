"""Capture: run the user's module once on fake tensors and keep the ATen operators it calls.

The module itself is never touched: a copy whose parameters are stand-ins runs under `make_fx` with functionalisation,
so in-place code records as pure operators, with the user's source line on each.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.fx as fx
import torch.fx.traceback as fx_traceback
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    StatelessSymbolicContext,
)

from sarc.errors import SarcError, UnsupportedModelError
from sarc.frontends.copy_module import check_caches, copy_module, named_tensors, place_tensors
from sarc.frontends.row_sizes import RowSizes
from sarc.frontends.source import definition_line, raised_by_model, user_line
from sarc.frontends.watch_forward import Question, WatchForward, is_written, refuse_autograd_functions
from sarc.ir.decompositions import forward_decompositions
from sarc.ir.program import Input, Output
from sarc.ir.source_lines import marked_line
from sarc.ir.space import Rows, Spaces, ValueType


@dataclass(frozen=True)
class Argument:
    """One tensor of the user's call: its path ("args[0]", "kwargs['w']") and type."""

    path: str
    type: ValueType


@dataclass(frozen=True)
class Captured:
    """A captured forward, before any pass.

    Attributes:
        graph: ATen operators with fake values in `meta["val"]` and the user's line in `meta["loc"]`.
        inputs, outputs: one for each placeholder and each returned value.
        spaces: the declared spaces.
        symbols: size symbol of the trace -> size in the symbols of `spaces`.
        constants: tensors found in the module that are neither parameters nor buffers.
        structure: pytree of the user's result, with an index into the results at each tensor leaf.
        question: set when the trace stopped at a Python number taken from a tensor; the one result is that tensor.
    """

    graph: fx.Graph
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    spaces: Spaces
    symbols: dict[sympy.Symbol, sympy.Expr]
    constants: dict[str, Tensor]
    structure: object
    question: str = ""


def capture(
    module: nn.Module,
    arguments: Sequence[Argument],
    call: Callable[[nn.Module, Sequence[Tensor], dict[str, Any]], Any],
    spaces: Spaces,
    answers: Sequence[object] = (),
    counts: Mapping[str, int] | None = None,
) -> Captured:
    """Capture one forward of `module`.

    Args:
        module: the user's module, in the mode (train or eval) to capture; not altered.
        arguments: type of each tensor argument; row dimensions become symbols, all others stay integers.
        call: runs the module on stand-ins for the arguments; also receives a symbolic size for each space.
        spaces: declared spaces of the arguments.
        answers: Python values for the numbers that the model takes from tensors, in the order it asks.
        counts: rows of the whole graph, by space: branches on row counts go the way they go on this graph.

    Raises:
        UnsupportedModelError: the model does what no partitioned program can do, with the user's line.
        Exception: what the model's own code raises on purpose, as it is.
    """
    if counts:
        check_caches(module, counts)
    original, module = module, copy_module(module)
    shape_env = RowSizes(counts or {})
    fake_mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
    rows = {s.name: _symbol(fake_mode, spaces.surrogates[s.name] % 9973 + 1009 + 13 * k) for k, s in enumerate(spaces)}
    for name, size in rows.items():
        shape_env.declare(size, name)
    symbols: dict[Any, sympy.Expr] = dict(shape_env.names)
    parameters, buffers = named_tensors(module, "parameters"), named_tensors(module, "buffers")
    inputs = [
        *(Input("param", name) for name in parameters),
        *(Input("buffer", name) for name in buffers),
        *(Input("arg", a.path) for a in arguments),
        *(Input("rows", name) for name in rows),
    ]
    with fake_mode:
        fakes = [torch.empty(tuple(t.shape), dtype=t.dtype) for t in (*parameters.values(), *buffers.values())]
        fakes += [torch.empty([_length(d, rows) for d in a.type.dims], dtype=a.type.dtype) for a in arguments]
        fakes += [torch.empty((size,), dtype=torch.uint8) for size in rows.values()]
    mode = WatchForward(answers)
    outcome: dict[str, Any] = {}

    def forward(*values: Tensor) -> list[Tensor]:
        left = iter(values)
        given = {name: next(left) for name in parameters}
        state = {name: next(left) for name in buffers}
        tensors = [next(left) for _ in arguments]
        sizes = {name: anchor.shape[0] for name, anchor in zip(rows, left, strict=True)}
        mode.left_alone = {f"parameter {name}": t for name, t in given.items()}
        mode.left_alone.update({f"argument {a.path}": t for a, t in zip(arguments, tensors, strict=True)})
        place_tensors(module, "_parameters", parameters, given)
        place_tensors(module, "_buffers", buffers, state)
        try:
            with mode, refuse_autograd_functions():
                result = call(module, tensors, sizes)
        except Question as question:
            outcome.update(question=question.line or "the model", structure=None, outputs=[Output("result", "0")])
            return [question.tensor]
        leaves, tree = pytree.tree_flatten(result)
        results: list[Tensor] = []
        places: list[Any] = []
        for leaf in leaves:
            if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
                raise UnsupportedModelError(
                    f"{definition_line(original)}: forward returns a number of rows, "
                    f"{shape_env.shown(leaf.node.expr)}: expected tensors; return x.new_ones(x.size(0)).sum(), or take "
                    f"it from the inputs outside the model"
                )
            if not isinstance(leaf, Tensor | _RETURNED):
                raise UnsupportedModelError(
                    f"{definition_line(original)}: forward returns an object of type {type(leaf).__name__}: expected "
                    f"tensors, numbers and strings in tuples, lists and dicts; return what it holds in one of these"
                )
            places.append(_Result(len(results)) if isinstance(leaf, Tensor) else leaf)
            if isinstance(leaf, Tensor):
                results.append(leaf)
        now = named_tensors(module, "buffers", keep=True)
        changed = [n for n in buffers if now.get(n) is not None and (now[n] is not state[n] or is_written(state[n]))]
        outcome["structure"] = pytree.tree_unflatten(places, tree)
        outcome["outputs"] = [
            *(Output("result", str(k)) for k in range(len(results))),
            *(Output("buffer", name) for name in changed),
        ]
        return [*results, *(now[name] for name in changed)]

    traced = make_fx(
        dispatch_functionalize(forward, FunctionalTensorMode(_allow_token_discovery=False)),
        decomposition_table=forward_decompositions(),
        _allow_non_fake_inputs=True,
    )
    try:
        with (
            fake_mode, enable_python_dispatcher(), torch.enable_grad(), fx_traceback.preserve_node_meta(), _quiet(),
            _without_mkldnn(),
        ):  # fmt: skip
            graph_module = traced(*fakes)
    except SarcError:
        raise
    except Exception as error:
        if raised_by_model(error.__traceback__):
            where = user_line(traceback.extract_tb(error.__traceback__))
            error.add_note(f"raised by the model at {where}, while sarc captured it")
            raise
        raise _refusal(error, original, shape_env, arguments) from error
    graph, constants, const_inputs = _lift_constants(graph_module)
    _locate(graph)
    return Captured(
        graph,
        (*inputs, *const_inputs),
        tuple(outcome["outputs"]),
        spaces.copy(),
        symbols,
        constants,
        outcome["structure"],
        str(outcome.get("question", "")),
    )


_RETURNED = bool | int | float | complex | str | bytes | None | torch.dtype | torch.device


@dataclass(frozen=True)
class _Result:
    """A tensor leaf of the user's result: its number among the results."""

    index: int


def fill_results(structure, values: Sequence[Tensor]):
    """The user's result with `values` in the places of its tensors."""
    leaves, tree = pytree.tree_flatten(structure)
    return pytree.tree_unflatten([values[x.index] if isinstance(x, _Result) else x for x in leaves], tree)


def _symbol(fake_mode: FakeTensorMode, hint: int) -> torch.SymInt:
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    size: Any = fake_mode.from_tensor(torch.empty(hint, dtype=torch.uint8), symbolic_context=context).shape[0]
    return size


def _length(dim, rows):
    return rows[dim.space] * (dim.before * dim.after) if isinstance(dim, Rows) else dim


def _refusal(
    error: Exception, module: nn.Module, sizes: RowSizes, arguments: Sequence[Argument]
) -> UnsupportedModelError:
    """What stopped the trace, in terms of the user's code and of rows rather than of the trace's symbols."""
    line = user_line(traceback.extract_tb(error.__traceback__)) or definition_line(module)
    what = next(iter(str(error).strip().splitlines()), "")
    for symbol, name in sizes.names.items():
        what = re.sub(rf"\b{symbol}\b", str(name), what)
    if isinstance(error, GuardOnDataDependentSymNode):
        condition = re.sub(r"\bu\d+\b", "(a count known only from data)", str(getattr(error, "cond", "")))
        return UnsupportedModelError(
            f"{line}: a branch or a shape depends on data{f' ({condition})' if condition else ''}: expected branches "
            f"and shapes that depend on the graph or on Python values only; use torch.where, or compute the number "
            f"outside the model and pass it as an argument"
        )
    for name, count in sizes.counts.items():
        if re.search(rf"\b{count}\b", what):
            return UnsupportedModelError(
                f"{line}: {what.rstrip('.')}, where {count} is this graph's number of rows {name}: expected a size "
                f"that holds for any part of the graph; take it from a tensor (x.size(0)), not from a literal, an "
                f"attribute or int(edge_index.max()) + 1"
            )
    given = ", ".join(f"{a.path}: {a.type}" for a in arguments)
    return UnsupportedModelError(
        f"{line}: the model could not be captured ({type(error).__name__}: {what.rstrip('.')}), called with {given}: "
        f"expected forward to run on tensors of these types, without data, for any numbers of rows "
        f"{' and '.join(map(str, sizes.names.values()))}; pass arguments that fit each other, take row counts from the "
        f"tensors (x.size(0)), and keep numpy, literal counts and printing of values out of forward"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No log records of operators that fail on stand-ins: the error itself says more."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """An LSTM in float32 comes apart as in float64: on the CPU it is one operator of oneDNN, which has no rule."""
    was = torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.flags also sets TF32, which warns (torch 2.13)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was)


def _locate(graph: fx.Graph) -> None:
    """The user's line on every operator; one without a line takes that of the operator that uses it."""
    for node in reversed(graph.nodes):
        line = marked_line(node) if node.op == "call_function" else ""
        if not line and node.op == "call_function":
            line = next((user.meta["loc"] for user in node.users if user.meta.get("loc")), "")
        node.meta["loc"] = line


def _lift_constants(module: fx.GraphModule) -> tuple[fx.Graph, dict[str, Tensor], list[Input]]:
    """Tensor attributes of the traced module become placeholders."""
    graph, constants, inputs = module.graph, {}, []
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    made: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        name = str(node.target)
        if name not in made:
            value = getattr(module, name)
            with graph.inserting_after(last):
                last = made[name] = graph.placeholder(f"constant_{len(made)}")
            last.meta["val"] = node.meta.get("val", value)
            constants[name] = value.detach()
            inputs.append(Input("constant", name))
        node.replace_all_uses_with(made[name])
        graph.erase_node(node)
    return graph, constants, inputs
