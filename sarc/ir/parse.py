"""Parser: the program that a text of `format_program` describes.

`format_program(parse_program(text)) == text` for every printed program. Lines that start with # say nothing, and so
does what follows " | " after a source line (`sarc dump` puts bytes there). Tensors that the model holds (constants) are
not part of the text.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx as fx

from sarc.errors import ParseError
from sarc.ir.collective import all_reduce, fetch, give_back, tuple_of
from sarc.ir.edge_program import EdgeProgram, Operand, Result, edge_call, fold_to_rows, take_rows
from sarc.ir.operand_text import read_operands, read_types
from sarc.ir.program import Input, Output, Program
from sarc.ir.space import Space, Spaces

_FUNCTIONS = {
    f.__name__: f
    for f in (operator.getitem, edge_call, all_reduce, fetch, give_back, tuple_of, take_rows, fold_to_rows)
}
_SPACE = re.compile(r"space (\w+) = (\w+)(?:\((.*)\))?( on edges)?")
_EDGES = re.compile(r"edges @(\w+) over (\w+)(?: remote #(\d+))?")
_VALUE = re.compile(r"%(\w+): (\([^)]*\)|\w+\[[^\]]*\]) = (.*)")
_CALL = re.compile(r"([\w.]+)\((.*)\)")
_SOURCE = re.compile(r"(?:gather \$(\d+) by #(\d+)|rows \$(\d+)) axis (\d+)|whole \$(\d+)")
_INPUT = re.compile(r"(aligned )?input (\w+) (.*)")
_FATE = re.compile(
    r"(?:(reduce) (\w+) by #(\d+) axis (\d+)(?: over \$(\d+))?|(contract) (\w+)|(store) axis (\d+)(?: over \$(\d+))?|"
    r"(rows) by #(\d+) axis (\d+)) "
    r"%(\w+): (.*)"
)
_RETURN = re.compile(r"return (\w+) (.*) = %(\w+)")


def parse_program(text: str) -> Program:
    """The program of a text.

    Raises:
        ParseError: with the number of the line that cannot be read, what was expected there and what came.
    """
    parser = _Parser()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            parser.read(line)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            what = error.args[0] if error.args else error
            raise ParseError(f"line {number}: {what}: got {line.strip()!r}") from error
    return parser.program()


@dataclass
class _Block:
    """An edge program whose results have not all been read."""

    made: EdgeProgram
    values: dict[str, fx.Node]
    returned: list[fx.Node]


class _Parser:
    """Reads the lines of one program in order."""

    def __init__(self) -> None:
        self.stage = ""
        self.spaces = Spaces()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.edges: dict[str, EdgeProgram] = {}
        self.block: _Block | None = None
        self.inputs: list[Input] = []
        self.outputs: list[tuple[Output, fx.Node]] = []

    def read(self, line: str) -> None:
        text, _, loc = line.rpartition("   # ") if "   # " in line else (line, "", "")
        loc = loc.partition("|")[0].rstrip()
        if line.startswith("  "):
            self._in_block(text.strip(), loc)
            return
        self._close_block()
        word = text.split(" ", 1)[0]
        if not self.stage and word != "program":
            raise ValueError("expected 'program STAGE' first")
        if word == "program":
            self.stage = text.removeprefix("program ")
        elif word == "space":
            self._space(text)
        elif word == "edges":
            self._open_block(text, loc)
        elif word == "return":
            kind, name, value = _match(_RETURN, text, "return KIND NAME = %VALUE")
            self.outputs.append((Output(kind, name), self._value(value, self.values)))
        else:
            self._define(text, loc)

    def program(self) -> Program:
        self._close_block()
        if not self.stage:
            raise ParseError("expected a program, got an empty text")
        self.graph.output([node for _, node in self.outputs])
        return Program(self.graph, self.spaces, tuple(self.inputs), tuple(o for o, _ in self.outputs), self.stage)

    # --- lines

    def _space(self, text: str) -> None:
        name, kind, inside, on_edges = _match(_SPACE, text, "space NAME = KIND or KIND(PARENTS)")
        given = [part.strip() for part in inside.split(",")] if inside else []
        parents = tuple(p for p in given if not p.startswith("%"))
        unknown = [p for p in parents if p not in self.spaces]
        if unknown:
            raise ValueError(f"unknown space {unknown[0]}")
        mask = next((p[1:] for p in given if p.startswith("%")), "")
        self.spaces.add(Space(name, kind, parents, mask, on_edges=bool(on_edges)))

    def _define(self, text: str, loc: str) -> None:
        name, types, what = _match(_VALUE, text, "%NAME: TYPE = ...")
        entry = _INPUT.fullmatch(what)
        if entry:
            node = self._named(self.graph, self.graph.placeholder(name), name, types, loc, self.values)
            node.meta["aligned"] = bool(entry[1])
            self.inputs.append(Input(entry[2], entry[3]))
            return
        self._call(self.graph, self.values, name, types, what, loc)

    def _call(self, graph: fx.Graph, values: dict[str, fx.Node], name: str, types: str, what: str, loc: str) -> None:
        target, operands = _match(_CALL, what, "OPERATOR(OPERANDS)")
        args, kwargs = read_operands(operands, values, self.edges)
        node = graph.create_node("call_function", _operator(target), args, kwargs, name=name)
        self._named(graph, node, name, types, loc, values)

    def _named(
        self, graph: fx.Graph, node: fx.Node, name: str, types: str, loc: str, values: dict[str, fx.Node]
    ) -> fx.Node:
        if name in values or node.name != name:
            raise ValueError(f"%{name} is defined twice or is no legal name")
        loc, found, why = f"; {loc}".partition("; again in backward: ")
        node.meta = {"type": read_types(types, self.spaces), "loc": loc.removeprefix("; ")}
        if found:
            node.meta["again"] = f"{found.removeprefix('; ')}{why}"
        values[name] = node
        return node

    @staticmethod
    def _value(name: str, values: dict[str, fx.Node]) -> fx.Node:
        if name not in values:
            raise ValueError(f"%{name} is not defined")
        return values[name]

    # --- edge programs

    def _open_block(self, text: str, loc: str) -> None:
        name, space, remote = _match(_EDGES, text, "edges @NAME over SPACE [remote #COLUMN]")
        if space not in self.spaces:
            raise ValueError(f"unknown space {space}")
        made = EdgeProgram(name, space, (), (), fx.Graph(), loc, None if remote is None else int(remote))
        self.block = _Block(made, {}, [])

    def _in_block(self, text: str, loc: str) -> None:
        if self.block is None:
            raise ValueError("expected no indentation outside an edge program")
        block = self.block
        fate = _FATE.fullmatch(text)
        if fate:
            reduce, fold, column, axis, over, contract, contract_fold = fate.groups()[:7]
            store, store_axis, store_over, rows, rows_column, rows_axis, name, types = fate.groups()[7:]
            column, axis, over = column or rows_column, axis or store_axis or rows_axis, over or store_over
            result = Result(
                reduce or contract or store or rows,
                fold or contract_fold or "",
                None if column is None else int(column),
                None if axis is None else int(axis),
                _single(read_types(types, self.spaces)),
                None if over is None else int(over),
            )
            block.returned.append(self._value(name, block.values))
            block.made = replace(block.made, results=(*block.made.results, result))
            return
        name, types, what = _match(_VALUE, text, "%NAME: TYPE = ..., or a reduce, contract or store")
        source = _SOURCE.fullmatch(what)
        if source is None:
            self._call(block.made.body, block.values, name, types, what, loc)
            return
        gathered, column, rows, axis, whole = source.groups()
        node = self._named(block.made.body, block.made.body.placeholder(name), name, types, loc, block.values)
        operand = Operand(
            int(gathered or rows or whole),
            None if column is None else int(column),
            None if axis is None else int(axis),
            _single(node.meta["type"]),
        )
        block.made = replace(block.made, operands=(*block.made.operands, operand))

    def _close_block(self) -> None:
        if self.block is not None:
            self.block.made.body.output(self.block.returned)
            self.edges[self.block.made.name] = self.block.made
            self.block = None


def _match(pattern: re.Pattern[str], text: str, expected: str) -> tuple[Any, ...]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ValueError(f"expected {expected}")
    return found.groups()


def _single(types: Any) -> Any:
    if isinstance(types, tuple):
        raise ValueError("expected one tensor's type")
    return types


def _operator(name: str) -> Any:
    """The operator printed as `name`."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    space, *rest = name.split(".")
    found: Any = getattr(torch.ops, space) if space in ("aten", "sarc", "prims") else None
    try:
        for part in rest if len(rest) == 2 else [*rest, "default"]:
            found = getattr(found, part)
    except AttributeError:
        found = None
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"unknown operator {name}")
    return found
