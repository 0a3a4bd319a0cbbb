"""Whether features were computed or found on disk changes nothing but the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import equal

from mmcl.experiment import Experiment
from mmcl.model.features import preload
from mmcl.progress import Progress
from mmcl.recipe.load import load_recipe, recipe_from_dict
from mmcl.recipe.spec import FeaturesSpec
from mmcl.stages import plan
from mmcl.testing import tiny_assembly, tiny_tasks

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """Matrices, answers and weights of a run."""
    sizes = ["stream.train_size=16", "stream.test_size=4", "stream.captions=8", "train.epochs=1"]
    Experiment(load_recipe(TINY, [*sizes, *overrides]), folder).run()
    found: dict[str, Any] = {}
    for pattern in ("variants/*/matrix.json", "stages/*/predictions/*.jsonl"):
        found |= {str(path.relative_to(folder)): path.read_text() for path in folder.glob(pattern)}
    for path in folder.glob("stages/*/trainable.safetensors"):
        found[str(path.relative_to(folder))] = load_file(path)
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        value == other[name]
        if isinstance(value, str)
        else value.keys() == other[name].keys() and all(equal(tensor, other[name][k]) for k, tensor in value.items())
        for name, value in one.items()
    )


def test_tiny_gives_the_same_cold_warm_half_warm_and_without_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    cold = run(tmp_path / "cold")
    assert len(cold) > 20
    (data,) = tmp_path.glob("cache/features/*/*.data")
    size = data.stat().st_size
    assert same(cold, run(tmp_path / "warm"))
    assert data.stat().st_size == size > 0
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "half"))
    index = data.with_suffix(".index")
    half = tmp_path / "half" / "features" / data.parent.name
    half.mkdir(parents=True)
    (half / data.name).write_bytes(data.read_bytes())
    (half / index.name).write_bytes(index.read_bytes()[: index.stat().st_size // 80 * 40])
    assert same(cold, run(tmp_path / "again"))
    assert (half / data.name).stat().st_size == size
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "none"))
    assert same(cold, run(tmp_path / "memory", "model.features.store=false"))
    assert not (tmp_path / "none").exists()


def test_only_a_rounding_format_makes_other_stages() -> None:
    from mmcl.recipe import registry

    recipe = load_recipe(TINY, ["stream.train_size=8", "stream.test_size=4", "stream.captions=4"])
    tasks = registry.build("streams", recipe.stream, recipe.folder, seed=0).tasks()

    def hashes(**features: Any) -> list[str]:
        data = recipe.to_dict()
        data["model"]["features"] = features
        return [stage.hash for stage in plan(recipe_from_dict(data, recipe.folder).variant("finetune"), tasks)]

    exact = hashes()
    assert hashes(store=False, limit_gb=0.5) == exact
    assert all(a != b for a, b in zip(hashes(dtype="int8"), exact, strict=True))
    assert all(a != b for a, b in zip(hashes(dtype="int8"), hashes(dtype="fp16"), strict=True))
    assert "features" in json.dumps(recipe.to_dict())


@pytest.mark.parametrize("trains", [False, True])
def test_images_are_encoded_ahead_and_once_unless_the_encoder_trains(trains: bool) -> None:
    model = tiny_assembly()
    task = tiny_tasks()[0]
    if trains:
        model.set_trainable(["encoder", "projector"])
    preload(model, [task.train, task.test], Progress.silent(), "test")
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    features = model.image_features([sample.images[0] for sample in task.train])
    assert bool(calls) == trains
    assert features[0].requires_grad == trains
    assert model.features.spec == FeaturesSpec()
