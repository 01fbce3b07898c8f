"""Every exception sarc raises on purpose.

Each message says what was expected, what came, where (the user's file and line when there is one) and what to do.
"""

from __future__ import annotations


class SarcError(Exception):
    """Base of all errors raised by sarc."""


class UnsupportedModelError(SarcError):
    """The model does something that cannot be partitioned or captured; names the construct and the nearest form."""


class OptionError(SarcError, ValueError):
    """An argument of `sarc.compile` has a type or value that it cannot have."""


class GraphError(SarcError):
    """The graph or a tensor that should be aligned with it is malformed: layout, index range, shape, dtype."""


class PartitionError(SarcError):
    """A partition is malformed, does not belong to this graph or world, or its files are damaged."""


class ExchangeError(SarcError):
    """An exchange between parts failed; names rank, round, peer and buffer."""


class BudgetError(SarcError):
    """A memory budget cannot be met; names the bytes needed, the bytes given and the largest term."""


class OffloadError(SarcError):
    """The directory of `offload="disk"` cannot be used, or is full; names it, the bytes wanted and those free."""


class CodegenError(SarcError):
    """A kernel could not be generated, compiled or launched."""


class DifferenceError(SarcError):
    """The compiled model's numbers are not the plain module's (`verify=True`); lists the largest differences."""


class VerifyError(SarcError):
    """A compiler pass left an inconsistent program: a defect of sarc, not of the model."""


class CommandError(SarcError):
    """A command of `sarc` was given a file, name or specification that it cannot use."""


class ParseError(SarcError):
    """The text of a program cannot be read; names the line."""
