"""Verifier: what must hold of a program after every pass."""

from __future__ import annotations

import linecache
import operator

import torch
import torch.fx as fx

from sarc.errors import SarcError, VerifyError
from sarc.ir.collective import all_reduce, fetch, give_back, tuple_of, with_space
from sarc.ir.dialect import MM_OVER
from sarc.ir.edge_program import Result, edge_call, fold_to_rows, infer_own, take_rows
from sarc.ir.lifetimes import Lifetimes
from sarc.ir.ops import definition, infer
from sarc.ir.print import format_node
from sarc.ir.program import Program
from sarc.ir.space import ValueType

aten = torch.ops.aten


def verify(program: Program) -> Program:
    """`program`, after checking it.

    Checked: the graph is well formed; the signature matches placeholders and outputs; every value has a type; every
    type is what the op table infers from its operands; no value holds one space on two axes.

    Raises:
        VerifyError: with the program's text around the fault.
    """
    program.graph.lint()
    if len(program.placeholders) != len(program.inputs):
        raise VerifyError(f"{program.stage}: {len(program.placeholders)} placeholders, {len(program.inputs)} inputs")
    if len(program.returned) != len(program.outputs):
        raise VerifyError(f"{program.stage}: {len(program.returned)} results, {len(program.outputs)} outputs")
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        if node.op not in ("placeholder", "call_function"):
            raise _fault(program, node, f"unexpected {node.op}")
        if "type" not in node.meta:
            raise _fault(program, node, "has no type")
        if node.op == "call_function":
            _check_call(program, node)
        for type_ in node.meta["type"] if isinstance(node.meta["type"], tuple) else (node.meta["type"],):
            if len(set(type_.spaces)) != len(type_.spaces):
                raise _fault(program, node, f"has one space on two axes: {type_}")
    return program


def _check_call(program: Program, node: fx.Node) -> None:
    if node.target is edge_call:
        expected: object = tuple(r.type for r in node.args[0].results)
        _check_edge_program(program, node)
    elif node.target is all_reduce:
        expected = node.args[0].meta["type"]
    elif node.target in (fetch, give_back):
        expected = _exchanged(program, node)
    elif node.target is tuple_of:
        expected = tuple(v.meta["type"] for v in node.args[0])
    elif node.target is operator.getitem:
        expected = node.args[0].meta["type"][node.args[1]]
    else:
        mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if mutable and not _adds_to_own(program, node) and not _is_last_reader(program, node):
            raise _fault(program, node, "alters its operand in place")
        rule = definition(node.target)
        if rule is not None and rule.stages and program.stage not in rule.stages:
            raise _fault(program, node, f"may stand in {' and '.join(rule.stages)} programs only")
        try:
            expected = infer(node, program.spaces.copy())
        except SarcError as error:
            raise _fault(program, node, f"is illegal: {error}") from error
    if expected != node.meta["type"]:
        raise _fault(program, node, f"has type {_show(node.meta['type'])}, the op table infers {_show(expected)}")


def _exchanged(program: Program, node: fx.Node) -> tuple[ValueType, ...]:
    """Types of what a fetch or a give_back makes: rows of the reach of its column for rows of the parent, or back."""
    reach = next((s for s in program.spaces if s.kind == "reach" and s.mask == node.args[1].name), None)
    if reach is None:
        raise _fault(program, node, f"exchanges rows through %{node.args[1].name}, which no reach space names")
    ends = (reach.parents[0], reach.name) if node.target is fetch else (reach.name, reach.parents[0])
    return tuple(with_space(v.meta["type"], *ends) for v in node.args[0])


def _adds_to_own(program: Program, node: fx.Node) -> bool:
    """Whether a call adds a product to one that this program has made for it alone."""
    if node.target is not aten.addmm_.default:
        return False
    table = node.args[0]
    alone = list(table.users) == [node] and table not in program.returned
    return alone and table.target in (aten.mm.default, aten.addmm_.default, MM_OVER)


def _is_last_reader(program: Program, node: fx.Node) -> bool:
    """Whether a product is written over rows that this program has made and that nothing reads behind it."""
    if node.target is not MM_OVER:
        return False
    nodes = [n for n in program.graph.nodes if n.op != "output"]
    holds = Lifetimes(nodes, set(), program.returned, {s.name: 1 for s in program.spaces}).holds
    place = {n: k for k, n in enumerate(nodes)}
    same = [n for n in nodes[: place[node]] if set(holds[n]) & set(holds[node])]
    if any(n.op == "placeholder" or n in program.returned for n in same):
        return False
    return all(place[u] <= place[node] for n in same for u in n.users)


def _check_edge_program(program: Program, node: fx.Node) -> None:
    edges, values, columns = node.args
    edges.body.lint()
    inner = [n for n in edges.body.nodes if n.op == "placeholder"]
    if len(inner) != len(edges.operands):
        raise _fault(program, node, f"{edges} has {len(inner)} placeholders for {len(edges.operands)} operands")
    for operand in edges.operands:
        if operand.value >= len(values) or (operand.column is not None and operand.column >= len(columns)):
            raise _fault(program, node, f"{edges} reads an operand it is not given")
    for result in edges.results:
        if result.over is not None:
            _check_over(program, node, result)
    for call in edges.body.nodes:
        if call.op == "call_function" and call.target is not operator.getitem:
            own = call.target in (take_rows, fold_to_rows)
            expected = infer_own(edges, call) if own else infer(call, program.spaces.copy())
            if expected != call.meta["type"]:
                got = _show(call.meta["type"])
                raise _fault(program, node, f"{edges}: %{call.name} has type {got}, expected {_show(expected)}")


def _check_over(program: Program, node: fx.Node, result: Result) -> None:
    """A result may take the place of a value of its type that this program has made and reads no more."""
    value = node.args[1][result.over] if result.over is not None and result.over < len(node.args[1]) else None
    if value is None or result.kind not in ("reduce", "store") or value.meta["type"] != result.type:
        raise _fault(program, node, f"writes a result over ${result.over}, which has another type")
    behind = list(program.graph.nodes)
    if value.op != "call_function" or any(behind.index(u) > behind.index(node) for u in value.users):
        raise _fault(program, node, f"writes a result over %{value.name}, which is read afterwards, here or elsewhere")


def _show(types) -> str:
    return str(types) if isinstance(types, ValueType) else ", ".join(map(str, types))


def _fault(program: Program, node: fx.Node, what: str) -> VerifyError:
    """An error with ten lines of the program around `node`."""
    nodes = list(program.graph.nodes)
    at = nodes.index(node)
    lines = [
        ("-> " if n is node else "   ") + format_node(n) for n in nodes[max(0, at - 5) : at + 5] if n.op != "output"
    ]
    return VerifyError(f"stage {program.stage}: %{node.name} {what}\n" + "\n".join([*lines, *_source(node)]))


def _source(node: fx.Node) -> list[str]:
    """The user's line that a value comes from, with its code where the file is at hand."""
    file, _, line = node.meta.get("loc", "").rpartition(":")
    if not file:
        return []
    code = linecache.getline(file, int(line)).strip()
    return [f"from {file}:{line}{f': {code}' if code else ''}"]
