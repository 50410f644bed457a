"""Functions of the user's own that score answers: found by their names, never imported."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from alignment.checks.seen import Wrong
from alignment.config.messages import close_to
from alignment.config.stages.fields import Place
from alignment.errors import ConfigError
from alignment.rewards import BUILT_IN, named


def callable_by_name(place: Place, name: str, *, built_in: bool) -> Wrong:
    """A scoring function that cannot be found. It is located, not imported: a user's module may take minutes, or a
    GPU."""
    if built_in and name in BUILT_IN:
        return
    (module, colon, function), expected = name.partition(":"), named(built_in=built_in)
    if not (colon and module and function):
        yield place, ConfigError("not a reward function", found=name, expected=expected)
        return
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        yield place, ConfigError("the reward function's module is not installed", found=module, expected=expected,
                                 hint="install it, or put its folder on PYTHONPATH")
    elif (names := _defined(spec.origin)) is not None and function not in names:
        yield place, ConfigError("the module has no such function", found=name,
                                 expected=close_to(function, [name for name in names if name[0] != "_"]))


def _defined(file: str | None) -> list[str] | None:
    """Names that a module's source gives to functions, classes and variables, and to what it imports; None where that
    does not show."""
    if file is None or not file.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    found: list[str] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.append(name)
                continue  # what stands within is not the module's
            case ast.Name(id=name, ctx=ast.Store()):
                found.append(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found += [alias.asname or alias.name for alias in names]
        waiting += ast.iter_child_nodes(node)
    return None if "*" in found or "__getattr__" in found else found
