"""differentiate: trace the raised step program and its backward pass as one joint program.

PyTorch's own autograd differentiates: the step program runs on fake tensors with one symbolic size a space, and what
autograd records comes out in ATen and the graph dialect. A backward node takes the source line of the forward node it
belongs to.

Before:
    program step
    space N = nodes
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %h: f32[N, 2] = aten.mm(%x, %w)   # model.py:8
    return result 0 = %h
After:
    program joint
    space N = nodes
    %x: f32[N, 4] = input arg x
    %w: f32[4, 2] = input param w
    %tangent_0: f32[N, 2] = input tangent 0
    %mm_default: f32[N, 2] = aten.mm(%x, %w)   # model.py:8
    %t_default: f32[4, N] = aten.t(%x)   # model.py:8
    %mm_default_1: f32[4, 2] = aten.mm(%t_default, %tangent_0)   # model.py:8
    return result 0 = %mm_default
    return grad param w = %mm_default_1
Needs a step program in the graph dialect; gives a joint program in the same dialect whose outputs gain gradients.
It does nothing for an input that no result depends on: such a gradient is left out.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
import torch.fx as fx
import torch.fx.traceback as fx_traceback
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from sarc.errors import UnsupportedModelError
from sarc.ir.call import location
from sarc.ir.decompositions import joint_decompositions
from sarc.ir.program import Input, Output, Program, map_sizes, remove_dead, select_inputs
from sarc.ir.source_lines import mark_line, marked_line
from sarc.ir.space import Rows, ValueType
from sarc.passes.base import infer_types, merge_common
from sarc.passes.forward.canonicalise import Canonicalise

aten = torch.ops.aten


def differentiate(step: Program, wrt: frozenset[Input]) -> Program:
    """The joint program: the step's outputs and the gradient of each input in `wrt`.

    Inputs gain one tangent for each floating-point result; gradients that are structurally zero are left out.
    """
    fake_mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    atomic = [s.name for s in step.spaces if s.kind != "concat"]
    sizes = {name: _symbol(fake_mode, 1009 + 1217 * k) for k, name in enumerate(atomic)}
    symbols = {size.node.expr: sympy.Symbol(name) for name, size in sizes.items()}
    results = [
        (node.meta["type"], out)
        for node, out in zip(step.returned, step.outputs, strict=True)
        if out.kind == "result" and node.meta["type"].dtype.is_floating_point
    ]
    types = [n.meta["type"] for n in step.placeholders] + [t for t, _ in results]
    present: list[Input] = []

    def joint(*values: Tensor) -> list[Tensor]:
        primals, tangents = list(values[: len(step.inputs)]), values[len(step.inputs) : len(types)]
        for k, entry in enumerate(step.inputs):
            if entry in wrt:
                primals[k] = primals[k].detach().requires_grad_()
        with torch.enable_grad():
            returned = _run(step, primals, sizes)
        outs = [v for v, o in zip(returned, step.outputs, strict=True) if o in [r for _, r in results]]
        pairs = [(o, t) for o, t in zip(outs, tangents, strict=True) if o.requires_grad]
        asked = [(e, v) for e, v in zip(step.inputs, primals, strict=True) if e in wrt]
        grads: Sequence[Tensor | None] = [None] * len(asked)
        if pairs:
            grads = torch.autograd.grad(
                [o for o, _ in pairs], [v for _, v in asked], [t for _, t in pairs], allow_unused=True
            )
        present.extend(entry for (entry, _), grad in zip(asked, grads, strict=True) if grad is not None)
        return [*returned, *(g for g in grads if g is not None)]

    with fake_mode:
        # The trace needs a tensor that shows each size; these anchors are dropped with the other unused inputs.
        anchors = [torch.empty((size,), dtype=torch.uint8) for size in sizes.values()]
        fakes = [*(_fake(t, sizes, step) for t in types), *anchors]
    traced = make_fx(
        dispatch_functionalize(joint, FunctionalTensorMode(_allow_token_discovery=False)),
        decomposition_table=joint_decompositions(),
        _allow_non_fake_inputs=True,
    )
    with fake_mode, enable_python_dispatcher(), fx_traceback.preserve_node_meta():
        graph = traced(*fakes).graph
    for node in graph.nodes:
        node.meta["loc"] = marked_line(node)
    names = [n.name for n in step.placeholders] + [f"tangent_{out.name}" for _, out in results]
    canonical = Canonicalise(step.spaces.copy(), symbols).run(graph, names)
    for node in list(canonical.nodes):
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            canonical.erase_node(node)
    placeholders = [n for n in canonical.nodes if n.op == "placeholder"]
    for node in placeholders[len(types) :]:
        canonical.erase_node(node)
    for node, type_ in zip(placeholders, types, strict=False):
        node.meta = {"type": type_, "loc": ""}
    for node, old in zip(placeholders, step.placeholders, strict=False):
        node.meta = dict(old.meta)
    infer_types(canonical, step.spaces)
    merge_common(canonical)
    remove_dead(canonical)
    inputs = (*step.inputs, *(Input("tangent", out.name) for _, out in results))
    outputs = (*step.outputs, *(Output("grad", str(entry)) for entry in present))
    made = replace(step, graph=canonical, inputs=inputs, outputs=outputs, stage="joint")
    return select_inputs(made, [n for n in made.placeholders if n.users])


def _symbol(fake_mode: FakeTensorMode, hint: int) -> torch.SymInt:
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    size: Any = fake_mode.from_tensor(torch.empty(hint, dtype=torch.uint8), symbolic_context=context).shape[0]
    return size


def _fake(type_: ValueType, sizes: dict[str, torch.SymInt], step: Program) -> torch.Tensor:
    lengths = [
        evaluate(step.spaces.sizes[d.space] * (d.before * d.after), sizes) if isinstance(d, Rows) else d
        for d in type_.dims
    ]
    return torch.empty(lengths, dtype=type_.dtype)


def evaluate(expr: sympy.Expr, sizes: dict[str, torch.SymInt]) -> Any:
    """A sympy size as an expression over symbolic integers."""
    if expr.is_Integer:
        return int(expr)
    if expr.is_Number:
        return float(expr)
    if expr.is_Symbol:
        return sizes[expr.name]
    parts = [evaluate(arg, sizes) for arg in expr.args]
    if expr.is_Add:
        return sum(parts[1:], parts[0])
    if expr.is_Mul:
        numerator, denominator = expr.as_numer_denom()
        if denominator != 1:
            return evaluate(numerator, sizes) / evaluate(denominator, sizes)
        out = parts[0]
        for part in parts[1:]:
            out = out * part
        return out
    if expr.is_Pow:
        base, power = parts
        return 1 / evaluate(expr.args[0] ** -expr.args[1], sizes) if power < 0 else base**power
    name = type(expr).__name__
    if name in ("FloorDiv", "CleanDiv"):
        return parts[0] // parts[1]
    if name in ("IntTrueDiv", "FloatTrueDiv"):
        return parts[0] / parts[1]
    if name == "ToFloat":
        return torch.sym_float(parts[0])
    if name in ("Mod", "PythonMod"):
        return parts[0] % parts[1]
    if name in ("FloatPow", "PowByNatural"):
        return parts[0] ** parts[1]
    if name == "OpaqueUnaryFn_sqrt":
        return torch.sym_sqrt(parts[0])
    if name in ("Max", "Min"):
        return functools.reduce(torch.sym_max if name == "Max" else torch.sym_min, parts)
    raise NotImplementedError(str(expr))


def _run(step: Program, values: list[Tensor], sizes: dict[str, torch.SymInt]) -> list[Tensor]:
    """The step program on traced tensors; every operator recorded meanwhile carries its node's source line."""
    env: dict[fx.Node, Any] = dict(zip(step.placeholders, values, strict=True))
    for node in step.graph.nodes:
        if node.op != "call_function":
            continue
        _mark(node)
        if node.target is operator.getitem:
            env[node] = env[node.args[0]][node.args[1]]
            continue
        operands = fx.map_arg((node.args, dict(node.kwargs)), env.__getitem__)
        try:
            args, kwargs = map_sizes(operands, lambda size: evaluate(size.expr, sizes))
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{location(node)}a number of rows enters the formula {error}: expected sums, products, quotients, "
                f"powers, square roots, remainders, max and min of sizes; take other functions of the tensor "
                f"x.new_ones(x.size(0)).sum()"
            ) from error
        env[node] = result = node.target(*args, **kwargs)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(lambda *_, node=node: _mark(node))
    _mark(None)
    return [env[n] for n in step.returned]


def _mark(node: fx.Node | None) -> None:
    """What is traced from here on belongs to `node`."""
    mark_line(node.meta.get("loc", "") if node is not None else "")
