"""Plug-ins by name: entry points of installed distributions, and `./file.py:Class` beside a recipe.

Listing imports no plug-in. The constructor's signature is the schema of a plug-in's options.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmcl.errors import Problem, UserError
from mmcl.recipe.spec import PluginSpec
from mmcl.recipe.suggest import did_you_mean

KINDS = ("encoders", "projectors", "methods", "streams", "formats", "metrics", "objectives")
"""Kinds of plug-ins; the group of entry points is `mmcl.<kind>`."""

CORE_KEYWORDS: Mapping[str, frozenset[str]] = {
    "projectors": frozenset({"root", "in_width", "out_width"}),
    **{kind: frozenset({"root"}) for kind in KINDS if kind != "projectors"},
}
"""Keywords that the core gives and a recipe may not."""

_OFFERED = frozenset({"root", "seed"})  # for constructors that take them; whatever else the core gives is a must

_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "encoders": ("transform", "forward"),
    "projectors": ("tokens", "forward"),
    "methods": ("setup", "training_samples", "select", "end_task", "owns"),
    "streams": ("tasks",),
    "formats": ("sniff", "read", "validate"),
    "metrics": ("__call__",),
    "objectives": ("supervise", "loss"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered plug-in.

    Attributes:
        name: what recipes call it.
        kind: one of `KINDS`.
        summary: first line of its docstring; empty where the source can't be read.
        distribution: the package that registers it; for a file its path.
        version: of the distribution.
        target: `module:Class`.
    """

    name: str
    kind: str
    summary: str
    distribution: str
    version: str
    target: str


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a plug-in.

    Attributes:
        name: the keyword.
        hint: its annotation.
        required: whether a recipe must set it: it has no default, and the core does not offer it (as it does a `seed`).
        default: its default; None where it is required.
        doc: from the `Args:` of the docstring.
    """

    name: str
    hint: Any
    required: bool
    default: Any
    doc: str

    @property
    def type(self) -> str:
        """The annotation as text."""
        return inspect.formatannotation(self.hint).replace("typing.", "").replace("collections.abc.", "")


def entries(kind: str) -> list[Entry]:
    """All registered plug-ins of a kind, by name, without importing them.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"there is no kind of plug-in `{kind}`", where=kind, hint=did_you_mean(kind, KINDS))
    found = [
        Entry(
            name=point.name,
            kind=kind,
            summary=_summary(point.module, point.attr),
            distribution=point.dist.name if point.dist else "",
            version=point.dist.version if point.dist else "",
            target=point.value,
        )
        for point in importlib.metadata.entry_points(group=f"mmcl.{kind}")
    ]
    return sorted(found, key=lambda entry: (entry.name, entry.distribution))


def load(kind: str, name: str, folder: Path) -> Callable[..., Any]:
    """The class of a plug-in.

    Args:
        kind: one of `KINDS`.
        name: a registered name, or `./file.py:Class`.
        folder: where a relative file starts: the recipe's folder.

    Raises:
        UserError: the name is unknown or registered twice, or what it points to can't be imported or is no plug-in of
            this kind.
    """
    if kind not in KINDS:
        raise UserError(f"there is no kind of plug-in `{kind}`", where=kind, hint=did_you_mean(kind, KINDS))
    label = f"the {kind[:-1]} `{name}`"
    if ".py:" in name:
        path, _, attribute = name.rpartition(":")
        module = _module_of_file((folder / path).resolve(), name)
        source = path
    else:
        point = _point(kind, name)
        module_name, _, attribute = point.value.partition(":")
        source = f"{point.value} of the package {point.dist.name if point.dist else '?'}"
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(
                f"{label} ({source}) can't be imported: {error}",
                where=name,
                hint=f"Install the missing module `{error.name}`." if error.name else "",
            ) from error
    try:
        found = _attribute(module, attribute)
    except AttributeError:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value) and not key.startswith("_")]
        raise UserError(
            f"{label}: {source} has no `{attribute}`", where=name, hint=did_you_mean(attribute, classes)
        ) from None
    missing = [member for member in _MEMBERS[kind] if inspect.isclass(found) and not hasattr(found, member)]
    if missing or not callable(found):
        raise UserError(
            f"{label} is no {kind[:-1]}: it lacks {', '.join(missing) or 'a constructor'}",
            where=name,
            hint="See mmcl/protocols.py for what it needs.",
        )
    return typing.cast(Callable[..., Any], found)


def options(kind: str, plugin: Callable[..., Any]) -> list[Option]:
    """What a recipe may set: the constructor's keywords without those that the core gives.

    Args:
        kind: one of `KINDS`.
        plugin: the class, from `load`.

    Raises:
        UserError: an annotation of the constructor can't be resolved.
    """
    docs = _option_docs(plugin)
    return [
        Option(
            name=parameter.name,
            hint=hint,
            required=parameter.default is parameter.empty and parameter.name != "seed",
            default=None if parameter.default is parameter.empty else parameter.default,
            doc=docs.get(parameter.name, ""),
        )
        for parameter, hint in _parameters(plugin)
        if parameter.name not in CORE_KEYWORDS[kind]
    ]


def signature(kind: str, name: str, folder: Path = Path()) -> list[Option]:
    """`options` of the plug-in of that name."""
    return options(kind, load(kind, name, folder))


def check(kind: str, spec: PluginSpec, folder: Path, where: str = "") -> list[Problem]:
    """Every mistake in a plug-in's name and options.

    Methods and metrics are also constructed, because only their constructors know the ranges of their options. Other
    kinds are not: their constructors load weights or data.

    Args:
        kind: one of `KINDS`.
        spec: name and options.
        folder: the recipe's folder.
        where: the path in the recipe that messages start with.
    """
    from mmcl.recipe.typed import join_path

    try:
        plugin = load(kind, spec.name, folder)
        problems = _converted(kind, plugin, spec, where or spec.name)[1]
    except UserError as error:
        return [Problem(where or spec.name, item.message, item.hint) for item in error.problems]
    if problems or kind not in ("methods", "metrics"):
        return problems
    try:
        build(kind, spec, folder, seed=0)
    except UserError as error:
        return [Problem(join_path(where, item.where), item.message, item.hint) for item in error.problems]
    return []


def build(kind: str, spec: PluginSpec, folder: Path, **core: Any) -> Any:
    """Construct a plug-in.

    Args:
        kind: one of `KINDS`.
        spec: name and options.
        folder: the recipe's folder; given to constructors that take `root`.
        **core: what the core gives: `in_width` and `out_width` for projectors; `seed` (given to constructors that take
            it, unless the recipe sets it).

    Raises:
        UserError: the name or the options are wrong.
    """
    plugin = load(kind, spec.name, folder)
    keywords, problems = _converted(kind, plugin, spec, spec.name)
    if problems:
        raise UserError(problems=problems)
    known = {parameter.name for parameter, _ in _parameters(plugin)}
    given = {key: value for key, value in {"root": folder, **core}.items() if key in known or key not in _OFFERED}
    return plugin(**{**given, **keywords})


# ------------------------------------------------------------------------------------------------------------- finding


def _point(kind: str, name: str) -> importlib.metadata.EntryPoint:
    points = importlib.metadata.entry_points(group=f"mmcl.{kind}")
    found = [point for point in points if point.name == name]
    if not found:
        raise UserError(
            f"there is no {kind[:-1]} `{name}`",
            where=name,
            hint=did_you_mean(name, points.names) or "Install the package that has it, or write ./file.py:Class.",
        )
    if len(found) > 1:
        owners = " and ".join(sorted(point.dist.name if point.dist else "?" for point in found))
        raise UserError(
            f"the {kind[:-1]} `{name}` is registered by several packages: {owners}",
            where=name,
            hint="Uninstall all but one of them.",
        )
    return found[0]


def _attribute(module: ModuleType, dotted: str) -> Any:
    found: Any = module
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


def _module_of_file(path: Path, name: str) -> ModuleType:
    """The file as a module of a private name, so that nothing can import it by accident and `sys.path` stays."""
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


def _summary(module: str, attribute: str) -> str:
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


# ---------------------------------------------------------------------------------------------------------- signatures


def _parameters(plugin: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    function = plugin.__init__ if inspect.isclass(plugin) else plugin
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UserError(
            f"an annotation of its constructor can't be resolved: {error}",
            where=getattr(plugin, "__name__", ""),
            hint="Import the type outside `if TYPE_CHECKING`.",
        ) from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        (parameter, hints.get(parameter.name, Any))
        for parameter in inspect.signature(plugin).parameters.values()
        if parameter.kind in named
    ]


def _converted(
    kind: str, plugin: Callable[..., Any], spec: PluginSpec, where: str
) -> tuple[dict[str, Any], list[Problem]]:
    from mmcl.recipe.typed import check_options, join_path

    known = options(kind, plugin)
    given_by_core = CORE_KEYWORDS[kind] & spec.options.keys()
    problems = [
        Problem(join_path(where, key), "mmcl sets this itself", "Leave it out.") for key in sorted(given_by_core)
    ]
    try:
        keywords, mistakes = check_options(
            {option.name: option.hint for option in known},
            {option.name for option in known if option.required},
            {key: value for key, value in spec.options.items() if key not in given_by_core},
            lambda path: join_path(where, *path),
            f"option of the {kind[:-1]} `{spec.name}`",
        )
    except TypeError as error:
        raise UserError(f"the {kind[:-1]} `{spec.name}` has an annotation that can't be checked: {error}") from error
    return keywords, problems + mistakes


def _option_docs(plugin: Callable[..., Any]) -> dict[str, str]:
    """The `Args:` of the class's or the constructor's Google docstring."""
    docs: dict[str, str] = {}
    for owner in (plugin, getattr(plugin, "__init__", None)):
        lines = inspect.cleandoc(getattr(owner, "__doc__", None) or "").splitlines()
        inside, name = False, ""
        for line in lines:
            if line.rstrip() == "Args:":
                inside = True
            elif inside and line and not line.startswith(" "):
                inside = False
            elif inside and line.startswith("    ") and line[4:5].strip():
                name, _, text = line.strip().partition(":")
                name = name.partition(" ")[0]
                docs[name] = text.strip()
            elif inside and name and line.strip():
                docs[name] = f"{docs[name]} {line.strip()}"
    return docs
