"""Which line of the user's code a captured operator comes from."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch_geometric", "dgl")


def user_line(stack: str | traceback.StackSummary | None) -> str:
    """"file:line" of the innermost frame of the user's code, or of a GNN library's layer when there is none.

    Args:
        stack: a formatted stack or a stack summary, outermost frame first.

    Returns:
        "" when every frame belongs to PyTorch, Python or sarc.
    """
    if not stack:
        return ""
    if isinstance(stack, str):
        frames = [(name, int(line)) for name, line in _FRAME.findall(stack)]
    else:
        frames = [(frame.filename, frame.lineno or 0) for frame in stack]
    library = ""
    for name, line in reversed(frames):
        kind = _kind(name)
        if kind == "user":
            return f"{_short(name)}:{line}"
        if kind == "library" and not library:
            library = f"{_short(name)}:{line}"
    return library


def _kind(name: str) -> str:
    if name.startswith("<"):
        return "framework"
    path = Path(name)
    if _ROOT in path.parents:
        return "framework"
    if any(library in path.parts for library in _LIBRARIES) or "_propagate_" in path.name:
        return "library"
    if "site-packages" in path.parts or "torch" in path.parts or re.search(r"/lib/python3[.\d]*/", name):
        return "framework"
    return "user"


def _short(name: str) -> str:
    path = Path(name)
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
