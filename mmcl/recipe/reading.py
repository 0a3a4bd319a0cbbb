"""YAML text -> plain data, and the ways to change such data: `a.b=value` and the overrides of a variant."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from mmcl.errors import Problem, UserError
from mmcl.recipe.schema import PLUGIN_FIELDS
from mmcl.recipe.spec import plugin_spec
from mmcl.recipe.typed import show

# What an absent list stands for, so that its entries can be overridden.
_DEFAULT_LISTS: Mapping[str, list[Any]] = {"stages": [{}], "methods": ["finetune"]}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-4` is a number; `no`, `on`, `010`, `12:30` and `2024-01-01` are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as in the base class


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def read_yaml(text: bytes | str, name: str) -> Any:
    """Plain data of one YAML document.

    Args:
        text: the document.
        name: what messages call it, such as the file's name.

    Raises:
        UserError: the text is no YAML (with line and column), has a key twice in one mapping, or refers to itself.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        problems = _structure_problems(node, name, (), set())
        if problems:
            raise UserError(problems=problems)
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        syntax = isinstance(error, (yaml.scanner.ScannerError, yaml.parser.ParserError))
        hint = "Text that holds `: `, ` #`, `{` or `[` needs quotes; tabs can't indent." if syntax else ""
        raise UserError(f"no valid YAML: {error.problem or error.context}", where=place, hint=hint) from error
    except yaml.YAMLError as error:
        raise UserError(f"no valid YAML: {error}".splitlines()[0], where=name, hint="Save it as UTF-8 text.") from error


def _structure_problems(node: Any, name: str, above: tuple[int, ...], done: set[int]) -> list[Problem]:
    """Repeated keys, which YAML forbids and the parser lets pass, and nodes that contain themselves."""
    if id(node) in above:
        return [Problem(f"{name}:{node.start_mark.line + 1}", "an anchor contains an alias of itself")]
    if id(node) in done:
        return []
    problems: list[Problem] = []
    children: list[Any] = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                message = f"the key `{key.value}` is already on line {lines[key.value]}"
                problems.append(Problem(f"{name}:{line}", message, "Leave one of them."))
            else:
                lines[key.value] = line
    for child in children:
        problems += _structure_problems(child, name, (*above, id(node)), done)
    done.add(id(node))
    return problems


def apply_overrides(data: Any, overrides: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """A copy of the data with values set, and the paths that lead nowhere."""
    return _apply(data, overrides, lambda key, old, new: new)


def apply_variant(data: Any, overrides: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """A copy of the data with a variant's overrides merged in.

    Mappings merge; lists and plain values replace; a plug-in of another name replaces.
    """
    return _apply(data, overrides, _merge)


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=value` as path and value, which is YAML.

    Raises:
        UserError: there is no `=`, no path, or the value is no YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not all(part and not part.isspace() for part in path.split(".")):
        hint = "Write path=value, such as train.epochs=2 or methods=[replay]."
        raise UserError("no override of the form path=value", where=text, hint=hint)
    return path.strip(), read_yaml(value, text)


def _apply(
    data: Any, overrides: Mapping[str, Any], combine: Callable[[str, Any, Any], Any]
) -> tuple[Any, list[Problem]]:
    result = copy.deepcopy(data)
    problems: list[Problem] = []
    for path, value in overrides.items():
        try:
            _set(result, str(path), copy.deepcopy(value), combine)
        except UserError as error:
            problems += error.problems
    return result, problems


def _set(data: Any, path: str, value: Any, combine: Callable[[str, Any, Any], Any]) -> None:
    parts = path.split(".")
    if "learning_rates" in parts[:-1]:  # its keys, such as language.lora, have dots
        start = parts.index("learning_rates") + 1
        parts = [*parts[:start], ".".join(parts[start:])]
    node = data
    for depth, part in enumerate(parts):
        key = _key(node, part, path)
        old = node[key] if isinstance(node, list) else node.get(key)
        if depth == len(parts) - 1:
            node[key] = combine(part, old, value)
            return
        if old is None:
            old = copy.deepcopy(_DEFAULT_LISTS.get(part, {})) if depth == 0 else {}
        elif isinstance(old, str) and _may_name_plugin(parts[: depth + 1]):
            old = {"name": old}
        node[key] = old
        node = old


def _may_name_plugin(path: Sequence[str]) -> bool:
    """Whether text here can be a plug-in's name: in a plug-in's field, or in a list there or below."""
    return path[-1] in PLUGIN_FIELDS or (path[-1].isdecimal() and any(part in PLUGIN_FIELDS for part in path))


def _key(node: Any, part: str, path: str) -> Any:
    """The key or index of `part` in a mapping or a list."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise UserError(f"nothing lies below {show(node)}, so there is no `{part}`", where=path)
    if not part.isdecimal() or int(part) >= len(node):
        hint = f"Its entries are 0 to {len(node) - 1}." if node else "It is empty."
        raise UserError(f"the list has no entry `{part}`", where=path, hint=hint)
    return int(part)


def _merge(key: str, old: Any, new: Any) -> Any:
    if isinstance(old, str) and key in PLUGIN_FIELDS and isinstance(new, dict):
        old = {"name": old}
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    before, after = plugin_spec(old), plugin_spec(new)
    if before and after and before.name != after.name:
        return new
    return {**old, **{name: _merge(name, old.get(name), value) for name, value in new.items()}}
