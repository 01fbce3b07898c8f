"""Source lines on traced operators: what is traced after `mark_line` belongs to that line."""

from __future__ import annotations

import torch.fx as fx
import torch.fx.traceback as fx_traceback

_MARK = "sarc:"


def mark_line(line: str) -> None:
    """Operators traced from here on come from `line` ("file:line" or ""); needs `fx_traceback.preserve_node_meta()`."""
    fx_traceback.current_meta.clear()
    if line:
        fx_traceback.current_meta["stack_trace"] = _MARK + line


def marked_line(node: fx.Node) -> str:
    """The line that a traced operator was marked with, or ""."""
    stack = node.stack_trace or ""
    return stack.removeprefix(_MARK) if stack.startswith(_MARK) else ""
