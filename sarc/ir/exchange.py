"""How rows travel between parts: what `sarc.compile` was asked for, and what follows for each exchange.

Two ways. *Ring*: chunk by chunk, at most 2 (1 + prefetch) chunks alive, a block of edges run as its chunk comes in.
*Whole*: the rows of all peers at once, in one all-to-all; a part then holds its halo, and its edges are one block. The
second takes memory and saves time: messages are few, and a kernel sees every edge of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

EXCHANGES = ("auto", "ring", "whole", "sar")

# Measured with gloo between four processes on two cores: what a message between two of them costs before its first
# byte, what an all-to-all does, and the rate at which bytes follow.
MESSAGE_SECONDS = 6e-4
ALL_TO_ALL_SECONDS = 6e-4
BYTES_PER_SECOND = 1e9
# Of matrix products on one core, in float32.
FLOPS_PER_SECOND = 4e10


@dataclass(frozen=True)
class ExchangeOptions:
    """What an exchange may be.

    Attributes:
        exchange: "ring" or "whole" for every exchange; "auto" whole while the halos fit `halo_budget`, ring beyond it;
            "sar" the scheme of the SAR paper, for comparison: ring, every layer's rows as the model makes them, fetched
            again by the backward pass; what several traversals of a layer read is fetched once.
        halo_budget: bytes of halo rows that a part may hold at once under "auto".
        comm_dtype: dtype of wider floating-point numbers on the way between parts; None: their own.
    """

    exchange: str = "auto"
    halo_budget: int = 256 << 20
    comm_dtype: torch.dtype | None = None


def ring_seconds(nbytes: int, messages: int) -> float:
    """Time of an exchange chunk by chunk: each message's latency, both ways, and the bytes."""
    return 2 * messages * MESSAGE_SECONDS + nbytes / BYTES_PER_SECOND


def whole_seconds(nbytes: int) -> float:
    """Time of an exchange in one all-to-all."""
    return ALL_TO_ALL_SECONDS + nbytes / BYTES_PER_SECOND
