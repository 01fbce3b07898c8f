"""Schedule: one part's program as explicit instructions. Plain data: printed, checked, counted and executed.

A *chunk* is a set of rows of one peer; a *round* (r, c) moves chunk c between parts p and p +- r. Buffers are named by
call, direction and round.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Launch:
    """Run one operator on the part's rows; `node` is the value it makes."""

    node: str

    def __str__(self) -> str:
        return f"launch     %{self.node}"


@dataclass(frozen=True)
class AllReduce:
    """Complete contractions over all parts, in one message where there are several."""

    nodes: tuple[str, ...]
    op: str

    @property
    def node(self) -> str:
        return self.nodes[0]

    def __str__(self) -> str:
        return f"all_reduce {', '.join(f'%{n}' for n in self.nodes)} {self.op}"


@dataclass(frozen=True)
class Message:
    """What one exchange moves to or from one peer."""

    peer: int
    rows: int
    nbytes: int


@dataclass(frozen=True)
class AllToAll:
    """Begin to exchange the halo rows of some values with every peer at once ("fetch"), or their folds ("return")."""

    node: str
    what: str
    sends: tuple[Message, ...]
    receives: tuple[Message, ...]

    @property
    def buffer(self) -> str:
        return self.node

    def __str__(self) -> str:
        out, back = (sum(m.nbytes for m in messages) for messages in (self.sends, self.receives))
        return f"all_to_all %{self.node} sends {out} B, receives {back} B ({self.what})"


@dataclass(frozen=True)
class Finish:
    """Wait for an all_to_all and put the rows where they belong. `clock` is common to all parts."""

    node: str
    clock: tuple[int, ...]

    @property
    def buffer(self) -> str:
        return self.node

    def __str__(self) -> str:
        return f"finish     %{self.node}"


@dataclass(frozen=True)
class Begin:
    """Allocate the accumulators of an edge call."""

    call: str

    def __str__(self) -> str:
        return f"begin      %{self.call}"


@dataclass(frozen=True)
class PostRecv:
    """Allocate `buffer` and receive into it from `peer`."""

    buffer: str
    call: str
    peer: int
    rows: int
    nbytes: int

    def __str__(self) -> str:
        return f"recv       {self.buffer} <- part {self.peer}, {self.rows} rows, {self.nbytes} B"


@dataclass(frozen=True)
class Send:
    """Send `buffer` to `peer`: a packed chunk of owned rows ("fetch"), or a block's partial folds ("return")."""

    buffer: str
    call: str
    peer: int
    chunk: int
    rows: int
    nbytes: int
    what: str

    def __str__(self) -> str:
        return f"send       {self.buffer} -> part {self.peer}, {self.rows} rows, {self.nbytes} B ({self.what})"


@dataclass(frozen=True)
class Wait:
    """Go on when the message in `buffer` is complete. `clock` is common to all parts."""

    buffer: str
    clock: tuple[int, ...]

    def __str__(self) -> str:
        return f"wait       {self.buffer}"


@dataclass(frozen=True)
class RunBlock:
    """Run an edge call's body on the edges of one block and fold the results.

    `fetched` holds the peer's rows ("" for the own block); partial folds for the peer go to `partial` ("" when none).
    """

    call: str
    peer: int
    chunk: int
    fetched: str = ""
    partial: str = ""

    def __str__(self) -> str:
        source = f" from {self.fetched}" if self.fetched else ""
        into = f" into {self.partial}" if self.partial else ""
        return f"block      %{self.call} part {self.peer} chunk {self.chunk}{source}{into}"


@dataclass(frozen=True)
class Combine:
    """Fold partial results that `peer` returned into the owned rows."""

    call: str
    buffer: str
    peer: int
    chunk: int

    def __str__(self) -> str:
        return f"combine    %{self.call} from {self.buffer}"


@dataclass(frozen=True)
class Free:
    """Release buffers or values."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"free       {', '.join(self.names)}"


Instruction = Launch | AllReduce | AllToAll | Finish | Begin | PostRecv | Send | Wait | RunBlock | Combine | Free


@dataclass(frozen=True)
class Schedule:
    """Instructions of one part for one program.

    Attributes:
        rank: the part.
        stage: "forward" or "backward".
        instructions: in order.
        chunk_limit: most chunk buffers alive at any time: 2 (1 + prefetch).
        wire: dtype of wider floating-point numbers on the way between parts; None: their own.
    """

    rank: int
    stage: str
    instructions: tuple[Instruction, ...]
    chunk_limit: int
    wire: torch.dtype | None = None

    def sends(self) -> list[tuple[str, Message]]:
        """Every message that this part sends, with the value or edge call it is for."""
        found = []
        for step in self.instructions:
            if isinstance(step, Send):
                found.append((step.call, Message(step.peer, step.rows, step.nbytes)))
            elif isinstance(step, AllToAll):
                found += [(step.node, message) for message in step.sends]
        return found

    def receives(self) -> list[tuple[str, Message]]:
        """Every message that this part receives, with the value or edge call it is for."""
        found = []
        for step in self.instructions:
            if isinstance(step, PostRecv):
                found.append((step.call, Message(step.peer, step.rows, step.nbytes)))
            elif isinstance(step, AllToAll):
                found += [(step.node, message) for message in step.receives]
        return found

    @property
    def sent_bytes(self) -> int:
        """Payload bytes this part sends to other parts."""
        return sum(message.nbytes for _, message in self.sends())

    @property
    def received_bytes(self) -> int:
        return sum(message.nbytes for _, message in self.receives())

    def counts(self) -> dict[str, int]:
        """Number of instructions of each kind."""
        return dict(Counter(type(i).__name__ for i in self.instructions))

    def __str__(self) -> str:
        limit = f"at most {self.chunk_limit} chunks alive"
        head = f"schedule {self.stage} part {self.rank}: {limit}, sends {self.sent_bytes} B"
        return "\n".join([head, *(f"  {i}" for i in self.instructions)])
