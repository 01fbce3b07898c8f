"""Capture: run the user's module once on fake tensors and keep the ATen operators it calls.

The module itself is never touched: a copy whose parameters are stand-ins runs under `make_fx` with functionalisation,
so in-place code records as pure operators, with the user's source line on each.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.overrides import TorchFunctionMode

from sarc.errors import SarcError, UnsupportedModelError
from sarc.frontends.source import user_line
from sarc.ir.decompositions import forward_decompositions
from sarc.ir.program import Input, Output
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


class _Question(Exception):
    """The model asks for a Python number: `int(batch.max())`, `bool((deg == 0).any())`."""

    def __init__(self, tensor: Tensor, line: str):
        super().__init__(line)
        self.tensor, self.line = tensor, line


class _CaptureMode(TorchFunctionMode):
    """Answers Python numbers taken from tensors, and cuts gradients where the model switched them off."""

    def __init__(self, answers: Sequence[object]):
        super().__init__()
        self.answers, self.asked = answers, 0
        self._number: dict[Any, Callable[[Any], Any]] = {
            Tensor.__int__: int,
            Tensor.__bool__: bool,
            Tensor.__float__: float,
            Tensor.__index__: int,
            Tensor.item: lambda value: value,
            Tensor.tolist: lambda value: value,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        convert = self._number.get(func)
        if convert is not None:
            if self.asked == len(self.answers):
                raise _Question(args[0], user_line(traceback.extract_stack()))
            self.asked += 1
            return convert(self.answers[self.asked - 1])
        result = func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled() and isinstance(result, Tensor) and result.is_floating_point():
            if not any(isinstance(a, Tensor) and a is result for a in args):
                return result.detach()
        return result


def capture(
    module: nn.Module,
    arguments: Sequence[Argument],
    call: Callable[[nn.Module, Sequence[Tensor], dict[str, Any]], Any],
    spaces: Spaces,
    answers: Sequence[object] = (),
) -> Captured:
    """Capture one forward of `module`.

    Args:
        module: the user's module, in the mode (train or eval) to capture; not altered.
        arguments: type of each tensor argument; row dimensions become symbols, all others stay integers.
        call: runs the module on stand-ins for the arguments; also receives a symbolic size for each space.
        spaces: declared spaces of the arguments.
        answers: Python values for the numbers that the model takes from tensors, in the order it asks.

    Raises:
        UnsupportedModelError: the model does what no partitioned program can do, with the user's line.
    """
    _check_initialised(module)
    shape_env = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    fake_mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
    rows = {s.name: _symbol(fake_mode, spaces.surrogates[s.name] % 9973 + 1009 + 13 * k) for k, s in enumerate(spaces)}
    symbols = {size.node.expr: sympy.Symbol(name) for name, size in rows.items()}
    module = copy.deepcopy(module)
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
    mode = _CaptureMode(answers)
    outcome: dict[str, Any] = {}

    def forward(*values: Tensor) -> list[Tensor]:
        left = iter(values)
        given = {name: next(left) for name in parameters}
        state = {name: next(left) for name in buffers}
        tensors = [next(left) for _ in arguments]
        sizes = {name: anchor.shape[0] for name, anchor in zip(rows, left, strict=True)}
        place_tensors(module, "_parameters", parameters, given)
        place_tensors(module, "_buffers", buffers, state)
        try:
            with mode, _refuse_autograd_functions():
                result = call(module, tensors, sizes)
        except _Question as question:
            outcome.update(question=question.line or "the model", structure=None, outputs=[Output("result", "0")])
            return [question.tensor]
        leaves, tree = pytree.tree_flatten(result)
        results: list[Tensor] = []
        places: list[Any] = []
        for leaf in leaves:
            if isinstance(leaf, torch.SymInt | torch.SymFloat):
                raise UnsupportedModelError(
                    "the model returns a size (a number of rows) as a Python number: expected tensors; return "
                    "torch.tensor-valued results only"
                )
            places.append(_Result(len(results)) if isinstance(leaf, Tensor) else leaf)
            if isinstance(leaf, Tensor):
                results.append(leaf)
        now = named_tensors(module, "buffers", keep=True)
        changed = [name for name in buffers if now.get(name) is not None]
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
        record_stack_traces=True,
    )
    try:
        with fake_mode, enable_python_dispatcher(), torch.enable_grad():
            graph_module = traced(*fakes)
    except SarcError:
        raise
    except GuardOnDataDependentSymNode as error:
        raise UnsupportedModelError(
            f"{user_line(traceback.extract_tb(error.__traceback__))}: control flow or a shape depends on data that is "
            f"not known when the model is compiled ({error.args[0].splitlines()[0]}); expected shapes and branches "
            f"that depend on the graph or on Python values only: use torch.where, or compute the number outside the "
            f"model"
        ) from error
    except Exception as error:
        line = user_line(traceback.extract_tb(error.__traceback__))
        what = next(iter(str(error).strip().splitlines()), "")
        raise UnsupportedModelError(
            f"{line}: the model could not be captured: {type(error).__name__}: {what}; "
            f"expected the forward to run on tensors of other lengths as it does on the given ones"
        ) from error
    _check_guards(shape_env, symbols)
    graph, constants, const_inputs = _lift_constants(graph_module)
    for node in graph.nodes:
        node.meta["loc"] = user_line(node.stack_trace) if node.op == "call_function" and node.stack_trace else ""
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


@dataclass(frozen=True)
class _Result:
    """A tensor leaf of the user's result: its number among the results."""

    index: int


def fill_results(structure, values: Sequence[Tensor]):
    """The user's result with `values` in the places of its tensors."""
    leaves, tree = pytree.tree_flatten(structure)
    return pytree.tree_unflatten([values[x.index] if isinstance(x, _Result) else x for x in leaves], tree)


def named_tensors(module: nn.Module, kind: str, keep: bool = False) -> dict[str, Tensor]:
    """Parameters or buffers by name; a tensor shared by several modules appears once, under its first name."""
    pairs = module.named_parameters() if kind == "parameters" else module.named_buffers(remove_duplicate=not keep)
    return dict(pairs)


def place_tensors(module: nn.Module, slot: str, originals: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Put `values` where the tensors of `originals` are held (under every name a shared tensor has)."""
    by_id = {id(t): values[name] for name, t in originals.items()}
    for child in module.modules():
        held = getattr(child, slot)
        for key, tensor in list(held.items()):
            if tensor is not None and id(tensor) in by_id:
                held[key] = by_id[id(tensor)]


def _symbol(fake_mode: FakeTensorMode, hint: int) -> torch.SymInt:
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    size: Any = fake_mode.from_tensor(torch.empty(hint, dtype=torch.uint8), symbolic_context=context).shape[0]
    return size


def _length(dim, rows):
    return rows[dim.space] * (dim.before * dim.after) if isinstance(dim, Rows) else dim


def _check_initialised(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UnsupportedModelError(
                f"parameter {name} is not initialised yet (a lazy module): run the plain model once on any small graph "
                f"before compiling it"
            )


@contextmanager
def _refuse_autograd_functions():
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls, *args, **kwargs):
        raise UnsupportedModelError(
            f"{user_line(traceback.extract_stack())}: {cls.__name__} is a torch.autograd.Function: its hand-written "
            f"derivative cannot be captured; expected ordinary operators: write the forward with torch operations and "
            f"let sarc differentiate it"
        )

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


def _check_guards(shape_env: ShapeEnv, symbols: dict[sympy.Symbol, sympy.Expr]) -> None:
    """An equality between a space's size and anything else means a surrogate size was baked into the program."""
    for guard in shape_env.guards:
        if not isinstance(guard.expr, sympy.Eq) or not guard.expr.free_symbols & set(symbols):
            continue
        shown = guard.expr.subs(symbols)
        stack = guard.sloc.user_stack or guard.sloc.framework_loc
        line = user_line(stack) if not isinstance(stack, str) else stack
        names = ", ".join(sorted(str(s) for s in shown.free_symbols))
        raise UnsupportedModelError(
            f"{line}: the size of {names} is turned into a Python number or compared with one ({shown.lhs} == "
            f"{shown.rhs}): the compiled program must hold for any part of the graph; keep it a size "
            f"(x.size(0), torch.sqrt of a tensor) instead of int(), float(), math.*, or a literal count"
        )


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
