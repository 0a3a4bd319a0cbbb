"""The variants of a recipe repeated with several seeds and orders of the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcl.errors import Problem

ALONE = "default"
"""What a recipe without variants is called where its variants are listed."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """One of the runs of a variant.

    Attributes:
        group: the variant as the recipe names it; its repeats are averaged.
        seed: None where the recipe lists no seeds.
        order: None where it lists no orders.
        overrides: of the recipe.
    """

    group: str
    seed: int | None
    order: str | None
    overrides: Mapping[str, Any]


def expand(variants: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], orders: Sequence[str]) -> dict[str, Repeat]:
    """Every variant with every seed and every order, by name: `replay`, `replay-s1`, `replay-s1-reversed`.

    Repeats of a recipe without variants are called `s1-reversed`; without repeats it is `default`.
    """
    found = {}
    for group, overrides in (variants or {ALONE: {}}).items():
        for seed in seeds or (None,):
            for order in orders or (None,):
                changed = dict(overrides)
                changed |= {} if seed is None else {"seed": seed}
                changed |= {} if order is None else {"setting.order": order}
                ends = [*([] if seed is None else [f"s{seed}"]), *([] if order is None else [order])]
                name = "-".join([*([group] if variants or not ends else []), *ends])
                found[name] = Repeat(group, seed, order, changed)
    return found


def repeat_problems(data: Mapping[str, Any]) -> list[Problem]:
    """What speaks against the repeats. Reads raw data, which may have other mistakes."""
    problems = []
    for key in ("seeds", "orders"):
        listed = data.get(key)
        values = [value for value in listed if isinstance(value, int | str)] if isinstance(listed, list | tuple) else []
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        problems += [Problem(key, f"{value} is listed twice", "Leave one of them.") for value in twice]
        below = [value for value in values if isinstance(value, int) and value < 0]
        problems += [Problem(key, f"expected at least 0, got {value}") for value in below]
    given = data.get("variants")
    variants = {str(k): v for k, v in given.items() if isinstance(v, Mapping)} if isinstance(given, Mapping) else {}
    for key, path in (("seeds", "seed"), ("orders", "setting.order")):
        if data.get(key):
            problems += [
                Problem(
                    f"variants.{name}.{path}",
                    f"`{key}` sets it for all variants",
                    f"Take it out of the variant, or leave `{key}` away.",
                )
                for name, overrides in variants.items()
                if path in _paths(overrides)
            ]
    return problems


def _paths(overrides: Mapping[Any, Any], start: str = "") -> Iterable[str]:
    """The paths that a variant overrides."""
    for key, value in overrides.items():
        yield f"{start}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{start}{key}.")
