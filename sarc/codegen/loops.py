"""Loops of generated code: over features, and over the edges of a block; and their layout as text."""

from __future__ import annotations

from dataclasses import dataclass

from sarc.codegen.vectors import VectorForm


class Declaration(str):
    """The statement that declares an edge's array."""


@dataclass(frozen=True)
class Loop:
    """Statements in loops over features.

    Attributes:
        outer, inner: (axis, length) of the loops; the last inner one is a vector loop.
        body: statements of the innermost loop.
        before, after: statements around the inner loops, inside the outer ones.
        sum: variable that the vector loop sums into, or "".
        vector: the statements in vectors, where they have such a form.
    """

    outer: tuple[tuple[int, int], ...]
    inner: tuple[tuple[int, int], ...]
    body: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    sum: str = ""
    vector: VectorForm | None = None

    def lines(self) -> list[str]:
        """The C++."""
        lines = [f"for (int i{axis} = 0; i{axis} < {d}; ++i{axis}) {{" for axis, d in self.outer]
        lines += ["{"] if self.before and not self.outer else []
        lines += self.before
        for depth, (axis, d) in enumerate(self.inner):
            if depth == len(self.inner) - 1:
                lines.append(f"#pragma omp simd reduction(+ : {self.sum})" if self.sum else "#pragma omp simd")
            lines.append(f"for (int i{axis} = 0; i{axis} < {d}; ++i{axis}) {{")
        lines += [*self.body, *["}"] * len(self.inner), *self.after, *["}"] * len(self.outer)]
        return lines + (["}"] if self.before and not self.outer else [])

    def join(self, other: Loop) -> Loop | None:
        """Both in one loop, where the loops are the same; None otherwise."""
        if self.outer + self.inner != other.outer + other.inner or len(self.inner) > 1 or len(other.inner) > 1:
            return None
        if not self.inner or not other.inner:
            return None
        sums = ", ".join(filter(None, [self.sum, other.sum]))
        vector = self.vector.join(other.vector) if self.vector and other.vector else None
        before, after = self.before + other.before, self.after + other.after
        return Loop(self.outer, self.inner, self.body + other.body, before, after, sums, vector)


def spell(code: list[str | Loop]) -> list[str]:
    """Statements and loops in order as C++; neighbouring loops of one shape become one."""
    lines: list[str] = []
    pending: Loop | None = None
    for item in code:
        if isinstance(item, str):
            lines += (pending.lines() if pending else []) + [item]
            pending = None
            continue
        joined = pending.join(item) if pending else None
        if pending and joined is None:
            lines += pending.lines()
        pending = joined or item
    return lines + (pending.lines() if pending else [])


def loop_over_edges(lines: list[str]) -> list[str]:
    return ["for (int q = 0; q < count; ++q) {", "const int64_t k = k0 + q; (void)k;", *lines, "}"] if lines else []


def indent(lines: list[str], depth: int = 2) -> str:
    """Lines indented by their braces."""
    out = []
    for line in lines:
        text = line.strip()
        if text.startswith("}"):
            depth -= 1
        if text.startswith("#"):
            out.append(text)
        else:
            extra = (len(line) - len(line.lstrip())) // 2
            out.append("  " * (depth + extra) + text)
        depth += text.count("{") - text.count("}") + (1 if text.startswith("}") else 0)
    return "\n".join(out)
