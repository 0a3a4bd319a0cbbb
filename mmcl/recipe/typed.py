"""Plain YAML values against type annotations: strict types, every mistake at once, in the words of a YAML file."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePath
from typing import Any, Literal, NotRequired, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict, is_typeddict

from mmcl.errors import Problem
from mmcl.recipe.suggest import did_you_mean

# Nested dataclasses and typed dictionaries of a plug-in inherit this, so unknown keys are refused at every depth.
_CONFIG = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)

Where = Callable[[Sequence[object]], str]

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
    None: "null",
    dict: "a mapping",
    list: "a list",
}


def check_value(hint: Any, value: Any, where: str) -> tuple[Any, list[Problem]]:
    """Check one value.

    Args:
        hint: a type annotation.
        value: a plain YAML value.
        where: its path in the recipe.

    Returns:
        The value as the annotation wants it (a tuple for a list, a `Path` for text), and the mistakes.
    """
    converted, problems = check_options(
        {"value": hint}, frozenset(), {"value": value}, lambda path: join_path(where, *path[1:])
    )
    return converted.get("value"), problems


def check_options(
    hints: Mapping[str, Any],
    required: AbstractSet[str],
    options: Mapping[str, Any],
    where: Where,
    noun: str = "option",
) -> tuple[dict[str, Any], list[Problem]]:
    """Check keyword arguments.

    Args:
        hints: the annotation of each keyword.
        required: keywords without a default.
        options: plain YAML values by keyword.
        where: makes the place that a message names from a path such as `("tasks", 0, "metric")`.
        noun: what messages call a keyword.

    Returns:
        The converted values (of the given options only; empty where there is a mistake), and the mistakes.

    Raises:
        TypeError: an annotation can't be checked; the plug-in's author has to mend that.
    """
    fields = {name: hint if name in required else NotRequired[hint] for name, hint in hints.items()}
    make: Any = TypedDict  # at run time, from a signature, which a type checker can't follow
    checked = make("Options", fields)
    checked.__pydantic_config__ = _CONFIG
    try:
        adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(checked)
    except PydanticUserError as error:
        raise TypeError(str(error).splitlines()[0]) from error
    try:
        # JSON mode is strict about types and still takes a list for a tuple and text for a path, as YAML needs.
        text = json.dumps(options, default=_path_text)
    except (TypeError, ValueError) as error:
        return {}, [Problem(where(()), f"is not made of plain YAML values: {error}")]
    try:
        return dict(adapter.validate_json(text)), []
    except ValidationError as error:
        return {}, _problems(error, hints, options, where, noun)


def join_path(*parts: object) -> str:
    """A path in a recipe, such as `stages.0.train`; empty parts are left out."""
    return ".".join(str(part) for part in parts if part != "")


def describe(hint: Any) -> str:
    """The annotation in words: `a whole number or null`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return describe(args[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping from {_bare(args[0])} to {_bare(args[1])}" if len(args) == 2 else "a mapping"
    if isinstance(origin, type) and issubclass(origin, (Sequence, AbstractSet)):
        if origin is tuple and args[-1] is not Ellipsis:
            return f"a list of {len(args)}: {', '.join(_bare(member) for member in args)}"
        return f"a list of {_bare(args[0])}"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def show(value: Any) -> str:
    """A YAML value, shortened, with its kind where the text alone would mislead."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    text = json.dumps(value, default=str, ensure_ascii=False)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"the text {text}" if isinstance(value, str) else text


def _bare(hint: Any) -> str:
    return describe(hint).removeprefix("a ").replace("whole number", "whole numbers")


def _path_text(value: Any) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{value!r} is {type(value).__name__}")


def _problems(
    error: ValidationError,
    hints: Mapping[str, Any],
    options: Mapping[str, Any],
    where: Where,
    noun: str,
) -> list[Problem]:
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        kind, given = item["type"], item["input"]
        path = _real_path(item["loc"], options, keep_last=kind in ("missing", "missing_argument"))
        hint = hints.get(str(path[0])) if path else None
        top = len(path) == 1
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            choices, what = (hints, noun) if top else (_inner_keys(hint), "key")
            problem = Problem(where(path), f"unknown {what}", did_you_mean(path[-1], choices))
        elif kind in ("missing", "missing_argument"):
            message = f"missing; this {noun} has no default" if top else "missing"
            problem = Problem(where(path), message, f"Add `{path[-1]}`.")
        elif top or len(_members(hint)) > 1:
            # Of a union the library reports each member's complaint; one sentence about the whole says more.
            path = path[:1]
            given = options[str(path[0])]
            problem = Problem(where(path), f"expected {describe(hint)}, got {show(given)}", _mend(hint, given))
        else:
            expected = item["msg"].removeprefix("Input should be ").replace("'", "`")
            expected = expected.replace("a valid dictionary", "a mapping").replace("an object", "a mapping")
            expected = expected.replace("a valid array", "a list").replace("a valid string", "text")
            problem = Problem(where(path), f"expected {expected}, got {show(given)}")
        found.setdefault(problem.where, problem)
    return list(found.values())


def _real_path(loc: Sequence[Any], options: Any, *, keep_last: bool) -> tuple[Any, ...]:
    """The location without the names of union members that the library puts in between."""
    path: list[Any] = []
    for part in loc:
        try:
            options = options[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(part)
    return (*path, loc[-1]) if keep_last else tuple(path)


def _mend(hint: Any, given: Any) -> str:
    if not isinstance(given, str):
        return ""
    literals = [value for member in _members(hint) if get_origin(member) is Literal for value in get_args(member)]
    if literals:
        return did_you_mean(given, map(str, literals))
    if bool in _members(hint) and given.lower() in ("yes", "no", "on", "off"):
        return "Write true or false."
    if {int, float} & set(_members(hint)) and given.replace(".", "", 1).isdigit():
        return "Leave out the quotes."
    return ""


def _inner_keys(hint: Any) -> set[str]:
    """Keys of all records (dataclasses, typed dictionaries) inside an annotation."""
    if dataclasses.is_dataclass(hint):
        return {field.name for field in dataclasses.fields(hint)}
    if is_typeddict(hint):
        return set(hint.__annotations__)
    return {key for inner in get_args(hint) for key in _inner_keys(inner)}


def _members(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for member in get_args(hint) if member is not type(None))
    return (hint,)
