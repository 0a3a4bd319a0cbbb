"""Plug-ins that ask for plug-ins: checked like those of the recipe itself, built with what the core gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl.errors import UserError
from mmcl.recipe import registry
from mmcl.recipe.load import load_recipe, recipe_from_dict
from mmcl.recipe.spec import PluginSpec
from mmcl.stages import code_of

Data = dict[str, Any]

NESTED = '''
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcl.errors import UserError
from mmcl.protocols import Encoder, Method


class Pair:
    """Sees twice.

    Args:
        eyes: two or so.
        third: one more.
    """

    def __init__(self, *, eyes: tuple[Encoder, ...], third: Encoder | None = None, wide: int = 1) -> None:
        self.eyes, self.third, self.wide = eyes, third, wide

    def transform(self): ...

    def forward(self, pixels): ...


class Around:
    def __init__(self, *, inner: Encoder, root: Path, seed: int = 0) -> None:
        self.inner, self.root, self.seed = inner, root, seed

    def transform(self): ...

    def forward(self, pixels): ...


class Loud(Around):
    def __init__(self, *, size: int = 8) -> None:
        raise UserError("too loud", where="model.encoder.size", hint="Lower it.")


class Team(Method):
    def __init__(self, *, members: Sequence[Method] = (), teacher: Encoder | None = None) -> None:
        self.members, self.teacher = members, teacher


class Strong(Method):
    def __init__(self, *, strength: float = 1.0) -> None:
        if strength > 9:
            raise UserError("expected at most 9", where="strength")
        self.strength = strength
'''


@pytest.fixture
def folder(folder: Path) -> Path:
    (folder / "nested.py").write_text(NESTED)
    return folder


def with_encoder(data: Data, **options: Any) -> Data:
    data["model"]["encoder"] = {"name": "./nested.py:Pair", **options}
    return data


def problems_of(data: Data, folder: Path) -> dict[str, str]:
    with pytest.raises(UserError) as caught:
        recipe_from_dict(data, folder)
    assert len({problem.where for problem in caught.value.problems}) == len(caught.value.problems)
    return {problem.where: f"{problem.message} {problem.hint}" for problem in caught.value.problems}


EYES = [{"name": "./mine.py:Eyes", "size": 4}, "./mine.py:Eyes"]


def test_a_resolved_recipe_keeps_what_is_inside(data: Data, folder: Path) -> None:
    recipe = recipe_from_dict(with_encoder(data, eyes=EYES, third={"name": "tiny", "width": 8}), folder)
    assert recipe.model.encoder.options == {"eyes": EYES, "third": {"name": "tiny", "width": 8}}
    again = recipe_from_dict(recipe.to_dict(), "/elsewhere")
    assert again == recipe
    assert recipe.to_dict()["model"]["encoder"]["eyes"] == EYES


# (options, where the message points, words of the message)
MISTAKES: list[tuple[Data, str, str]] = [
    ({}, "eyes", "missing"),
    ({"eyes": "tiny"}, "eyes", 'expected a list of encoders, got the text "tiny" Write `eyes: [...]`'),
    ({"eyes": None}, "eyes", "expected a list of encoders, got null"),
    ({"eyes": ["tinny"]}, "eyes.0", "no encoder `tinny` Did you mean `tiny`"),
    ({"eyes": ["tiny", {"width": 3}]}, "eyes.1", "without a name"),
    ({"eyes": ["tiny", None]}, "eyes.1", "got null without a name"),
    ({"eyes": ["tiny", object]}, "eyes.1", "without a name"),
    ({"eyes": [{"name": "tiny", "widht": 3}]}, "eyes.0.widht", "unknown option of the encoder `tiny` Did you mean"),
    ({"eyes": [{"name": "tiny", "width": "3"}]}, "eyes.0.width", "expected a whole number"),
    ({"eyes": [{"name": "tiny", "root": "."}]}, "eyes.0.root", "mmcl sets this itself"),
    ({"eyes": ["./mine.py:Eye"]}, "eyes.0", "has no `Eye` Did you mean `Eyes`"),
    ({"eyes": ["./mine.py:Bridge"]}, "eyes.0", "is no encoder: it lacks transform"),
    ({"eyes": [], "third": 3}, "third", "expected an encoder, got 3"),
    ({"eyes": [], "third": ["tiny"]}, "third", "without a name"),
    ({"eyes": [{"name": "./nested.py:Pair"}]}, "eyes.0.eyes", "missing"),
    ({"eyes": [], "third": {"name": "./nested.py:Around", "inner": "tinny"}}, "third.inner", "no encoder `tinny`"),
]


@pytest.mark.parametrize(("options", "where", "message"), MISTAKES, ids=[str(m[0])[:60] for m in MISTAKES])
def test_a_mistake_inside_is_named_with_its_path(
    data: Data, folder: Path, options: Data, where: str, message: str
) -> None:
    problems = problems_of(with_encoder(data, **options), folder)
    assert list(problems) == [f"model.encoder.{where}"], "this mistake and no other"
    assert message in problems[f"model.encoder.{where}"]


def test_all_mistakes_inside_and_outside_at_once(data: Data, folder: Path) -> None:
    eyes = ["tinny", {"name": "tiny", "widht": 3, "tokens": "4"}, {"name": "./nested.py:Around", "inner": {"a": 1}}]
    data["train"] = {"epochs": 0}
    data["variants"] = {"b": {"model.encoder.eyes.1.widht": 4, "model.encoder.eyes.0": {"name": "tiny", "seeed": 1}}}
    assert set(problems_of(with_encoder(data, eyes=eyes, wide="x", thrid="tiny"), folder)) == {
        "model.encoder.eyes.0",
        "model.encoder.eyes.1.widht",
        "model.encoder.eyes.1.tokens",
        "model.encoder.eyes.2.inner",
        "model.encoder.wide",
        "model.encoder.thrid",
        "train.epochs",
        "variants.b.model.encoder.eyes.0.seeed",
    }


def test_overrides_and_variants_reach_inside(data: Data, folder: Path) -> None:
    with_encoder(data, eyes=["./mine.py:Eyes", {"name": "tiny", "width": 8}], third="tiny")
    data["variants"] = {"other": {"model.encoder.eyes.1": {"name": "tiny", "tokens": 9}}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data))
    recipe = load_recipe(path, ["model.encoder.eyes.0.size=4", "model.encoder.eyes.1.width=6"])
    assert recipe.model.encoder.options["eyes"] == [
        {"name": "./mine.py:Eyes", "size": 4},
        {"name": "tiny", "width": 6},
    ]
    assert recipe.variant("other").model.encoder.options["eyes"][1] == {"name": "tiny", "width": 6, "tokens": 9}


def build(folder: Path, name: str, **options: Any) -> Any:
    return registry.build("encoders", PluginSpec(f"./nested.py:{name}", options), folder, seed=5)


def test_the_constructor_gets_what_was_built(folder: Path) -> None:
    pair = build(
        folder,
        "Pair",
        eyes=[{"name": "./mine.py:Eyes", "size": 4}, {"name": "./mine.py:Eyes", "seed": 6}, "tiny"],
        third={"name": "./nested.py:Around", "inner": {"name": "./nested.py:Around", "inner": "./mine.py:Eyes"}},
        wide=2,
    )
    assert isinstance(pair.eyes, tuple)
    assert [eye.options for eye in pair.eyes[:2]] == [(4, "low", 1.0, 5), (8, "low", 1.0, 6)]
    assert pair.eyes[2].info.source == "random:5"
    assert (pair.third.root, pair.third.seed, pair.wide) == (folder, 5, 2)
    assert pair.third.inner.inner.options[-1] == 5
    assert build(folder, "Pair", eyes=[]).third is None
    assert build(folder, "Pair", eyes=[], third=None).third is None


def test_what_a_constructor_inside_refuses_names_its_place(folder: Path) -> None:
    inside = {"name": "./nested.py:Around", "inner": {"name": "./nested.py:Loud", "size": 9}}
    with pytest.raises(UserError) as caught:
        build(folder, "Pair", eyes=["tiny", inside])
    (problem,) = caught.value.problems
    assert (problem.where, problem.message, problem.hint) == (
        "model.encoder.eyes.1.inner.size",
        "too loud",
        "Lower it.",
    )


def test_methods_inside_a_method_are_constructed_to_check_them_and_encoders_are_not(data: Data, folder: Path) -> None:
    team = {"name": "./nested.py:Team", "members": ["./nested.py:Strong", {"name": "./nested.py:Strong"}]}
    data["methods"] = [team]
    recipe = recipe_from_dict(data, folder)
    (method,) = [registry.build("methods", spec, folder) for spec in recipe.methods]
    assert [member.strength for member in method.members] == [1.0, 1.0]
    team["members"][1]["strength"] = 11
    assert list(problems_of(data, folder)) == ["methods.0.members.1.strength"]
    data["methods"] = [{"name": "./nested.py:Team", "teacher": "./nested.py:Loud"}]
    assert recipe_from_dict(data, folder).methods[0].options == {"teacher": "./nested.py:Loud"}
    data["methods"] = [{"name": "./nested.py:Team", "members": data["methods"]}]
    assert recipe_from_dict(data, folder).methods[0].name == "./nested.py:Team"


def test_an_edited_file_of_a_plug_in_inside_is_another_experiment(folder: Path) -> None:
    inside = {"name": "./nested.py:Around", "inner": "./mine.py:Eyes"}
    spec = PluginSpec("./nested.py:Pair", {"eyes": ["tiny", inside]})
    before = code_of("encoders", [spec], folder)
    assert set(before) == {"./nested.py:Pair", "./nested.py:Around", "./mine.py:Eyes"}
    (folder / "mine.py").write_text((folder / "mine.py").read_text() + "\n# changed\n")
    assert code_of("encoders", [spec], folder) != before


def test_the_signature_says_what_it_takes(folder: Path) -> None:
    options = {option.name: option for option in registry.signature("encoders", "./nested.py:Pair", folder)}
    assert (options["eyes"].type, options["eyes"].required) == ("tuple[Encoder, ...]", True)
    assert (options["third"].type, options["third"].default) == ("Encoder | None", None)
    assert options["eyes"].doc == "two or so."
