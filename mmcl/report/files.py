"""Reading a run folder's files: a broken one is named, with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from mmcl.errors import UserError

T = TypeVar("T")

_DAMAGED = "the file is damaged or not of mmcl's making; delete the stage's folder and run the recipe again"


def read_text(path: Path) -> str:
    """The file's text; UserError if it can't be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError("the file is missing", where=str(path), hint=_DAMAGED) from error
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=str(path), hint=_DAMAGED) from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _parse(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"{path}:{line or error.lineno}"
        raise UserError(f"not JSON: {error.msg} (column {error.colno})", where=where, hint=_DAMAGED) from error
    except ValueError as error:
        raise UserError(str(error), where=f"{path}:{line}" if line else str(path), hint=_DAMAGED) from error


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    return expect(_parse(read_text(path), path, None), dict, str(path), "the document")


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON lines as ("file:line", object), blank lines left out."""
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if text.strip():
            where = f"{path}:{line}"
            yield where, expect(_parse(text, path, line), dict, where, "the row")


def read_yaml(path: Path) -> dict[str, Any]:
    """A file that holds one YAML mapping."""
    try:
        value = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"not YAML: {getattr(error, 'problem', None) or error}", where=where, hint=_DAMAGED) from error
    return expect(value, dict, str(path), "the document")


def expect(value: Any, kind: type[T], where: str, what: str) -> T:
    """`value` if it is of that type, else a UserError. A bool is no number; an int is a float."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return kind(value)  # type: ignore[call-arg]
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        names = {dict: "an object", list: "a list", str: "text", float: "a number", int: "a whole number"}
        message = f"{what} should be {names.get(kind, kind.__name__)}, not {type(value).__name__}"
        raise UserError(message, where=where, hint=_DAMAGED)
    return value


def need(mapping: dict[str, Any], key: str, kind: type[T], where: str) -> T:
    """The value of a key that must be there, of that type."""
    if key not in mapping:
        raise UserError(f"{key} is missing", where=where, hint=_DAMAGED)
    return expect(mapping[key], kind, where, key)


def texts(mapping: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of strings that must be there."""
    return tuple(expect(item, str, where, f"{key}[{i}]") for i, item in enumerate(need(mapping, key, list, where)))


def score(value: Any, where: str, what: str) -> float | None:
    """A score in [0, 1], or None where it was not measured."""
    if value is None:
        return None
    number = expect(value, float, where, what)
    if not 0.0 <= number <= 1.0:
        raise UserError(f"{what} is {number:g}; scores lie in [0, 1]", where=where, hint=_DAMAGED)
    return number
