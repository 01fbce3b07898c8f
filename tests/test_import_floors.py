"""The floors of the house: who may import whom (docs: layout), which libraries are loaded where, and when.

The checker below reads source text only, so that a wrong import is reported at its file and line even when it would
never run; `test_importing_sarc_loads_no_optional_library` looks at a running interpreter instead.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Room -> the other rooms it may import, top floor first. A room is a folder of sarc/ or a module directly in it; "sarc"
# is the package itself, which only hands out public names and is imported by nobody inside.
FLOORS: dict[str, frozenset[str]] = {
    room: frozenset(below.split())
    for room, below in {
        "__main__": "cli",
        "cli": "commands sarc report compiler passes frontends codegen runtime cost ir partition data errors",
        "commands": "report compiler pipeline backend passes frontends codegen runtime cost ir partition data errors",
        "report": "compiler pipeline backend passes frontends codegen runtime cost ir partition data errors",
        "sarc": "compiler pipeline backend passes frontends codegen runtime cost ir partition data errors",
        "compiler": "pipeline backend passes frontends codegen runtime cost ir partition data errors",
        "pipeline": "backend passes frontends codegen runtime cost ir partition data errors",
        "backend": "codegen runtime ir partition data errors",
        "passes": "cost ir partition data errors",
        "frontends": "ir partition data errors",
        "codegen": "ir partition data errors",
        "runtime": "ir partition data errors",
        "cost": "ir partition data errors",
        "ir": "errors",
        "partition": "errors",
        "data": "errors",
        "errors": "",
    }.items()
}
OPTIONAL_LIBRARIES = frozenset({"dgl", "torch_geometric", "pymetis", "ogb"})
ROOMS_OF_OPTIONAL_LIBRARIES = frozenset({"frontends", "partition", "data"})
ROOM_OF_DISTRIBUTED = "runtime"


def find_violations(package: Path) -> list[str]:
    """Every import below `package` (a folder named sarc) that breaks a floor, as "file:line: what and why"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package.parent)
        importer = relative.with_suffix("").parts
        is_package = importer[-1] == "__init__"
        module = importer[:-1] if is_package else importer
        room = _room(module)
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        found += [
            f"{relative}:{line}: {complaint}"
            for line, target, deferred in _imports(tree, module, is_package)
            for complaint in _complaints(room, target, deferred)
        ]
        if room != ROOM_OF_DISTRIBUTED:
            found += [
                f"{relative}:{node.lineno}: torch.distributed is used outside sarc/{ROOM_OF_DISTRIBUTED}/"
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and node.attr == "distributed" and ast.unparse(node.value) == "torch"
            ]
    return found


def _room(module: tuple[str, ...]) -> str:
    return module[1] if len(module) > 1 else "sarc"


def _complaints(room: str, target: str, deferred: bool) -> Iterator[str]:
    top = target.split(".")[0]
    if room not in FLOORS:
        yield f"room {room!r} stands on no floor: add it to FLOORS and to the layout in docs/"
    elif top == "sarc":
        target_room = _room(tuple(target.split(".")))
        if target_room != room and target_room not in FLOORS[room]:
            allowed = ", ".join(sorted(FLOORS[room])) or "nothing"
            yield f"{room} imports {target} (of {target_room}); {room} may import: {allowed}"
    elif top in OPTIONAL_LIBRARIES:
        if room not in ROOMS_OF_OPTIONAL_LIBRARIES:
            yield f"{top} is imported in {room}; only {', '.join(sorted(ROOMS_OF_OPTIONAL_LIBRARIES))} may"
        if not deferred:
            yield f"optional library {top} is imported at module level; import it inside the function that needs it"
    elif (target + ".").startswith("torch.distributed.") and room != ROOM_OF_DISTRIBUTED:
        yield f"torch.distributed is imported outside sarc/{ROOM_OF_DISTRIBUTED}/"


def _imports(tree: ast.Module, module: tuple[str, ...], is_package: bool) -> Iterator[tuple[int, str, bool]]:
    """Line, absolute dotted target and whether importing the module leaves it out, of each import statement or call.

    Left out (deferred) is what stands inside a function or under `if TYPE_CHECKING:`.
    """
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, deferred = pending.pop()
        for target in _targets(node, module, is_package):
            yield node.lineno, target, deferred  # type: ignore[attr-defined]
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += [(child, deferred) for child in reversed(node.orelse)]
            pending += [(child, True) for child in reversed(node.body)]
            continue
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending += [(child, inside) for child in reversed(list(ast.iter_child_nodes(node)))]


def _targets(node: ast.AST, module: tuple[str, ...], is_package: bool) -> Iterator[str]:
    """What one node imports.

    Case 1: `import a.b`. Case 2: `from a import b`, absolute or relative; b may be a module, so it belongs to the
    target. Case 3: `import_module("a")` or `__import__("a")` with a literal name.
    """
    if isinstance(node, ast.Import):  # Case 1
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):  # Case 2
        up = node.level - 1 if is_package else node.level
        base = () if node.level == 0 else module[: len(module) - up]
        stem = [*base, *(node.module.split(".") if node.module else [])]
        yield from (".".join([*stem, alias.name]) for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):  # Case 3
        function = ast.unparse(node.func).split(".")[-1]
        if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value


def test_every_import_goes_downward() -> None:
    violations = find_violations(REPOSITORY / "sarc")
    assert not violations, "\n" + "\n".join(violations)


def test_every_room_of_the_package_stands_on_a_floor() -> None:
    rooms = {
        path.stem
        for path in (REPOSITORY / "sarc").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert rooms, "no package found"
    assert rooms <= set(FLOORS), f"rooms without a floor: {sorted(rooms - set(FLOORS))}"


def test_importing_sarc_loads_no_optional_library() -> None:
    script = dedent(
        """
        import importlib, pkgutil, sys
        import sarc
        names = [m.name for m in pkgutil.walk_packages(sarc.__path__, "sarc.") if not m.name.endswith("__main__")]
        for name in names:
            importlib.import_module(name)
        print(len(names), *sorted({"dgl", "torch_geometric", "pymetis", "ogb"} & set(sys.modules)))
        """
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert run.returncode == 0, run.stderr
    count, *loaded = run.stdout.split()
    assert int(count) > 0, "no module was imported"
    assert not loaded, f"importing the modules of sarc loaded {loaded}"


# The checker must be able to fail: file in a synthetic package, its text, and what the one complaint must say
# (None: no complaint).
SYNTHETIC = {
    "upward": ("ir/types.py", "from sarc.passes import base\n", "sarc/ir/types.py:1: ir imports sarc.passes.base"),
    "upward inside a function": ("ir/a.py", "def f():\n    import sarc.compiler\n", "sarc/ir/a.py:2: ir imports"),
    "upward, relative": ("ir/a.py", "from ..runtime import loss\n", "ir imports sarc.runtime.loss"),
    "upward, relative from a package": ("ir/__init__.py", "from ..cost import f\n", "ir imports sarc.cost.f"),
    "upward, from the package": ("codegen/a.py", "from sarc import compiler\n", "codegen imports sarc.compiler"),
    "the package itself": ("runtime/a.py", "import sarc\n", "runtime imports sarc (of sarc)"),
    "sideways": ("frontends/a.py", "import sarc.runtime.loss\n", "frontends imports sarc.runtime.loss"),
    "sideways on the ground": ("partition/a.py", "import sarc.ir.types\n", "partition imports sarc.ir.types"),
    "by name": ("ir/a.py", "import importlib\nimportlib.import_module('sarc.cli')\n", "ir imports sarc.cli"),
    "unknown room": ("attic/a.py", "import math\n", "'attic' stands on no floor"),
    "dgl at module level": ("frontends/a.py", "import dgl\n", "dgl is imported at module level"),
    "dgl in a class body": ("frontends/a.py", "class A:\n    import dgl\n", "dgl is imported at module level"),
    "dgl guarded": ("data/a.py", "try:\n    import ogb.io\nexcept ImportError:\n    pass\n", "ogb is imported"),
    "dgl under else": ("data/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import dgl\n", "dgl is imported at"),
    "upward, for types": ("ir/a.py", "if TYPE_CHECKING:\n    from sarc.runtime import a\n", "ir imports sarc.runtime"),
    "pyg in a wrong room": ("runtime/a.py", "def f():\n    import torch_geometric\n", "torch_geometric is imported in"),
    "distributed, imported": ("passes/a.py", "import torch.distributed as dist\n", "torch.distributed is imported"),
    "distributed, from torch": ("ir/a.py", "from torch import distributed\n", "torch.distributed is imported"),
    "distributed, attribute": ("ir/a.py", "import torch\nx = torch.distributed.send\n", "a.py:2: torch.distributed"),
    "allowed: downward": ("passes/a.py", "from sarc.ir import a\nfrom sarc.cost import f\nimport sarc.errors\n", None),
    "allowed: same room": ("passes/joint/a.py", "from ..base import f\nfrom sarc.passes.forward import bind\n", None),
    "allowed: optional": ("partition/a.py", "def f():\n    import pymetis\n    from dgl import graph\n", None),
    "allowed: for types": ("frontends/a.py", "if TYPE_CHECKING:\n    from dgl import DGLGraph\n", None),
    "allowed: distributed": ("runtime/a.py", "import torch.distributed\ntorch.distributed.barrier\n", None),
}


@pytest.mark.parametrize(("file", "text", "complaint"), SYNTHETIC.values(), ids=SYNTHETIC.keys())
def test_the_checker_sees(file: str, text: str, complaint: str | None, tmp_path: Path) -> None:
    path = tmp_path / "sarc" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    violations = find_violations(tmp_path / "sarc")
    if complaint is None:
        assert violations == []
    else:
        assert len(violations) == 1, violations
        assert complaint in violations[0]
