"""Division of an edge program into kernels: one for each column that it folds through.

The first kernel visits the column with the widest folds. What the others need of narrow values (an attention score's
gradient) the first one writes down once an edge, in its own edge order, so that the others neither gather the wide rows
behind them nor evaluate them again.

Where the body reads folds of its own (a score's gradient, less what it is on average over a row) and folds to another
column as well, the wide folds that need none of these come first. They write down the narrow values that wide rows were
gathered for; the kernel of the body's own folds reads them, and writes down what the folds behind it need, in their
place where the types are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch.fx as fx

from sarc.codegen.body import NARROW, Body, width
from sarc.codegen.normalise import normalise
from sarc.codegen.views import NoKernel
from sarc.ir.edge_program import EdgeProgram, Operand, Result, fold_to_rows
from sarc.ir.layout_rules import static_length
from sarc.ir.space import ValueType


@dataclass(frozen=True)
class Scratch:
    """Edge rows that the stages of a program leave each other, as one stage finds them.

    Attributes:
        entries: its operands and (as -1 - k) its results that are such rows.
        scattered: whether they stand at `positions`, and not in the order of its visits.
        in_place: whether it writes some where it reads others.
    """

    entries: frozenset[int] = frozenset()
    scattered: bool = False
    in_place: bool = False

    def row_of(self, k: int) -> str:
        """C++ of the row that edge k of the traversal has in entry `k`, or among all edges where that is no scratch."""
        return "edges[k]" if k not in self.entries else "positions[k]" if self.scattered else "k"


@dataclass(frozen=True)
class Stage:
    """One kernel's program.

    Attributes:
        program: its body, operands and results.
        order: the column whose rows it visits; None for edges in their own order.
        operands: for each operand, an index into the divided program's operands, or -1 - number of a scratch tensor.
        results: for each result, an index into the divided program's results, or -1 - number of a scratch tensor.
        scratch: which of these are scratch tensors.
    """

    program: EdgeProgram
    order: int | None
    operands: tuple[int, ...]
    results: tuple[int, ...]
    scratch: Scratch = Scratch()


@dataclass(frozen=True)
class Division:
    """A program's stages.

    Attributes:
        stages: in launch order.
        scratch: types of the scratch tensors between them, whose rows lie in the order of the first stage's visits.
        over: scratch tensors that may take the place of others: they are written edge by edge where these were read.
    """

    stages: tuple[Stage, ...]
    scratch: tuple[ValueType, ...] = ()
    over: Mapping[int, int] = field(default_factory=dict)


def divide(program: EdgeProgram) -> Division:
    """The stages of a program.

    Raises:
        NoKernel: the body folds to rows of its own through several columns; or folds to another column need wide values
            again, or more numbers an edge before the own folds than behind them.
    """
    program = normalise(program)
    own = {n.args[1] for n in program.body.nodes if n.target is fold_to_rows}
    widths: dict[int, int] = {}
    for result in program.results:
        if result.kind == "reduce" and result.column is not None:
            widths[result.column] = widths.get(result.column, 0) + static_length(result.type.dims)
    columns = sorted(widths, key=lambda c: (-widths[c], c))
    if len(own) > 1:
        raise NoKernel("folds to rows of several columns inside a body")
    if own and set(columns) - own:
        return _around_own(program, min(own), columns)
    if own or len(columns) < 2:
        order = min(own) if own else columns[0] if columns else None
        everything = tuple(range(len(program.operands)))
        return Division((Stage(program, order, everything, tuple(range(len(program.results)))),))
    late = [k for k, r in enumerate(program.results) if r.kind == "reduce" and r.column in columns[1:]]
    cut = _cut([_returned(program)[k] for k in late], partial(_is_few, program))
    division = _Division(program)
    division.add(columns[0], [k for k in range(len(program.results)) if k not in late], writes=cut)
    for column in columns[1:]:
        division.add(column, [k for k in late if program.results[k].column == column], f"_by{column}")
    return division.finish({})


def _around_own(program: EdgeProgram, own: int, columns: list[int]) -> Division:
    """The wide folds that need no fold of the body's own, the own folds, and what is folded of them elsewhere."""
    returned, results = _returned(program), program.results
    behind = {n for n in program.body.nodes if n.target is fold_to_rows}
    for node in program.body.nodes:
        if any(n in behind for n in node.all_input_nodes):
            behind.add(node)
    elsewhere = [k for k, r in enumerate(results) if r.kind == "reduce" and r.column != own]
    first = next((c for c in columns if c != own), own)
    early = [k for k in elsewhere if results[k].column == first and returned[k] not in behind]
    late = [k for k in elsewhere if k not in early]
    mine = [k for k in range(len(results)) if k not in elsewhere]
    folded = [n.args[0] for n in program.body.nodes if n.target is fold_to_rows]
    is_few = partial(_is_few, program)

    def is_sink(node: fx.Node) -> bool:
        return is_few(node) and node not in behind and any(width(n) > NARROW for n in node.all_input_nodes)

    given = _cut([returned[k] for k in mine + late] + folded, is_sink)
    left = [n for n in _cut([returned[k] for k in late], is_few) if n not in given]
    division = _Division(program)
    division.add(first, early, writes=given)
    division.add(own, mine, "_own", writes=left)
    for column in dict.fromkeys(results[k].column for k in late):
        division.add(column, [k for k in late if results[k].column == column], f"_by{column}")
    if not early or not given or sum(map(width, given)) > sum(map(width, left)):
        raise NoKernel("folds of a row read by folds to another column, for whose visit more is written than after it")
    for stage in division.stages:
        if any(n.target is fold_to_rows and n.args[1] != stage.order for n in stage.program.body.nodes):
            raise NoKernel("folds of a row in the order of another column")
    visit = next((stage for stage in division.stages if stage.order == own), None)
    if visit is None:
        raise NoKernel("folds of a row that nothing visits")
    if any(static_length(o.type.dims) > NARROW for o in visit.program.operands if o.column not in (None, own)):
        raise NoKernel("wide values in the order of folds of a row read by folds to another column")
    written = _returned(visit.program)[len(mine) :]
    return division.finish(division.replaced(given, left) if _written_last(visit, written) else {})


def _written_last(stage: Stage, written: Sequence[fx.Node]) -> bool:
    """Whether a stage writes these values when it visits an edge for the last time."""
    body = body_of(stage)
    last = max((body.passes[n] for n in body.nodes if n not in body.in_row), default=0)
    return all(body.passes[n] == last for n in written)


def body_of(stage: Stage) -> Body:
    """What a stage's kernel computes."""
    return Body(stage.program, stage.order, tuple(range(len(stage.results))))


class _Division:
    """Stages as they are added.

    Attributes:
        numbers: scratch tensors by the values that are written there.
    """

    def __init__(self, program: EdgeProgram):
        self.program = program
        self.stages: list[Stage] = []
        self.numbers: dict[fx.Node, int] = {}

    def add(self, order: int | None, results: list[int], suffix: str = "", writes: Sequence[fx.Node] = ()) -> None:
        """A stage that makes some results, of the scratch tensors so far where these help, and writes down values."""
        program, returned = self.program, _returned(self.program)
        if not results and not writes:
            return
        stored = [Result("store", "", None, t.axis_of(program.space), t) for t in (n.meta["type"] for n in writes)]
        given = {n: -1 - i for n, i in self.numbers.items()}
        made, operands = _extract(
            program, suffix, given, [*(returned[k] for k in results), *writes],
            [*(program.results[k] for k in results), *stored],
        )  # fmt: skip
        assert not any(n in self.numbers for n in writes)
        for node in writes:
            self.numbers[node] = len(self.numbers)
        places = (*results, *(-1 - self.numbers[n] for n in writes))
        entries = {k for k, place in enumerate(operands) if place < 0} | {-1 - k for k, p in enumerate(places) if p < 0}
        scattered = bool(self.stages) and self.stages[0].order != order
        self.stages.append(Stage(made, order, operands, places, Scratch(frozenset(entries), scattered)))

    def replaced(self, given: Sequence[fx.Node], left: Sequence[fx.Node]) -> dict[int, int]:
        """By scratch tensor of what is `left`, that of what was `given`: of its type, and read by no stage behind."""
        read = {place for stage in self.stages[2:] for place in stage.operands}
        free = [n for n in given if -1 - self.numbers[n] not in read]
        found: dict[int, int] = {}
        for node in left:
            other = next((n for n in free if n.meta["type"] == node.meta["type"]), None)
            if other is not None:
                free.remove(other)
                found[self.numbers[node]] = self.numbers[other]
        return found

    def finish(self, over: Mapping[int, int]) -> Division:
        written = {-1 - i for i in over}
        stages = [replace(s, scratch=replace(s.scratch, in_place=bool(written & set(s.results)))) for s in self.stages]
        return Division(tuple(stages), tuple(n.meta["type"] for n in self.numbers), over)


def _returned(program: EdgeProgram) -> Sequence[fx.Node]:
    return next(n for n in reversed(program.body.nodes) if n.op == "output").args[0]


def _is_few(program: EdgeProgram, node: fx.Node) -> bool:
    """Whether a value is a few numbers an edge, as may be written down."""
    type_ = node.meta["type"]
    return width(node) <= NARROW and program.space in type_.spaces and type_.dtype.is_floating_point


def _cut(roots: list[fx.Node], fits: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """The values that fit at which the computation of `roots` is cut, in body order."""
    found: dict[fx.Node, None] = {}
    stack, seen = list(reversed(roots)), set()
    while stack:
        node = stack.pop()
        if node in seen or node.op == "placeholder":
            continue
        seen.add(node)
        if fits(node):
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
