"""Which line of the user's code a captured operator, or an error, comes from."""

from __future__ import annotations

import dis
import importlib.util
import sys
import sysconfig
import traceback
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType

_SARC = Path(__file__).resolve().parents[1]
# Frames of a capture further out than this file's call of the model belong to the caller of the compiled module.
_CALLS_THE_MODEL = str(Path(__file__).resolve().with_name("inputs.py"))
_FRAMEWORKS = ("torch", "numpy", "functorch")
_LIBRARIES = ("torch_geometric", "dgl")
_TYPED_IN = ("<stdin>", "<string>", "<ipython-input")


def user_line(stack: traceback.StackSummary) -> str:
    """ "file:line" of the innermost frame of the user's model; "" when every frame is PyTorch's, Python's or sarc's.

    Where the model has no frame of its own, as when it is a layer of PyG or DGL itself, the layer's line is given, and
    failing that the line that called the compiled module.

    Args:
        stack: outermost frame first.
    """
    return _choose((frame.filename, frame.lineno or 0) for frame in reversed(stack))


def current_line() -> str:
    """`user_line` of the running code."""
    return _choose(_frames(sys._getframe(1)))


def definition_line(module: object) -> str:
    """ "file:line" of the forward of `module`, for what has no line of its own."""
    code = getattr(getattr(type(module), "forward", None), "__code__", None)
    return f"{_short(code.co_filename)}:{code.co_firstlineno}" if code is not None else type(module).__name__


def raised_by_model(trace: TracebackType | None) -> bool:
    """Whether an exception comes from a `raise` or `assert` in the user's own code."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or _kind(trace.tb_frame.f_code.co_filename) != "user":
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def asked_by_model() -> bool:
    """Whether the model's own code (or a GNN library's) uses a symbolic number now, not PyTorch on its behalf.

    For the code that PyTorch's symbolic numbers call: the frame that calls this function does not count.
    """
    for name, _ in _frames(sys._getframe(2)):
        if _kind(name) != "symbols":
            return _kind(name) in ("user", "library", "generated")
    return False


def _choose(frames) -> str:
    """The frame to report, of (file, line) pairs with the innermost first."""
    library = ""
    for name, line in frames:
        if library and name == _CALLS_THE_MODEL:
            return library
        kind = _kind(name)
        if kind == "user":
            return f"{_short(name)}:{line}"
        if kind == "library" and not library:
            library = f"{_short(name)}:{line}"
    return library


def _frames(frame: FrameType | None):
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


@cache
def _kind(name: str) -> str:
    """ "user", "library" (PyG, DGL, other packages), "generated" (PyG's propagate and edge_updater, files of another
    name in every process), "symbols" (PyTorch's symbolic numbers) or "framework"."""
    if name.startswith("<"):
        return "user" if name.startswith(_TYPED_IN) else "framework"
    path = Path(name)
    if path.name.startswith("torch_geometric."):
        return "generated"
    for package in _FRAMEWORKS:
        root = _root(package)
        if root is not None and root in path.parents:
            inner = path.relative_to(root).parts
            return "symbols" if inner == ("__init__.py",) or inner[:2] == ("fx", "experimental") else "framework"
    if _SARC in path.parents:
        return "framework"
    if any(root in path.parents for root in map(_root, _LIBRARIES)) or "site-packages" in path.parts:
        return "library"
    if any(root in path.parents for root in _python_roots()):
        return "framework"
    return "user"


@cache
def _root(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@cache
def _python_roots() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")})


def _short(name: str) -> str:
    path = Path(name)
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
