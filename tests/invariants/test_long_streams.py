"""A stage costs what it does, not how many came before it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmcl import cells, stages
from mmcl.bench.matrix import stream_recipe
from mmcl.experiment import Experiment
from mmcl.recipe.load import recipe_from_dict
from mmcl.report import document

EXPERTS = {"name": "projector_experts", "router": "oracle", "freeze_shared": True}
METHODS: dict[str, list[Any]] = {
    "finetune": ["finetune"],
    "replay": [{"name": "replay", "rows": 32}],
    "experts": [EXPERTS],
    "routed": [{**EXPERTS, "router": "prototype"}],
}
NOISE = 24e6
"""Bytes of peak memory: the allocator's, and what is kept of images, prompts and answers."""


def costs(folder: Path, methods: list[Any], tasks: int) -> list[dict[str, Any]]:
    """Of each stage, run in a process of its own, whose peak memory is that of the run."""
    recipe = stream_recipe(tasks, 8, methods=methods, evaluate={"max_new_tokens": 4})
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    command = [sys.executable, "-m", "mmcl.cli", "run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return document(folder / "run")["variants"]["default"]["cost"]


def check(rows: list[dict[str, Any]], name: str, tasks: int) -> None:
    assert len(rows) == tasks
    settled = rows[2:]  # the first stages load code, and have nothing to replay
    quarter = max(2, len(settled) // 4)
    # The least of several: other work on the machine only ever adds.
    early, late = (min(row["seconds"] for row in part) for part in (settled[:quarter], settled[-quarter:]))
    assert late < 1.6 * early + 0.02, (early, late)
    assert rows[-1]["peak_rss_bytes"] - settled[0]["peak_rss_bytes"] < NOISE
    steps = [two["stored_parameters"] - one["stored_parameters"] for one, two in itertools.pairwise(rows)]
    assert set(steps) == {5248 if name in ("experts", "routed") else 0}  # the projector: what a copy predicts
    kept = [row["memory_bytes"] for row in settled]
    if name == "routed":  # a prototype per task
        assert len({two - one for one, two in itertools.pairwise(kept)}) == 1
    elif name == "replay":  # always 32 records, of which images and texts differ in size
        assert 0 < max(kept) < 2 * min(kept)
    else:
        assert set(kept) == {0}


@pytest.mark.parametrize("name", METHODS)
def test_eight_stages(tmp_path: Path, name: str) -> None:
    check(costs(tmp_path, METHODS[name], 8), name, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replay", "routed"])  # one that stays as it is, one that grows
def test_fifty_stages(tmp_path: Path, name: str) -> None:
    check(costs(tmp_path, METHODS[name], 50), name, 50)


def test_the_growth_is_what_the_method_predicts(tmp_path: Path) -> None:
    recipe = recipe_from_dict(stream_recipe(2, 4, methods=[EXPERTS]), tmp_path)
    experiment = Experiment(recipe, tmp_path / "run")
    experiment.run()
    session, *_ = experiment.open(None, "last")
    method: Any = session.methods["projector_experts"]
    first, second = document(tmp_path / "run")["variants"]["default"]["cost"]
    assert (
        second["stored_parameters"] - first["stored_parameters"] == method.growth(session.model)["parameters"] == 5248
    )


def test_questions_are_hashed_once_per_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def count(samples: Any) -> str:
        hashed.append(len(samples))
        return stages.samples_hash(samples)

    monkeypatch.setattr(cells, "samples_hash", count)
    Experiment(recipe_from_dict(stream_recipe(4, 4, methods=["frozen"]), tmp_path), tmp_path / "run").run()
    assert len(hashed) == 4
