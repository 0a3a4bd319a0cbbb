from __future__ import annotations

from pathlib import Path

import pytest

from mmcl.errors import UserError
from mmcl.recipe.load import load_recipe, recipe_from_dict

TINY = Path(__file__).parents[3] / "recipes" / "tiny.yaml"


def test_every_variant_has_every_seed_and_order() -> None:
    recipe = load_recipe(TINY, ["seeds=[3,1]", "orders=[given,reversed]"])
    assert recipe.variant_names[:4] == (
        "finetune-s3-given",
        "finetune-s3-reversed",
        "finetune-s1-given",
        "finetune-s1-reversed",
    )
    assert len(recipe.variant_names) == 12
    one = recipe.variant("replay-s1-reversed")
    assert (one.seed, one.setting.order, one.seeds, one.orders, dict(one.variants)) == (1, "reversed", (), (), {})
    assert [method.name for method in one.methods] == ["replay"]
    assert recipe.repeats["replay-s1-reversed"].group == "replay"


def test_what_is_written_is_read_back_with_its_repeats() -> None:
    recipe = load_recipe(TINY, ["seeds=[0,1]"])
    again = recipe_from_dict(recipe.to_dict())
    assert (
        again.variant_names
        == recipe.variant_names
        == tuple(f"{name}-s{seed}" for name in ("finetune", "replay", "experts") for seed in (0, 1))
    )


def test_without_variants_the_repeats_stand_alone() -> None:
    recipe = load_recipe(TINY, ["variants={}", "seeds=[0,1]"])
    assert recipe.variant_names == ("s0", "s1") and recipe.variant("s1").seed == 1
    assert recipe.runs_of("default") == ("s0", "s1")
    assert load_recipe(TINY, ["variants={}"]).variant_names == ("default",)
    assert load_recipe(TINY, ["variants={}", "orders=[random]"]).variant("random").setting.order == "random"


def test_a_variant_names_all_its_runs() -> None:
    recipe = load_recipe(TINY, ["seeds=[0,1]"])
    assert recipe.runs_of("finetune") == ("finetune-s0", "finetune-s1")
    assert recipe.runs_of("finetune-s1") == ("finetune-s1",)
    with pytest.raises(UserError, match="no variant `finetun`"):
        recipe.runs_of("finetun")


@pytest.mark.parametrize(
    ("override", "where", "message"),
    [
        ("seeds=[1,1]", "seeds", "1 is listed twice"),
        ("orders=[given,given]", "orders", "given is listed twice"),
        ("seeds=[-1]", "seeds", "expected at least 0, got -1"),
        ("seeds=3", "seeds", "expected a list"),
        ("orders=[backwards]", "orders.0", "expected `given`, `reversed`, `random` or `time`"),
        ("variants.finetune={seed: 4}", "variants.finetune.seed", "`seeds` sets it for all variants"),
        ("variants.finetune={setting: {order: time}}", "variants.finetune.setting.order", "`orders` sets it"),
        ("variants.finetune={seeds: [1]}", "variants.finetune.seeds", "a variant can't have seeds"),
    ],
)
def test_mistakes_are_named(override: str, where: str, message: str) -> None:
    given = ["seeds=[0]", "orders=[given]"]
    with pytest.raises(UserError) as caught:
        load_recipe(TINY, [*(text for text in given if text.split("=")[0] != override.split("=")[0]), override])
    assert any(problem.where == where and message in problem.message for problem in caught.value.problems)


def test_no_two_runs_have_one_name() -> None:
    recipe = load_recipe(TINY, ["variants={a: {}, a-s0: {}, a-s0-s1: {}}", "seeds=[0,1]"])
    assert len(recipe.variant_names) == 6
