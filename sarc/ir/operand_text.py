"""Text of types and operands, read: `f32[N, 2*E*8]`, `%x, [|N + E|, 4], dtype=f32`."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
import torch.fx as fx
from torch.utils._sympy import functions as torch_sizes

from sarc.ir.edge_program import EdgeProgram
from sarc.ir.space import DTYPE_NAMES, Dim, Rows, Size, Spaces, ValueType

_DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_TYPE = re.compile(r"(\w+)\[([^\]]*)\]")
_DIM = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)(?:\*(\d+))?")
_TOKEN = re.compile(
    r"""\s*(?:(?P<value>%\w+)|(?P<size>\|[^|]*\|)|(?P<edges>@\w+)|(?P<key>[A-Za-z_]\w*)(?==)
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<special>-?(?:inf|nan)\b)
    |(?P<number>-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)|(?P<word>[A-Za-z_]\w*)|(?P<mark>[\[\],=]))""",
    re.VERBOSE,
)
_WORDS = {"None": None, "True": True, "False": False}


def read_types(text: str, spaces: Spaces) -> ValueType | tuple[ValueType, ...]:
    """The type of a value; a tuple for several results, which are printed in parentheses."""
    found = tuple(ValueType(_dims(inside, spaces), _dtype(name)) for name, inside in _TYPE.findall(text))
    if text.startswith("("):
        return found
    if len(found) != 1:
        raise ValueError(f"expected a type such as f32[N, 8], got {text}")
    return found[0]


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"unknown dtype {name}: expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _dims(text: str, spaces: Spaces) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    for part in filter(None, text.split(", ")):
        found = _DIM.fullmatch(part)
        if part.isdigit():
            dims.append(int(part))
        elif found and found[2] in spaces:
            dims.append(Rows(found[2], int(found[1] or 1), int(found[3] or 1)))
        else:
            raise ValueError(f"unknown space in dimension {part}")
    return tuple(dims)


def read_operands(
    text: str, values: Mapping[str, fx.Node], edges: Mapping[str, EdgeProgram]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The operands of a call: positional ones, and those given by name."""
    tokens = list(_tokens(text))
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    at = 0
    while at < len(tokens):
        kind, token = tokens[at]
        if kind == "key":
            kwargs[token], at = _operand(tokens, at + 2, values, edges)
        else:
            found, at = _operand(tokens, at, values, edges)
            args.append(found)
        at = _skip_comma(tokens, at)
    return tuple(args), kwargs


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"expected an operand at {text[at:at + 20]!r}")
        assert match.lastgroup is not None
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def _skip_comma(tokens: list[tuple[str, str]], at: int) -> int:
    if at < len(tokens) and tokens[at] == ("mark", ","):
        return at + 1
    if at < len(tokens) and tokens[at] != ("mark", "]"):
        raise ValueError(f"expected a comma before {tokens[at][1]}")
    return at


def _operand(
    tokens: list[tuple[str, str]], at: int, values: Mapping[str, fx.Node], edges: Mapping[str, EdgeProgram]
) -> tuple[Any, int]:
    """The operand that starts at token `at`, and where the next token is."""
    if at >= len(tokens):
        raise ValueError("expected an operand, got the end of the line")
    kind, token = tokens[at]
    if (kind, token) == ("mark", "["):
        items = []
        at += 1
        while at < len(tokens) and tokens[at] != ("mark", "]"):
            item, at = _operand(tokens, at, values, edges)
            items.append(item)
            at = _skip_comma(tokens, at)
        if at == len(tokens):
            raise ValueError("expected ] to end a list")
        return items, at + 1
    if kind == "value":
        if token[1:] not in values:
            raise ValueError(f"{token} is not defined")
        return values[token[1:]], at + 1
    if kind == "edges":
        if token[1:] not in edges:
            raise ValueError(f"{token} is not defined")
        return edges[token[1:]], at + 1
    if kind == "size":
        return Size(read_size(token[1:-1])), at + 1
    if kind == "special":
        return float(token), at + 1
    if kind in ("number", "text"):
        return ast.literal_eval(token), at + 1
    if kind == "word" and token in _WORDS:
        return _WORDS[token], at + 1
    if kind == "word":
        return _dtype(token), at + 1
    raise ValueError(f"expected an operand, got {token}")


def read_size(text: str) -> sympy.Expr:
    """A size formula as it is printed; names are symbols, calls are sympy's or torch's size functions."""
    return _size(ast.parse(text, mode="eval").body)


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
    ast.FloorDiv: torch_sizes.FloorDiv,
    ast.Mod: torch_sizes.Mod,
}


def _size(tree: ast.expr) -> Any:
    if isinstance(tree, ast.Constant):
        return sympy.sympify(tree.value)
    if isinstance(tree, ast.Name):
        return sympy.Symbol(tree.id)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_size(tree.operand)
    if isinstance(tree, ast.BinOp) and type(tree.op) in _BINARY:
        return _BINARY[type(tree.op)](_size(tree.left), _size(tree.right))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
        function = getattr(torch_sizes, tree.func.id, None) or getattr(sympy, tree.func.id, None)
        if function is not None:
            return function(*map(_size, tree.args))
    raise ValueError(f"expected a size formula, got {ast.unparse(tree)}")
