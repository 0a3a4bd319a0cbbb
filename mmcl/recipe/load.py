"""A YAML file or a mapping -> a checked `Recipe`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl.errors import Problem, UserError
from mmcl.recipe.reading import apply_overrides, apply_variant, parse_override, read_yaml
from mmcl.recipe.repeats import repeat_problems
from mmcl.recipe.schema import parse
from mmcl.recipe.spec import Recipe
from mmcl.recipe.suggest import did_you_mean

_ABOVE = ("variants", "seeds", "orders")
"""Keys of a recipe that no variant has."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe's file. No weights and no data are loaded.

    Args:
        path: a YAML file. Without a `name` in it the recipe has the file's name.
        overrides: `path=value` each, such as `train.epochs=2`, `stages.0.tasks=[shape]` or `methods=[replay]`.

    Raises:
        UserError: names every mistake in the file, the overrides and the variants.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError("there is no such recipe", where=str(path), hint=did_you_mean(path.name, beside)) from error
    except OSError as error:
        raise UserError(f"the recipe can't be read: {error.strerror}", where=str(path)) from error
    data = read_yaml(text, path.name)
    if not isinstance(data, dict):
        hint = "A recipe has the keys `model` and `stream` at least."
        raise UserError("a recipe is a mapping, this file is not", where=path.name, hint=hint)
    data.setdefault("name", path.stem)
    return _checked(data, path.parent, overrides)


def recipe_from_dict(data: Mapping[str, Any], folder: Path | str = ".") -> Recipe:
    """Check a recipe given as plain data.

    Args:
        data: what a recipe's YAML file would hold.
        folder: relative paths and `./file.py:Class` start here.

    Raises:
        UserError: names every mistake.
    """
    return _checked(data, Path(folder), ())


def resolve_variant(recipe: Recipe, name: str) -> Recipe:
    """The recipe with one variant's overrides merged in; see `Recipe.variant`."""
    repeat = recipe.repeats.get(name)
    if repeat is None:
        hint = did_you_mean(name, recipe.variant_names)
        raise UserError(f"the recipe `{recipe.name}` has no variant `{name}`", where="variants", hint=hint)
    if not repeat.overrides:
        return dataclasses.replace(recipe, variants={}, seeds=(), orders=())
    data = {key: value for key, value in recipe.to_dict().items() if key not in _ABOVE}
    merged, problems = apply_variant(data, repeat.overrides)
    if not problems:
        resolved, problems = parse(merged, recipe.folder)
        if resolved is not None:
            return resolved
    raise UserError(problems=[_under(problem, f"variants.{name}") for problem in problems])


def _checked(data: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> Recipe:
    given: dict[str, Any] = {}
    texts: dict[str, str] = {}
    problems: list[Problem] = []
    for text in overrides:
        try:
            path, value = parse_override(text)
        except UserError as error:
            problems += error.problems
        else:
            given[path], texts[path] = value, text
    changed, mistakes = apply_overrides(dict(data), given)
    recipe, wrong = parse(changed, folder)
    mistakes += wrong
    mistakes += repeat_problems(changed) if isinstance(changed, Mapping) else []
    for name, variant in _variants(changed).items():
        mistakes += _variant_problems(changed, folder, str(name), variant, set(mistakes))
    problems += [_from_override(problem, texts) for problem in mistakes]
    if recipe is None or problems:
        raise UserError(problems=problems)
    return recipe


def _variants(data: Mapping[str, Any]) -> Mapping[str, Any]:
    variants = data.get("variants")
    return variants if isinstance(variants, Mapping) else {}


def _variant_problems(
    data: Mapping[str, Any], folder: Path, name: str, overrides: Any, known: set[Problem]
) -> list[Problem]:
    """Mistakes of the recipe with a variant's overrides that the recipe without them does not have."""
    if not isinstance(overrides, Mapping):
        return []  # the schema has reported it
    where = f"variants.{name}"
    for key in _ABOVE:
        if key in overrides:
            hint = "List each of them under `variants`." if key == "variants" else f"Set `{key}` for the whole recipe."
            return [Problem(f"{where}.{key}", f"a variant can't have {key}", hint)]
    plain = {key: value for key, value in data.items() if key not in _ABOVE}
    merged, problems = apply_variant(plain, overrides)
    problems += parse(merged, folder)[1]
    return [_under(problem, where) for problem in problems if problem not in known]


def _under(problem: Problem, where: str) -> Problem:
    return dataclasses.replace(problem, where=f"{where}.{problem.where}" if problem.where else where)


def _from_override(problem: Problem, overrides: Mapping[str, str]) -> Problem:
    """The problem, with the override that it comes from, if it comes from one."""
    for path, text in overrides.items():
        inside = problem.where == path or problem.where.startswith(f"{path}.")
        on_the_way = path.startswith(f"{problem.where}.") and problem.message == "unknown key"
        if inside or on_the_way:
            return dataclasses.replace(problem, message=f"{problem.message} (override `{text}`)")
    return problem
