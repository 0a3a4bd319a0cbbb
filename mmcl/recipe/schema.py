"""Plain YAML data -> `Recipe`, with every mistake at once.

The fields of the dataclasses in `mmcl.recipe.spec` are the schema of a recipe; the constructors of plug-ins are the
schema of their options.
"""

from __future__ import annotations

import dataclasses
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from mmcl.errors import Problem
from mmcl.recipe import registry
from mmcl.recipe.spec import ModelSpec, PluginSpec, Recipe, StageSpec, TrainSpec
from mmcl.recipe.suggest import did_you_mean
from mmcl.recipe.typed import check_value, join_path, show

PARTS = ("encoder", "encoder.lora", "projector", "experts", "language", "language.lora")
"""Parts of the model that `train`, `trainable` and `learning_rates` name; a path into a part may follow its name."""

PLUGIN_FIELDS: Mapping[str, str] = {
    "encoder": "encoders",
    "projector": "projectors",
    "stream": "streams",
    "probes": "streams",
    "objective": "objectives",
    "methods": "methods",
}
"""Fields that hold plug-ins, with the kind."""

_BOUNDS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": ("at least", operator.ge),
    "most": ("at most", operator.le),
    "above": ("more than", operator.gt),
    "below": ("less than", operator.lt),
}

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def parse(data: Any, folder: Path) -> tuple[Recipe | None, list[Problem]]:
    """Read a recipe, without looking into its variants.

    Args:
        data: what the YAML file holds.
        folder: the folder of the recipe's file; the recipe may state another one.

    Returns:
        The recipe, None where there is a mistake; and the mistakes.
    """
    stated = data.get("folder") if isinstance(data, Mapping) else None
    folder = (folder / stated if isinstance(stated, (str, Path)) else folder).resolve()
    reader = _Reader(folder)
    recipe = reader.record(Recipe, data, "")
    if isinstance(data, Mapping):
        reader.problems += _adapters_without_lora(data) + _missing_parts(data)
    if reader.problems:
        return None, list(dict.fromkeys(reader.problems))
    return dataclasses.replace(recipe, folder=folder), []


class _Reader:
    """Collects problems while it walks the data along the dataclasses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []

    def wrong(self, where: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(where, message, hint))

    def record(self, cls: Any, data: Any, where: str) -> Any:
        """An instance of the dataclass `cls` from a mapping, or None where there is a mistake."""
        before = len(self.problems)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values = self.fields(cls, data, where)
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and isinstance(data, Mapping) and name not in data:
                self.wrong(join_path(where, name), "missing", f"Add `{name}:`.")
        return cls(**values) if len(self.problems) == before else None

    def fields(self, cls: Any, data: Any, where: str) -> dict[str, Any]:
        """The values that the mapping gives to fields of `cls`."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping):
            self.wrong(where, f"expected a mapping, got {show(data)}", f"Its keys: {', '.join(fields)}.")
            return {}
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for key, value in data.items():
            path = join_path(where, key)
            if key not in fields:
                self.wrong(path, "unknown key", did_you_mean(key, fields))
            elif cls is StageSpec and key == "train":
                values[key] = self.fields(TrainSpec, value, path)
            else:
                values[key] = self.value(key, hints[key], value, path)
                self.problems += _out_of_bounds(values[key], fields[key].metadata, path)
        return values

    def value(self, name: str, hint: Any, data: Any, where: str) -> Any:
        """The value of one field: a plug-in, a record, a list of these, or a plain value."""
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        if data is None and type(None) in members:
            return None
        kind = next(member for member in members if member is not type(None))
        entry = get_args(kind)[0] if get_origin(kind) is tuple else kind
        if entry is PluginSpec and entry is kind:
            return self.plugin(PLUGIN_FIELDS[name], data, where)
        if entry is PluginSpec:
            specs = self.sequence(lambda item, path: self.plugin(PLUGIN_FIELDS[name], item, path), data, where)
            if name == "methods":
                self.problems += self.clashes(specs, where)
            return specs
        if dataclasses.is_dataclass(entry) and entry is kind:
            return self.record(entry, data, where)
        if dataclasses.is_dataclass(entry):
            return self.sequence(lambda item, path: self.record(entry, item, path), data, where)
        converted, problems = check_value(hint, data, where)
        if name == "variants" and isinstance(data, Mapping):
            converted = {str(key): value for key, value in data.items()}  # their names and their contents both count
            self.problems += problems
            problems = []
        self.problems += problems or _bad_names(name, converted, where)
        return converted

    def sequence(self, read: Callable[[Any, str], Any], data: Any, where: str) -> tuple[Any, ...]:
        """A tuple from a list."""
        if not isinstance(data, (list, tuple)):
            self.wrong(where, f"expected a list, got {show(data)}", f"Write `{where.rpartition('.')[2]}: [...]`.")
            return ()
        return tuple(read(item, join_path(where, index)) for index, item in enumerate(data))

    def plugin(self, kind: str, data: Any, where: str) -> PluginSpec | None:
        """A plug-in whose name and options are right, or None."""
        spec, problems = registry.read(kind, data, self.folder, where)
        self.problems += problems
        return spec

    def clashes(self, specs: Iterable[PluginSpec | None], where: str) -> list[Problem]:
        """Methods of one list that exclude each other."""
        problems: list[Problem] = []
        names: set[str] = set()
        owners: dict[str, str] = {}
        for index, spec in enumerate(specs):
            if spec is None:
                continue
            path = join_path(where, index)
            if spec.name in names:
                problems.append(Problem(path, f"`{spec.name}` is listed twice", "Leave one of them."))
                continue
            names.add(spec.name)
            for thing in sorted(getattr(registry.load("methods", spec.name, self.folder), "owns", ())):
                owner = owners.setdefault(thing, spec.name)
                if owner != spec.name:
                    message = f"`{spec.name}` and `{owner}` can't be combined: both decide the {thing}"
                    problems.append(Problem(path, message, "Leave one of them."))
        return problems


def _out_of_bounds(value: Any, bounds: Mapping[str, float], where: str) -> list[Problem]:
    if not isinstance(value, (int, float)):
        return []
    return [
        Problem(where, f"expected {_BOUNDS[rule][0]} {limit}, got {value}")
        for rule, limit in bounds.items()
        if not _BOUNDS[rule][1](value, limit)
    ]


def _bad_names(field: str, value: Any, where: str) -> list[Problem]:
    """Names inside plain values: parts of the model, folder names, tasks."""
    if field in ("train", "trainable", "learning_rates"):
        wrong = [part for part in value or () if not _is_part(part)]
        problems = [Problem(where, f"there is no part `{part}`", did_you_mean(part, PARTS)) for part in wrong]
        if field == "learning_rates":
            problems += [
                Problem(join_path(where, part), f"expected more than 0, got {rate}")
                for part, rate in value.items()
                if rate <= 0
            ]
        return problems
    if field in ("name", "variants"):
        names = [value] if isinstance(value, str) else list(value)
        hint = "It names a folder: use letters, digits, `.`, `_` and `-`, and begin with a letter or digit."
        return [Problem(where, f"`{name}` can't be a name", hint) for name in names if not _FOLDER_NAME.fullmatch(name)]
    if field == "tasks" and isinstance(value, tuple):
        if not value:
            return [Problem(where, "names no task", "Leave the key out for all tasks of the stage's kind.")]
        repeated = sorted({name for name in value if value.count(name) > 1})
        return [Problem(where, f"the task `{name}` is listed twice", "Leave one of them.") for name in repeated]
    return []


def _is_part(name: str) -> bool:
    part, dot, path = name.partition(".")
    return name in PARTS or (part in PARTS and bool(dot) and bool(path) and not path.startswith("."))


def _adapters_without_lora(data: Mapping[str, Any]) -> list[Problem]:
    """Adapters that train and are not there. Reads raw data, which may have other mistakes."""
    model = data.get("model")
    language = model.get("language", {}) if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(language, Mapping):
        return []
    absent = []
    if language.get("lora") is None and ("language" in model or model.get("vlm") is not None):  # else: missing is said
        absent.append(("language.lora", "the language model has no adapters", "`lora: {rank: 16}` to model.language"))
    if model.get("encoder_lora") is None:
        absent.append(("encoder.lora", "the encoder has no adapters", "`encoder_lora: {rank: 8}` to model"))
    default = next(field.default for field in dataclasses.fields(ModelSpec) if field.name == "train")
    lists = {"model.train": model.get("train", default)}
    stages = data.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, (list, tuple)) else ()):
        lists[f"stages.{index}.trainable"] = stage.get("trainable") if isinstance(stage, Mapping) else None
    return [
        Problem(
            where,
            f"`{part}` trains, but {lack}"
            + (" (this is the default)" if where == "model.train" and "train" not in model else ""),
            f"Add {cure}, or list other parts, such as `train: [projector]`.",
        )
        for part, lack, cure in absent
        for where, parts in lists.items()
        if isinstance(parts, (list, tuple)) and any(str(each).startswith(part) for each in parts)
    ]


def _missing_parts(data: Mapping[str, Any]) -> list[Problem]:
    """What a model must have: a ready one by itself, or all three parts. Reads raw data."""
    model = data.get("model")
    if not isinstance(model, Mapping):
        return []
    if model.get("vlm") is None:
        needed = {name: model.get(name) for name in ("encoder", "projector", "language")}
        language = needed["language"]
        if isinstance(language, Mapping):
            needed["language.weights"] = language.get("weights") or None
        hint = "Add `{}:`, or name a ready model by `vlm:`."
        return [
            Problem(f"model.{name}", "missing", hint.format(name.rpartition(".")[2]))
            for name, value in needed.items()
            if value is None
        ]
    language = model.get("language")
    if isinstance(language, Mapping) and language.get("weights"):
        message = "`vlm` brings its own language model"
        return [Problem("model.language.weights", message, "Leave one of them; `lora` and `dtype` may stay.")]
    return []
