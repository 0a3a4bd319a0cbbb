"""Runs on tiny parts, for one test per row of what the toolkit covers (docs/coverage.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcl.experiment import Experiment
from mmcl.recipe.load import recipe_from_dict

HERE = Path(__file__).parent  # where `./parts.py` is

Run = Callable[..., Experiment]


def tiny_recipe(**changes: Any) -> dict[str, Any]:
    """Two small tasks on tiny parts: a run takes about two seconds. `train__epochs=2` changes a key inside a key."""
    data: dict[str, Any] = {
        "name": "test",
        "model": {
            "encoder": {"name": "tiny", "width": 16},
            "projector": "mlp",
            "language": {"weights": "tiny:llama", "lora": {"rank": 2}},
            "features": {"store": False},
        },
        "stream": {"name": "shapes", "tasks": ["colour", "position"], "train_size": 32, "test_size": 8},
        "train": {"batch_size": 8, "learning_rate": 0.01},
        "evaluate": {"max_new_tokens": 8},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return data


@pytest.fixture
def learnable() -> Callable[..., dict[str, Any]]:
    """Changes with which the tiny parts really learn a task of shapes, in about three seconds each."""
    return _learnable


def _learnable(seed: int = 0, **stream: Any) -> dict[str, Any]:
    return {
        "seed": seed,
        "model__encoder": {"name": "tiny", "width": 32, "tokens": 4, "image_size": 32},
        "model__projector": "linear",
        "model__train": ["projector", "language"],
        "stream": {"name": "shapes", "train_size": 160, "test_size": 60, **stream},
        "train": {"batch_size": 8, "learning_rate": 0.003, "epochs": 6},
        "evaluate": {"answers": "likelihood", "choices": "seen", "zero_shot": False},
    }


@pytest.fixture
def make(tmp_path: Path) -> Run:
    """An experiment on `tiny_recipe` with changes, in a folder of its own (`into`), not run yet."""

    def build(into: str = "run", **changes: Any) -> Experiment:
        return Experiment(recipe_from_dict(tiny_recipe(**changes), HERE), tmp_path / into)

    return build


@pytest.fixture
def run(make: Run) -> Run:
    """The same, run."""

    def start(into: str = "run", **changes: Any) -> Experiment:
        experiment = make(into, **changes)
        experiment.run()
        return experiment

    return start
