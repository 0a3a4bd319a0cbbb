"""Where the code of a plug-in lies: in a module, or in a file beside a recipe. Standard library only."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mmcl.errors import UserError


def attribute_of(module: ModuleType, dotted: str) -> Any:
    """What `A` or `A.b` means in a module; AttributeError where it means nothing."""
    found: Any = module
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


def module_of_file(path: Path, name: str) -> ModuleType:
    """The file as a module of a private name, so that nothing can import it by accident and `sys.path` stays.

    Raises:
        UserError: it can't be read, is no Python, or imports what is not there; `name` is what the user calls it.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"the file {path} can't be read: {error.strerror}",
            where=name,
            hint="The path starts at the recipe's folder.",
        ) from error
    private = f"_mmcl_file_{hashlib.sha256(bytes(path) + source).hexdigest()[:16]}"
    if private in sys.modules:
        return sys.modules[private]
    spec = importlib.util.spec_from_file_location(private, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file", where=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[private]
        raise UserError(f"{path}:{error.lineno}: {error.msg}", where=name, hint="Mend the Python syntax.") from error
    except ImportError as error:
        del sys.modules[private]
        raise UserError(f"the file {path} can't be imported: {error}", where=name) from error
    except BaseException:
        del sys.modules[private]
        raise
    return module


def summary_of(module: str, attribute: str) -> str:
    """First line of the docstring, read from the source: importing the module could import torch."""
    found: importlib.machinery.ModuleSpec | None = None
    search: Sequence[str] | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        specs = (finder.find_spec(name, search) for finder in sys.meta_path)
        found = next((spec for spec in specs if spec is not None), None)
        if found is None:
            return ""
        search = found.submodule_search_locations
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return ""
    try:
        tree = ast.parse(Path(found.origin).read_bytes())
    except (OSError, SyntaxError):
        return ""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""
