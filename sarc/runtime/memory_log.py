"""MemoryLog: the bytes that one run of a schedule holds, after every instruction.

Tensors that share a storage count once. What is *loaded* counts to the end of the run, however early its last use,
since others hold it as well: parameters and buffers (the model), arguments (the caller), bound values (the binding).
Gradients of results are no part of that, but last as long: PyTorch's engine holds them while the backward pass runs.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sarc.ir import schedule as ins
from sarc.ir.collective import fetch, give_back
from sarc.ir.edge_program import edge_call
from sarc.ir.program import Program

CATEGORIES = {
    "parameters": "parameters and buffers",
    "arguments": "arguments of the call",
    "gradients": "gradients of results and of inputs",
    "bound": "degrees, norms and columns: made once a graph; what is made once of data",
    "saved": "kept between forward and backward",
    "edge rows": "tensors of one row an edge",
    "folds": "results of edge programs while they are folded",
    "halo": "rows of other parts that are held whole, and folds for them",
    "chunks": "messages: rows sent, rows received, partial folds",
    "values": "everything else over nodes, and replicated values",
    "workspace": "inside one instruction: scratch of kernels, edges that plain torch visits at a time",
}
_OF_INPUT = {
    "param": "parameters", "buffer": "parameters", "arg": "arguments", "tangent": "gradients", "rng": "arguments",
    "bound": "bound", "constant": "bound", "rows": "bound", "data": "bound", "saved": "saved",
}  # fmt: skip
LOADED = ("parameters", "arguments", "bound")
_START = -1

Storages = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Live:
    """One value at one moment: its name, category and the bytes that no earlier value shares with it."""

    name: str
    category: str
    nbytes: int


class MemoryLog:
    """Filled by a profile while a schedule runs.

    Attributes:
        live: bytes alive in each instruction: its workspace, and what is there after it.
        loaded: bytes of loaded values.
    """

    def __init__(self, program: Program):
        self.live: list[int] = []
        self.loaded = 0
        self._category = categories(program)
        entries = list(zip(program.placeholders, program.inputs, strict=True))
        self._held = {n.name for n, e in entries if _OF_INPUT.get(e.kind) in LOADED}
        self._lasting = self._held | {n.name for n, e in entries if e.kind == "tangent"}
        self._changes: list[tuple[int, str, Storages]] = []
        self._workspace: list[int] = []
        self._kept: list[Any] = []
        self._now = _Alive()

    def start(self, env: Mapping[str, Any]) -> None:
        """Before the first instruction."""
        # So that nothing new takes the place of what lasts and only the run held (rows cut for a part).
        self._kept = [value for name, value in env.items() if name in self._lasting]
        for name in sorted(env, key=lambda name: name not in self._held):
            if name not in self._held and not self.loaded:
                self.loaded = self._now.total
            self._set(_START, name, env[name])
        self.loaded = self.loaded or self._now.total

    def after(
        self, step: ins.Instruction, env: Mapping[str, Any], chunks: Mapping[str, Tensor], workspace: int = 0
    ) -> None:
        """After one instruction has run, with the bytes that it alone used."""
        place = len(self.live)
        for name in touched(step):
            if name not in self._lasting:
                self._set(place, name, chunks.get(name, env.get(name)))
        self._workspace.append(workspace)
        self.live.append(self._now.total + workspace)

    def finish(self) -> None:
        """After the last instruction."""
        self._kept = []

    def _set(self, place: int, name: str, value: Any) -> None:
        found = tuple(storages(value))
        if self._now.set(name, found):
            self._changes.append((place, name, found))

    @property
    def peak(self) -> int:
        return max(self.live, default=0)

    @property
    def peak_place(self) -> int:
        """The instruction in which most bytes are alive (the first of them)."""
        return self.live.index(self.peak) if self.live else _START

    def alive_at(self, place: int) -> list[Live]:
        """What is alive in the instruction at `place`, largest first."""
        state = _Alive()
        for at, name, found in self._changes:
            if at > place:
                break
            state.set(name, found)
        made = [Live(name, self._category.get(name, "chunks"), size) for name, size in state.sizes()]
        if place >= 0:
            made.append(Live("workspace", "workspace", self._workspace[place]))
        return sorted((v for v in made if v.nbytes), key=lambda v: (-v.nbytes, v.name))

    def most(self, category: str) -> int:
        """The largest number of values of a category that are alive at once."""
        alive: set[str] = set()
        most = 0
        for _, name, found in self._changes:
            if self._category.get(name, "chunks") == category:
                alive.add(name) if found else alive.discard(name)
                most = max(most, len(alive))
        return most

    def held(self, category: str) -> int:
        """Bytes of a category that are there before the first instruction, each value by itself."""
        return sum(
            size
            for place, name, found in self._changes
            if place == _START and self._category.get(name) == category
            for _, size in found
        )

    def by_category(self, place: int) -> dict[str, int]:
        """Bytes of each category in the instruction at `place`."""
        found = dict.fromkeys(CATEGORIES, 0)
        for value in self.alive_at(place):
            found[value.category] += value.nbytes
        return found


class _Alive:
    """Values and their storages; a storage is alive while some value holds it."""

    def __init__(self) -> None:
        self.total = 0
        self._of: dict[str, Storages] = {}
        self._users: dict[int, int] = {}

    def set(self, name: str, found: Storages) -> bool:
        """Now `name` holds these storages (none: it is freed); returns whether that is news."""
        before = self._of.pop(name, ())
        if found:
            self._of[name] = found
        for address, size in found:
            self._users[address] = self._users.get(address, 0) + 1
            if self._users[address] == 1:
                self.total += size
        for address, size in before:
            self._users[address] -= 1
            if not self._users[address]:
                del self._users[address]
                self.total -= size
        return found != before

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Each value with the bytes of those of its storages that no earlier one holds."""
        seen: set[int] = set()
        for name, found in self._of.items():
            yield name, sum(size for address, size in found if address not in seen)
            seen.update(address for address, _ in found)


def storages(value: Any) -> list[tuple[int, int]]:
    """(address, bytes) of the storages of a tensor, or of a list of tensors, once each."""
    if isinstance(value, Tensor):
        found = value.untyped_storage()
        # A tensor of the meta device has no memory: its storage's own identity stands for it.
        return [(found.data_ptr() or found._cdata, found.nbytes())] if found.nbytes() else []
    if isinstance(value, (list, tuple)):
        return list(dict.fromkeys(s for item in value for s in storages(item)))
    return []


def touched(step: ins.Instruction) -> tuple[str, ...]:
    """Names of the values and buffers that an instruction makes, replaces or frees."""
    if isinstance(step, ins.Free):
        return step.names
    named = (*getattr(step, "nodes", ()), *(getattr(step, key, "") for key in ("node", "call", "buffer", "partial")))
    return tuple(dict.fromkeys(name for name in named if name))


def categories(program: Program) -> dict[str, str]:
    """The category of every value of a program (see CATEGORIES)."""
    found: dict[str, str] = {}
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        found[node.name] = _OF_INPUT.get(entry.kind, "values")
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        types = node.meta["type"] if isinstance(node.meta["type"], tuple) else (node.meta["type"],)
        over_edges = any(program.spaces[s].on_edges for t in types for s in t.spaces)
        of = node.args[0] if node.target is operator.getitem else node
        if of.target in (fetch, give_back):
            found[node.name] = "halo"
        elif node.target is edge_call:
            found[node.name] = "edge rows" if over_edges else "folds"
        else:
            found[node.name] = "edge rows" if over_edges else "values"
    for node, output in zip(program.returned, program.outputs, strict=True):
        if output.kind in ("saved", "grad") and node.op == "call_function":
            found[node.name] = "saved" if output.kind == "saved" else "gradients"
    return found
