"""Plug-ins by name: entry points of installed distributions, and `./file.py:Class` beside a recipe.

Listing imports no plug-in. The constructor's signature is the schema of a plug-in's options.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmcl.errors import Problem, UserError
from mmcl.recipe.modules import attribute_of, module_of_file, summary_of
from mmcl.recipe.signatures import Part, option_docs, parameters, part_of
from mmcl.recipe.spec import PluginSpec, plugin_spec
from mmcl.recipe.suggest import did_you_mean

KINDS = ("encoders", "projectors", "methods", "streams", "formats", "metrics", "objectives")
"""Kinds of plug-ins; the group of entry points is `mmcl.<kind>`."""

CORE_KEYWORDS: Mapping[str, frozenset[str]] = {
    **{kind: frozenset({"root"}) for kind in KINDS},
    "projectors": frozenset({"root", "in_width", "out_width"}),
    "streams": frozenset({"root", "formats"}),
}
"""Keywords that the core gives and a recipe may not."""

_CHECKED_BY_BUILDING = frozenset({"methods", "metrics"})  # only their constructors know the ranges of their options

# What constructors of a kind call their own place in their messages.
_HOMES: Mapping[str, str] = {"encoders": "model.encoder", "projectors": "model.projector", "streams": "stream"}

_OFFERED = frozenset(
    {"root", "seed", "formats"}
)  # for constructors that take them; whatever else the core gives is a must

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
        text = inspect.formatannotation(self.hint)
        return text.replace("typing.", "").replace("collections.abc.", "").replace("mmcl.protocols.", "")


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
            summary=summary_of(point.module, point.attr),
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
        module = module_of_file((folder / path).resolve(), name)
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
        found = attribute_of(module, attribute)
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
    docs = option_docs(plugin)
    return [
        Option(
            name=parameter.name,
            hint=hint,
            required=parameter.default is parameter.empty and parameter.name != "seed",
            default=None if parameter.default is parameter.empty else parameter.default,
            doc=docs.get(parameter.name, ""),
        )
        for parameter, hint in parameters(plugin)
        if parameter.name not in CORE_KEYWORDS[kind]
    ]


def signature(kind: str, name: str, folder: Path = Path()) -> list[Option]:
    """`options` of the plug-in of that name."""
    return options(kind, load(kind, name, folder))


def read(kind: str, data: Any, folder: Path, where: str) -> tuple[PluginSpec | None, list[Problem]]:
    """A plug-in that YAML data name, or None where there is a mistake; and every mistake.

    Args:
        kind: one of `KINDS`.
        data: a name, or a mapping with `name` and options.
        folder: the recipe's folder.
        where: the path in the recipe that messages start with.
    """
    from mmcl.recipe.typed import show

    spec = plugin_spec(data)
    if spec is None:
        hint = "Write a name, or `{name: NAME, option: value}`."
        article = "an" if kind[0] in "aeiou" else "a"
        return None, [Problem(where, f"expected {article} {kind[:-1]}, got {show(data)} without a name", hint)]
    problems = check(kind, spec, folder, where)
    return (None if problems else spec), problems


def walk(kind: str, spec: PluginSpec, folder: Path) -> Iterator[tuple[str, str]]:
    """Kind and name of a plug-in whose options are right, and of all plug-ins that it is given, at every depth."""
    yield kind, spec.name
    for option, part in _parts(kind, load(kind, spec.name, folder)).items():
        given = spec.options.get(option)
        for inner in map(plugin_spec, given if part.many and given else [given]):
            if inner is not None:
                yield from walk(part.kind, inner, folder)


def check(kind: str, spec: PluginSpec, folder: Path, where: str = "") -> list[Problem]:
    """Every mistake in a plug-in's name and options, those of the plug-ins that it is given included.

    Methods and metrics are also constructed, because only their constructors know the ranges of their options. Other
    kinds, and whatever is given one of these, are not: their constructors load weights or data.

    Args:
        kind: one of `KINDS`.
        spec: name and options.
        folder: the recipe's folder.
        where: the path in the recipe that messages start with.
    """
    from mmcl.recipe.typed import join_path

    try:
        plugin = load(kind, spec.name, folder)
        problems = _converted(kind, plugin, spec, folder, where or spec.name)[1]
    except UserError as error:
        return [Problem(where or spec.name, item.message, item.hint) for item in error.problems]
    if problems or not {each for each, _ in walk(kind, spec, folder)} <= _CHECKED_BY_BUILDING:
        return problems
    try:
        build(kind, spec, folder, seed=0)
    except UserError as error:
        return [Problem(join_path(where, item.where), item.message, item.hint) for item in error.problems]
    return []


def build(kind: str, spec: PluginSpec, folder: Path, **core: Any) -> Any:
    """Construct a plug-in, after the plug-ins that it is given.

    Args:
        kind: one of `KINDS`.
        spec: name and options.
        folder: the recipe's folder; given to constructors that take `root`. Streams that take `formats` are given a
            function that makes a format from its name and options, as a recipe would write them, and a place for
            messages.
        **core: what the core gives: `in_width` and `out_width` for projectors; `seed` (given to constructors that take
            it, unless the recipe sets it).

    Raises:
        UserError: the name or the options are wrong.
    """
    plugin = load(kind, spec.name, folder)
    keywords, problems = _converted(kind, plugin, spec, folder, spec.name)
    if problems:
        raise UserError(problems=problems)
    for option, part in _parts(kind, plugin).items():
        if isinstance(keywords.get(option), PluginSpec):
            keywords[option] = _build_part(part, keywords[option], folder, core, (_HOMES.get(kind, ""), option))
        elif keywords.get(option) is not None:
            keywords[option] = tuple(
                _build_part(part, inner, folder, core, (_HOMES.get(kind, ""), option, index))
                for index, inner in enumerate(keywords[option])
            )
    known = {parameter.name for parameter, _ in parameters(plugin)}
    offered = {"root": folder, "formats": partial(_format, folder)}
    given = {key: value for key, value in {**offered, **core}.items() if key in known or key not in _OFFERED}
    return plugin(**{**given, **keywords})


def _format(folder: Path, data: Any, where: str) -> Any:
    """A format by name and options."""
    spec, problems = read("formats", data, folder, where)
    if spec is None:
        raise UserError(problems=problems)
    return build("formats", spec, folder)


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


# ------------------------------------------------------------------------------------------------------------- options


def _parts(kind: str, plugin: Callable[..., Any]) -> dict[str, Part]:
    """The options that take plug-ins."""
    return {option.name: part for option in options(kind, plugin) if (part := part_of(option.hint))}


def _converted(
    kind: str, plugin: Callable[..., Any], spec: PluginSpec, folder: Path, where: str
) -> tuple[dict[str, Any], list[Problem]]:
    """The given options as the constructor wants them, but plug-ins as specs (or tuples of them); and the mistakes."""
    from mmcl.recipe.typed import check_options, join_path

    known, parts = options(kind, plugin), _parts(kind, plugin)
    given_by_core = CORE_KEYWORDS[kind] & spec.options.keys()
    problems = [
        Problem(join_path(where, key), "mmcl sets this itself", "Leave it out.") for key in sorted(given_by_core)
    ]
    try:
        keywords, mistakes = check_options(
            {option.name: Any if option.name in parts else option.hint for option in known},
            {option.name for option in known if option.required},
            {key: None if key in parts else value for key, value in spec.options.items() if key not in given_by_core},
            lambda path: join_path(where, *path),
            f"option of the {kind[:-1]} `{spec.name}`",
        )
    except TypeError as error:
        raise UserError(f"the {kind[:-1]} `{spec.name}` has an annotation that can't be checked: {error}") from error
    for option, part in parts.items():
        if option in spec.options:
            keywords[option], wrong = _read_part(part, spec.options[option], folder, join_path(where, option))
            mistakes += wrong
    return keywords, problems + mistakes


def _read_part(part: Part, data: Any, folder: Path, where: str) -> tuple[Any, list[Problem]]:
    from mmcl.recipe.typed import join_path, show

    if data is None and part.optional:
        return None, []
    if not part.many:
        return read(part.kind, data, folder, where)
    if not isinstance(data, (list, tuple)):
        return None, [
            Problem(
                where,
                f"expected a list of {part.kind}, got {show(data)}",
                f"Write `{where.rpartition('.')[2]}: [...]`.",
            )
        ]
    found = [read(part.kind, entry, folder, join_path(where, index)) for index, entry in enumerate(data)]
    return tuple(spec for spec, _ in found), [problem for _, problems in found for problem in problems]


def _build_part(
    part: Part, spec: PluginSpec, folder: Path, core: Mapping[str, Any], place: tuple[str | int, ...]
) -> Any:
    """Construct a plug-in for another one, with what the core gave that one; its messages name this place."""
    from mmcl.recipe.typed import join_path

    taken = _OFFERED | CORE_KEYWORDS[part.kind]
    try:
        return build(part.kind, spec, folder, **{key: value for key, value in core.items() if key in taken})
    except UserError as error:
        home = _HOMES.get(part.kind, "")
        raise UserError(
            problems=[
                Problem(join_path(*place, item.where.removeprefix(home).removeprefix(".")), item.message, item.hint)
                for item in error.problems
            ]
        ) from error
