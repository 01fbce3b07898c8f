"""Scopes of generated CUDA code: its blocks, and the values that have a name in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Scope:
    """One block of code.

    Attributes:
        outer: the block around it.
        role: "edge" where a block is entered once an edge, "strip" where it holds a lane's neighbouring features.
        lines: its statements so far.
        names: what they have computed, by value and place.
    """

    outer: Scope | None = None
    role: str = ""
    lines: list[str] = field(default_factory=list)
    names: dict[object, str] = field(default_factory=dict)

    def find(self, key: object) -> str | None:
        """The name of a value computed here or in a block around."""
        scope: Scope | None = self
        while scope is not None:
            if key in scope.names:
                return scope.names[key]
            scope = scope.outer
        return None

    def around(self, role: str) -> Scope:
        """The innermost block of a role."""
        scope: Scope | None = self
        while scope is not None and scope.role != role:
            scope = scope.outer
        assert scope is not None, f"no {role} around"
        return scope


class Code:
    """Code being written: statements go to the innermost open block."""

    def __init__(self) -> None:
        self.scope = Scope()

    def add(self, *lines: str) -> None:
        self.scope.lines += lines

    @contextmanager
    def block(self, head: str = "", role: str = "") -> Iterator[None]:
        """Statements inside braces after `head`; a block that stays empty is left out."""
        outer, self.scope = self.scope, Scope(self.scope, role)
        inner = self.scope
        try:
            yield
        finally:
            self.scope = outer
            if inner.lines:
                self.add(f"{head} {{" if head else "{", *inner.lines, "}")

    @contextmanager
    def apart(self) -> Iterator[list[str]]:
        """Statements that go to a list of their own, as if the code began there."""
        outer, self.scope = self.scope, Scope()
        try:
            yield self.scope.lines
        finally:
            self.scope = outer

    @contextmanager
    def behind_pointers(self) -> Iterator[list[str]]:
        """Statements of the open block, gathered behind those that are added to the block while they are written."""
        block = self.scope
        self.scope = Scope(block)
        lines = self.scope.lines
        try:
            yield lines
        finally:
            self.scope = block
            lines[:0] = block.lines
            block.lines.clear()
