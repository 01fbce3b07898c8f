"""FILE.py:ModelOrFactory: the model that a command is about."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sarc.errors import CommandError


@dataclass(frozen=True)
class Found:
    """A model, and what it is called with when its factory says so.

    Attributes:
        name: as given, for titles.
        model: freshly made after torch.manual_seed(0), or the object found in the file.
        arguments: positional arguments of a call, or None.
    """

    name: str
    model: nn.Module
    arguments: tuple[Any, ...] | None


def find_model(where: str) -> Found:
    """The model that `where` names.

    Args:
        where: "FILE.py:NAME", NAME a module class, a function that returns a module or (module, arguments), or a module
            object; "FILE.py:NAME(32, 7, heads=2)" calls it with literals.

    Raises:
        CommandError: no such file or name, or it is no model.
    """
    file, separator, what = where.partition(".py:")
    if not separator or not what:
        raise CommandError(f"model: expected FILE.py:ModelOrFactory, got {where!r}; for example examples/models.py:GAT")
    path = Path(f"{file}.py")
    if not path.is_file():
        raise CommandError(f"model: there is no file {path}")
    name, args, kwargs = _call(what)
    namespace = vars(_load(path))
    if name not in namespace:
        models = sorted(key for key, value in namespace.items() if _makes_models(value, str(path)))
        raise CommandError(f"{path} defines no {name!r}; models and functions there: {', '.join(models) or 'none'}")
    torch.manual_seed(0)
    made = namespace[name]
    if not isinstance(made, nn.Module):
        made = _make(where, made, args, kwargs)
    elif args or kwargs:
        raise CommandError(f"{where}: {name} is a module already, it takes no constructor arguments")
    arguments = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        made, arguments = made
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    if not isinstance(made, nn.Module):
        raise CommandError(
            f"{where}: expected a torch.nn.Module, or a pair (module, arguments of a call), got {type(made).__name__}"
        )
    return Found(where, made, arguments)


def _call(what: str) -> tuple[str, list[Any], dict[str, Any]]:
    """NAME or NAME(literals)."""
    try:
        tree = ast.parse(what, mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, [], {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
            args = [ast.literal_eval(a) for a in tree.args]
            return tree.func.id, args, {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    except (SyntaxError, ValueError):
        pass
    raise CommandError(f"model: expected NAME or NAME(literals) after the file, got {what!r}")


def _load(path: Path) -> Any:
    """The module of a file; its folder is importable, as for a script."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CommandError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _makes_models(value: Any, path: str) -> bool:
    if isinstance(value, nn.Module) or (inspect.isclass(value) and issubclass(value, nn.Module)):
        return True
    return inspect.isfunction(value) and Path(value.__code__.co_filename) == Path(path)


def _make(where: str, factory: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    if not callable(factory):
        raise CommandError(f"{where}: expected a module class or a function, got {type(factory).__name__}")
    try:
        inspect.signature(factory).bind(*args, **kwargs)
    except TypeError as error:
        signature = str(inspect.signature(factory)).split(" ->")[0]
        raise CommandError(
            f"{where}: {error}; pass literals: '{where.split('(')[0]}(32, 7)', for the signature {signature}"
        ) from error
    return factory(*args, **kwargs)
