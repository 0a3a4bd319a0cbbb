"""Rows of a JSON array or of JSON lines, and the mistakes that keep a file from being one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcl.errors import Problem

Rows = list[tuple[int, Mapping[str, Any]]]


def read_rows(path: Path) -> tuple[Rows, list[Problem]]:
    """The objects in a file, each with its place.

    Args:
        path: a JSON array of objects, or JSON lines. The content decides, not the name of the file.

    Returns:
        Pairs of place and row (the place counts from 1: elements of an array, lines of JSON lines), and the mistakes.
    """
    text, problem = _text(path)
    if problem:
        return [], [problem]
    start = text.lstrip()[:1]
    problems: list[Problem] = []
    rows: Rows = []
    values = _lines(path, text, problems) if start == "{" and _is_lines(text) else _array(path, text, problems)
    for place, value in values:
        if isinstance(value, dict):
            rows.append((place, value))
        else:
            problems.append(
                Problem(f"{path}:{place}", f"the row is {kind(value)}", "every row is a JSON object: {...}")
            )
    return rows, problems


def read_value(path: Path) -> tuple[Any, Problem | None]:
    """The value in a JSON file, or what is wrong."""
    text, problem = _text(path)
    return (None, problem) if problem else _parse(path, text, 1)


def _text(path: Path) -> tuple[str, Problem | None]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return "", Problem(str(path), f"the file can't be read: {error.strerror}", "check its path and its rights")
    except UnicodeDecodeError as error:
        return "", Problem(str(path), f"byte {error.start + 1} is no UTF-8", "save the file as UTF-8")
    if not text.strip():
        return "", Problem(str(path), "the file is empty", "it holds a JSON array of rows, or one row per line")
    return text, None


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]


def _is_lines(text: str) -> bool:
    """Whether the first line is a value of its own; otherwise an object is spread over several lines."""
    first = text.lstrip().partition("\n")[0]
    return "\n" not in text.strip() or _parse(Path(), first, 1)[1] is None or first.rstrip().endswith("}")


def _lines(path: Path, text: str, problems: list[Problem]) -> Rows:
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not `splitlines`: texts may hold U+2028
        if line.strip():
            value, problem = _parse(path, line, number)
            if problem:
                problems.append(problem)
            else:
                rows.append((number, value))
    return rows


def _array(path: Path, text: str, problems: list[Problem]) -> Rows:
    value, problem = _parse(path, text, 1)
    if problem:
        problems.append(problem)
    elif not isinstance(value, list):
        problems.append(Problem(str(path), f"the file holds {kind(value)}, not a list of rows", "put rows into [ ]"))
    else:
        return list(enumerate(value, start=1))
    return []


def _parse(path: Path, text: str, line: int) -> tuple[Any, Problem | None]:
    """The value, or what is wrong; `line` is where the text starts in the file."""
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}:{error.colno}"
        what = f"broken JSON: {error.msg} (line {line + error.lineno - 1}, column {error.colno})"
        hint = "mend the JSON there; a missing comma, bracket or quote often stands just before"
        return None, Problem(where, what, hint)
    except RecursionError:
        return None, Problem(f"{path}:{line}", "the JSON is nested too deeply", "rows are flat objects; mend the file")
    except ValueError as error:  # numbers of thousands of digits
        return None, Problem(f"{path}:{line}", f"broken JSON: {error}", "mend the number")
