from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl.errors import UserError
from mmcl.recipe.load import load_recipe, recipe_from_dict
from mmcl.recipe.reading import read_yaml
from mmcl.recipe.spec import Recipe

Data = dict[str, Any]


def write(folder: Path, data: Data) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def load(folder: Path, data: Data, *overrides: str) -> Recipe:
    return load_recipe(write(folder, data), overrides)


def where_of(caught: pytest.ExceptionInfo[UserError]) -> list[str]:
    return [problem.where for problem in caught.value.problems]


# ---------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    "text, place",
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "x.yaml:3:2"),
        ("a: 1\n\tb: 2\n", "x.yaml:2:1"),
        ("a: b: c\n", "x.yaml:1:5"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2:1"),
        ("a: !!python/object/apply:os.getcwd []\n", "x.yaml:1:4"),
        ("a: *b\n", "x.yaml:1:4"),
    ],
)
def test_syntax_error_names_line_and_column(text: str, place: str) -> None:
    with pytest.raises(UserError, match="no valid YAML") as caught:
        read_yaml(text, "x.yaml")
    assert where_of(caught) == [place]


def test_not_utf8_is_said() -> None:
    with pytest.raises(UserError, match="UTF-8"):
        read_yaml(b"a: \xff\xfe\xfa", "x.yaml")


@pytest.mark.parametrize("text", ["a: 1\nb: {c: 1, c: 2, c: 3}\na: 2\n", "b:\n- {c: 1, c: 2, c: 3}\na: 1\n'a': 2\n"])
def test_every_repeated_key_is_named(text: str) -> None:
    with pytest.raises(UserError, match="is already on line") as caught:
        read_yaml(text, "x.yaml")
    assert len(caught.value.problems) == 3


def test_alias_of_itself_is_refused_and_shared_alias_is_not() -> None:
    with pytest.raises(UserError, match="alias of itself"):
        read_yaml("a: &x\n  b: *x\n", "x.yaml")
    assert read_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n", "x.yaml") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4), ("2.5E+3", 2500.0), ("1.", 1.0), (".5", 0.5), ("-3", -3), ("0x10", 16), ("1_000", 1000),
        ("true", True), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("010", "010"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = read_yaml(f"a: {text}", "x.yaml")["a"]
    assert read == value
    assert type(read) is type(value)


def test_a_file_that_is_not_there_suggests_its_neighbours(folder: Path, data: Data) -> None:
    write(folder, data)
    with pytest.raises(UserError, match=r"Did you mean `small.yaml`"):
        load_recipe(folder / "smal.yaml")


@pytest.mark.parametrize("text", ["", "- a\n", "text\n"])
def test_a_file_without_a_mapping_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match="a recipe is a mapping"):
        load_recipe(tmp_path / "x.yaml")


def test_name_is_the_file_s_unless_stated(folder: Path, data: Data) -> None:
    del data["name"]
    assert load(folder, data).name == "small"
    assert load(folder, {**data, "name": "big"}).name == "big"


# ----------------------------------------------------------------------------------------------------------- overrides


def test_overrides_reach_every_depth(folder: Path, data: Data) -> None:
    recipe = load(
        folder,
        data,
        "train.epochs=2",
        "stages.0.train.epochs=3",
        "stages.0.tasks=[a, b]",
        "train.learning_rates.language.lora=1e-3",
        "methods=[./mine.py:Router]",
        "methods.0=./mine.py:Plain",
        "model.encoder.level=high",
        "model.language.lora=",
        "model.train=[projector]",
        "stream.order=[x]",
    )
    assert recipe.train.epochs == 2
    assert recipe.train.learning_rates == {"language.lora": 1e-3}
    assert recipe.stages[0].train == {"epochs": 3}
    assert recipe.stages[0].tasks == ("a", "b")
    assert [method.name for method in recipe.methods] == ["./mine.py:Plain"]
    assert recipe.model.encoder.options == {"size": 16, "level": "high"}
    assert recipe.model.language.lora is None
    assert recipe.stream.options == {"order": ["x"]}


def test_a_method_given_by_name_takes_an_option(folder: Path, data: Data) -> None:
    assert load(folder, data, "methods.0.strength=3").methods[0].options == {"strength": 3}


@pytest.mark.parametrize(
    "override, where, message",
    [
        ("epochs", "epochs", "no override of the form path=value"),
        ("=3", "=3", "no override"),
        ("train..epochs=3", "train..epochs=3", "no override"),
        ("seed=[", "seed=[:1:2", "no valid YAML"),
        ("trian.epochs=3", "trian", "unknown key (override `trian.epochs=3`)"),
        ("train.epochs=x", "train.epochs", "(override `train.epochs=x`)"),
        ("stages.1.kind=align", "stages.1.kind", "the list has no entry `1` (override"),
        ("stages.x.kind=align", "stages.x.kind", "the list has no entry `x`"),
        ("name.first=a", "name.first", "nothing lies below the text"),
        ("model.encoder.siz=3", "model.encoder.siz", "unknown option of the encoder"),
    ],
)
def test_a_bad_override_is_reported_as_such(folder: Path, data: Data, override: str, where: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(folder, data, override)
    assert where_of(caught) == [where]
    assert message in caught.value.problems[0].message


def test_overrides_and_file_are_reported_together(folder: Path, data: Data) -> None:
    data["seeed"] = 1
    with pytest.raises(UserError) as caught:
        load(folder, data, "epochs", "train.epochs=0")
    assert set(where_of(caught)) == {"seeed", "epochs", "train.epochs"}
    by_where = {problem.where: problem for problem in caught.value.problems}
    assert "override" not in by_where["seeed"].message


def test_the_data_given_stay_as_they_are(folder: Path, data: Data) -> None:
    before = yaml.safe_dump(data)
    data["variants"] = {"a": {"model.projector.depth": 3}}
    recipe_from_dict(data, folder).variant("a")
    del data["variants"]
    assert yaml.safe_dump(data) == before


# ------------------------------------------------------------------------------------------------------------ variants


def test_variants_merge_mappings_and_replace_lists_and_other_plugins(folder: Path, data: Data) -> None:
    data["train"] = {"learning_rates": {"projector": 1e-3}, "epochs": 2}
    data["methods"] = [{"name": "./mine.py:Plain", "strength": 2}]
    data["variants"] = {
        "merge": {
            "model": {"projector": {"depth": 3}, "encoder": {"name": "./mine.py:Eyes", "level": "high"}},
            "train": {"learning_rates": {"language.lora": 1e-4}},
        },
        "dotted": {"model.projector.depth": 5, "train.learning_rates.language.lora": 1, "stages.0.kind": "align"},
        "replace": {"methods": ["./mine.py:Router"], "model": {"encoder": {"name": "./mine.py:Eyes2"}}},
        "seeds": {"seed": 7},
    }
    source = folder / "mine.py"
    source.write_text(source.read_text() + "\n\nclass Eyes2(Eyes):\n    def __init__(self) -> None: ...\n")
    recipe = load(folder, data)
    assert recipe.variant_names == ("merge", "dotted", "replace", "seeds")

    merged = recipe.variant("merge")
    assert merged.variants == {}
    assert merged.model.projector.options == {"kind": "wide", "depth": 3}
    assert merged.model.encoder.options == {"size": 16, "level": "high"}
    assert merged.train.learning_rates == {"projector": 1e-3, "language.lora": 1e-4}
    assert merged.train.epochs == 2

    dotted = recipe.variant("dotted")
    assert dotted.model.projector.options == {"kind": "wide", "depth": 5}
    assert dotted.train.learning_rates == {"projector": 1e-3, "language.lora": 1}
    assert dotted.stages[0].kind == "align"

    replaced = recipe.variant("replace")
    assert [(method.name, method.options) for method in replaced.methods] == [("./mine.py:Router", {})]
    assert replaced.model.encoder.options == {}, "another plug-in does not inherit options"
    assert recipe.variant("seeds").seed == 7


def test_a_variant_adds_options_to_a_plug_in_given_by_name(folder: Path, data: Data) -> None:
    data["variants"] = {"a": {"stream": {"order": ["x"]}}, "b": {"stream.order": ["x"], "methods.0.strength": 3}}
    recipe = load(folder, data)
    assert recipe.variant("a").stream == recipe.variant("b").stream
    assert recipe.variant("a").stream.options == {"order": ["x"]}
    assert recipe.variant("b").methods[0].options == {"strength": 3}


def test_unknown_variant(folder: Path, data: Data) -> None:
    data["variants"] = {"replay": {}}
    recipe = load(folder, data)
    with pytest.raises(UserError, match="Did you mean `replay`"):
        recipe.variant("repaly")
    with pytest.raises(UserError, match="default"):
        recipe_from_dict({key: value for key, value in data.items() if key != "variants"}, folder).variant("x")


def test_a_mistake_of_the_recipe_is_not_repeated_for_each_variant(folder: Path, data: Data) -> None:
    data["train"] = {"epochs": 0}
    data["variants"] = {"a": {"seed": 1}, "b": {"seed": -1}}
    with pytest.raises(UserError) as caught:
        load(folder, data)
    assert sorted(where_of(caught)) == ["train.epochs", "variants.b.seed"]
