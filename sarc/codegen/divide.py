"""Division of an edge program into kernels: one for each column that it folds through.

The first kernel visits the column with the widest folds. What the others need of narrow values (an attention score's
gradient) the first one writes down once an edge, in its own edge order, so that the others neither gather the wide rows
behind them nor evaluate them again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.fx as fx

from sarc.codegen.body import NARROW, width
from sarc.codegen.normalise import normalise
from sarc.codegen.views import NoKernel
from sarc.ir.edge_program import EdgeProgram, Operand, Result, fold_to_rows
from sarc.ir.space import Rows, ValueType


@dataclass(frozen=True)
class Stage:
    """One kernel's program.

    Attributes:
        program: its body, operands and results.
        order: the column whose rows it visits; None for edges in their own order.
        operands: for each operand, an index into the divided program's operands, or -1 - number of a scratch tensor.
        results: for each result, an index into the divided program's results, or -1 - number of a scratch tensor.
    """

    program: EdgeProgram
    order: int | None
    operands: tuple[int, ...]
    results: tuple[int, ...]


def divide(program: EdgeProgram) -> tuple[list[Stage], list[ValueType]]:
    """The stages of a program, in launch order, and the types of the scratch tensors between them."""
    program = normalise(program)
    everything = tuple(range(len(program.operands)))
    own = {n.args[1] for n in program.body.nodes if n.target is fold_to_rows}
    widths: dict[int, int] = {}
    for result in program.results:
        if result.kind == "reduce" and result.column is not None:
            widths[result.column] = widths.get(result.column, 0) + row_width(result.type)
    columns = sorted(widths, key=lambda c: (-widths[c], c))
    if own:
        (order,) = own
        if set(columns) - own:
            raise NoKernel("folds of a row read by folds to another column")
        return [Stage(program, order, everything, tuple(range(len(program.results))))], []
    if len(columns) < 2:
        order = columns[0] if columns else None
        return [Stage(program, order, everything, tuple(range(len(program.results))))], []
    return _by_column(program, columns)


def _by_column(program: EdgeProgram, columns: list[int]) -> tuple[list[Stage], list[ValueType]]:
    returned = next(n for n in reversed(program.body.nodes) if n.op == "output").args[0]
    late = [k for k, r in enumerate(program.results) if r.kind == "reduce" and r.column in columns[1:]]
    cut = _cut([returned[k] for k in late])
    scratch = [n.meta["type"] for n in cut]
    early = [k for k in range(len(program.results)) if k not in late]
    stored = [Result("store", "", None, t.axis_of(program.space), t) for t in scratch]
    first = _extract(
        program, "", {}, [returned[k] for k in early] + cut, [program.results[k] for k in early] + stored
    )
    numbers = {n: -1 - i for i, n in enumerate(cut)}
    stages = [Stage(first[0], columns[0], first[1], tuple(early) + tuple(numbers.values()))]
    for column in columns[1:]:
        mine = [k for k in late if program.results[k].column == column]
        values, results = [returned[k] for k in mine], [program.results[k] for k in mine]
        made = _extract(program, f"_by{column}", numbers, values, results)
        stages.append(Stage(made[0], column, made[1], tuple(mine)))
    return stages, scratch


def _cut(roots: list[fx.Node]) -> list[fx.Node]:
    """The narrow edge values at which the computation of `roots` is cut, in body order."""
    found: dict[fx.Node, None] = {}
    stack, seen = list(reversed(roots)), set()
    while stack:
        node = stack.pop()
        if node in seen or node.op == "placeholder":
            continue
        seen.add(node)
        type_ = node.meta["type"]
        if width(node) <= NARROW and any(isinstance(d, Rows) for d in type_.dims) and type_.dtype.is_floating_point:
            found[node] = None
        else:
            stack.extend(node.all_input_nodes)
    return [n for n in (roots[0].graph.nodes if roots else []) if n in found]


def _extract(
    program: EdgeProgram, suffix: str, given: dict[fx.Node, int], wanted: list[fx.Node], results: list[Result]
) -> tuple[EdgeProgram, tuple[int, ...]]:
    """The program of some values; those in `given` become operands that are edge rows of scratch tensors."""
    needed: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend([] if node in given else node.all_input_nodes)
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    operands: list[Operand] = []
    places: list[int] = []
    inner = [n for n in program.body.nodes if n.op == "placeholder"]
    for node in program.body.nodes:
        if node not in needed or not (node.op == "placeholder" or node in given):
            continue
        env[node] = body.placeholder(node.name)
        env[node].meta = dict(node.meta)
        if node in given:
            type_ = node.meta["type"]
            operands.append(Operand(0, None, type_.axis_of(program.space), type_))
            places.append(given[node])
        else:
            operands.append(program.operands[inner.index(node)])
            places.append(inner.index(node))
    for node in program.body.nodes:
        if node in needed and node not in env and node.op == "call_function":
            env[node] = body.node_copy(node, env.__getitem__)
            env[node].meta = dict(node.meta)
    body.output([env[n] for n in wanted])
    name = program.name + suffix
    made = EdgeProgram(name, program.space, tuple(operands), tuple(results), body, program.loc, program.remote)
    return made, tuple(places)


def row_width(type_: ValueType) -> int:
    """Entries of one row."""
    return math.prod(d for d in type_.dims if not isinstance(d, Rows))
