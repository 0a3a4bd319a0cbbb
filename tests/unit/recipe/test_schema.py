from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mmcl.errors import Problem, UserError
from mmcl.recipe.load import recipe_from_dict
from mmcl.recipe.spec import PluginSpec, StageSpec, TrainSpec

Data = dict[str, Any]


def problems_of(data: Data, folder: Path) -> dict[str, Problem]:
    with pytest.raises(UserError) as caught:
        recipe_from_dict(data, folder)
    return {problem.where: problem for problem in caught.value.problems}


def changed(data: Data, path: str, value: Any) -> Data:
    result = copy.deepcopy(data)
    node = result
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return result


def test_right_recipe_gets_all_defaults(data: Data, folder: Path) -> None:
    recipe = recipe_from_dict(data, folder)
    assert recipe.model.encoder == PluginSpec("./mine.py:Eyes", {"size": 16})
    assert recipe.stream == PluginSpec("./mine.py:Data")
    assert recipe.train == TrainSpec()
    assert recipe.stages == (StageSpec(),)
    assert recipe.model.language.lora is not None
    assert recipe.model.language.lora.rank == 4
    assert recipe.folder == folder.resolve()
    assert recipe.variant_names == ("default",)


def test_resolved_recipe_reads_back_to_itself(
    data: Data, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data["stages"] = [
        {"kind": "align", "tasks": ["a"], "train": {"epochs": 2}, "methods": [], "trainable": ["projector"]}
    ]
    data["variants"] = {"b": {"seed": 3}}
    recipe = recipe_from_dict(data, folder)
    assert recipe_from_dict(recipe.to_dict(), "/elsewhere") == recipe


TOO_MUCH = {"name": "a", "path": "b", "pth": ""}

# (path, value, where the message points, words of the message, words of the hint)
MISTAKES = [
    ("seeed", 3, "seeed", "unknown key", "`seed`"),
    ("seed", "3", "seed", 'expected a whole number, got the text "3"', "quotes"),
    ("seed", -1, "seed", "at least 0", ""),
    ("seed", None, "seed", "got null", ""),
    ("name", "a/b", "name", "`a/b` can't be a name", "letters"),
    ("model", 3, "model", "expected a mapping, got 3", "encoder"),
    ("model.encoder", "./mine.py:Eye", "model.encoder", "has no `Eye`", "`Eyes`"),
    ("model.encoder", "./nine.py:Eyes", "model.encoder", "can't be read", "recipe's folder"),
    ("model.encoder", {"size": 3}, "model.encoder", "without a name", "name:"),
    ("model.encoder.siz", 3, "model.encoder.siz", "unknown option of the encoder", "`size`"),
    ("model.encoder.size", 1.5, "model.encoder.size", "expected a whole number, got 1.5", ""),
    ("model.encoder.size", True, "model.encoder.size", "got true", ""),
    ("model.encoder.level", "hihg", "model.encoder.level", "expected `low` or `high`", "`high`"),
    ("model.encoder.scale", float("nan"), "model.encoder.scale", "expected a number", ""),
    ("model.encoder.root", "x", "model.encoder.root", "mmcl sets this itself", "out"),
    ("model.projector", "./mine.py:Bridge", "model.projector.kind", "missing", "Add `kind`"),
    ("model.projector.in_width", 3, "model.projector.in_width", "mmcl sets this itself", "out"),
    ("model.projector", "./mine.py:NoPlugin", "model.projector", "lacks tokens, forward", "protocols"),
    ("model.language", {"lora": {}}, "model.language.weights", "missing", "weights"),
    ("model.language.dtype", "fp16", "model.language.dtype", "expected `fp32` or `bf16`", "`bf16`"),
    ("model.language.lora.rank", 0, "model.language.lora.rank", "at least 1", ""),
    ("model.language.lora.dropout", 1.0, "model.language.lora.dropout", "less than 1", ""),
    ("model.language.lora", None, "model.train", "no adapters (this is the default)", "rank"),
    ("model.train", ["projektor"], "model.train", "no part `projektor`", "`projector`"),
    ("model.train", "projector", "model.train", "expected a list of text", ""),
    ("model.prompt.styl", "chat", "model.prompt.styl", "unknown key", "`style`"),
    ("stream", "shape", "stream", "no stream `shape`", "`shapes`"),
    ("stream", {"name": "./mine.py:Data", "order": 3}, "stream.order", "expected `asc` or a list of text, got 3", ""),
    (
        "stream",
        {"name": "./mine.py:Data", "files": [{"name": "a", "path": "b", "pth": ""}]},
        "stream.files.0.pth",
        "key",
        "`path`",
    ),
    ("stream", {"name": "./mine.py:Data", "files": [{"name": "a"}]}, "stream.files.0.path", "missing", "`path`"),
    ("stream", {"name": "./mine.py:Data", "files": [{"name": 3, "path": "b"}]}, "stream.files.0.name", "text", ""),
    ("methods", "replay", "methods", "expected a list", "methods: [...]"),
    ("methods", ["replya"], "methods.0", "no method `replya`", "`replay`"),
    ("methods", ["./mine.py:Plain", "./mine.py:Plain"], "methods.1", "listed twice", ""),
    ("methods", ["./mine.py:Router", "./mine.py:OtherRouter"], "methods.1", "both decide the route", ""),
    ("methods", ["./mine.py:Unresolved"], "methods.0", "name 'Missing' is not defined", "TYPE_CHECKING"),
    ("train.epochs", 0, "train.epochs", "more than 0", ""),
    ("train.warmup", 1.5, "train.warmup", "at most 1", ""),
    ("train.learning_rates", {"lora": 1e-3}, "train.learning_rates", "no part `lora`", "`language.lora`"),
    ("train.learning_rates", {"projector": 0}, "train.learning_rates.projector", "more than 0", ""),
    ("evaluate.zero_shot", "no", "evaluate.zero_shot", "expected true or false", "Write true or false"),
    ("evaluate.tasks", "al", "evaluate.tasks", "expected `seen` or `all`", "`all`"),
    ("stages", [{"kind": "instruct", "train": {"epoch": 1}}], "stages.0.train.epoch", "unknown key", "`epochs`"),
    ("stages", [{"train": {"batch_size": 0}}], "stages.0.train.batch_size", "at least 1", ""),
    ("stages", [{"tasks": []}], "stages.0.tasks", "names no task", "Leave the key out"),
    ("stages", [{"tasks": ["a", "a"]}], "stages.0.tasks", "listed twice", ""),
    ("stages", [3], "stages.0", "expected a mapping", "kind"),
    ("stages", [{"methods": ["./mine.py:Router", "./mine.py:OtherRouter"]}], "stages.0.methods.1", "route", ""),
    ("variants", {"b c": {}}, "variants", "`b c` can't be a name", "folder"),
    ("variants", {"b": 3}, "variants.b", "expected a mapping, got 3", ""),
    ("variants", {"b": {"train": {"epoch": 1}}}, "variants.b.train.epoch", "unknown key", "`epochs`"),
    ("variants", {"b": {"train.epoch": 1}}, "variants.b.train.epoch", "unknown key", "`epochs`"),
    ("variants", {"b": {"stages.3.kind": "align"}}, "variants.b.stages.3.kind", "no entry `3`", "0 to 0"),
    ("variants", {"b": {"model.encoder.siz": 1}}, "variants.b.model.encoder.siz", "unknown option", "`size`"),
    ("variants", {"b": {"variants": {}}}, "variants.b.variants", "can't have variants", ""),
]


@pytest.mark.parametrize("path, value, where, message, hint", MISTAKES, ids=[f"{m[0]}={m[1]}"[:50] for m in MISTAKES])
def test_mistake_is_named_with_its_path(
    data: Data, folder: Path, path: str, value: Any, where: str, message: str, hint: str
) -> None:
    problems = problems_of(changed(data, path, value), folder)
    assert list(problems) == [where], "this mistake and no other"
    assert message in problems[where].message
    assert hint in problems[where].hint


def test_all_mistakes_at_once(data: Data, folder: Path) -> None:
    wrong = data
    expected = set()
    for path, value, where, _, _ in MISTAKES:
        parts = path.split(".")
        if where in expected or len(parts) < 3:
            continue
        if parts[:2] == ["model", "language"] and path != "model.language.dtype":
            continue
        wrong = changed(wrong, path, value)
        expected.add(where)
    wrong = changed(wrong, "train.epochs", 0)
    wrong = changed(wrong, "methods", ["replya", "./mine.py:Router", "./mine.py:OtherRouter"])
    wrong = changed(wrong, "variants", {"b": {"evaluate": {"sample": 0}}})
    expected |= {"train.epochs", "methods.0", "methods.2", "variants.b.evaluate.sample"}
    assert len(expected) >= 10
    assert set(problems_of(wrong, folder)) == expected


def test_missing_keys_are_all_named(folder: Path) -> None:
    assert set(problems_of({}, folder)) == {"name", "model", "stream"}


def test_stage_may_train_a_named_adapter_and_expert(data: Data, folder: Path) -> None:
    data["stages"] = [{"trainable": ["experts.a", "language.lora.a"]}]
    assert recipe_from_dict(data, folder).stages[0].trainable == ("experts.a", "language.lora.a")


def test_adapters_of_a_stage_need_lora(data: Data, folder: Path) -> None:
    data["model"]["language"] = {"weights": "x"}
    data["model"]["train"] = ["projector"]
    data["stages"] = [{"trainable": ["language.lora"]}]
    assert list(problems_of(data, folder)) == ["stages.0.trainable"]


def test_what_a_method_s_constructor_refuses_is_found_too(data: Data, folder: Path) -> None:
    data["methods"] = [{"name": "./mine.py:Plain", "strength": 11}]
    data["train"] = {"epochs": 0}
    problems = problems_of(data, folder)
    assert set(problems) == {"methods.0.strength", "methods.0", "train.epochs"}
    assert problems["methods.0.strength"].hint == "Lower it."


def test_methods_of_different_ownership_combine(data: Data, folder: Path) -> None:
    data["methods"] = ["./mine.py:Router", {"name": "./mine.py:Plain", "strength": 2}]
    assert [method.name for method in recipe_from_dict(data, folder).methods] == ["./mine.py:Router", "./mine.py:Plain"]
