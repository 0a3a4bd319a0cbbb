"""Answers that are taken over are those that measuring would give; whatever could differ is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mmcl.evaluation import evaluate
from mmcl.evaluation.matrix import Matrix
from mmcl.evaluation.predictions import read_predictions
from mmcl.experiment import Experiment
from mmcl.model.generate import generate
from mmcl.recipe.load import recipe_from_dict

TASKS = ["colour", "position", "shape", "count"]


def experts(router: str, **options: object) -> dict[str, object]:
    return {"name": "projector_experts", "router": router, "freeze_shared": True, **options}


def recipe(**changes: object) -> dict[str, object]:
    data = {
        "name": "test",
        "model": {
            "encoder": {"name": "tiny", "width": 16},
            "projector": "mlp",
            "language": {"weights": "tiny:llama", "lora": {"rank": 2}},
        },
        "stream": {"name": "shapes", "tasks": TASKS, "train_size": 16, "test_size": 8},
        "train": {"batch_size": 8, "learning_rate": 0.01},
    }
    options = {"max_new_tokens": 6, **changes.pop("evaluate", {})}
    return {**data, "evaluate": options, **changes}


def run(folder: Path, **changes: object) -> Path:
    Experiment(recipe_from_dict(recipe(**changes), folder.parent), folder).run()
    return folder


def cells(folder: Path) -> dict[tuple[str, str], dict]:
    """By (stage's folder without its hash, task)."""
    found = {}
    for path in sorted(folder.glob("stages/*/predictions/*.json")):
        found[path.parents[1].name.rpartition("-")[0], path.stem] = json.loads(path.read_text())
    return found


def answers(folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    return {
        str(path.relative_to(folder)): [(row.id, row.text, row.route) for row, _ in read_predictions(path)]
        for path in sorted(folder.glob("stages/*/predictions/*.jsonl"))
    }


@pytest.mark.parametrize(
    "method",
    [
        experts("oracle"),
        experts("oracle", adapter=True, unit="residual"),
        experts("prototype"),
        experts("mixture", top_k=1),
    ],
    ids=["oracle", "adapters", "prototype", "mixture"],
)
@pytest.mark.parametrize("how", ["greedy", "likelihood"])
def test_the_matrix_is_that_of_measuring_every_cell(tmp_path: Path, method: dict[str, object], how: str) -> None:
    options = {"tasks": "all", "answers": how}
    one = run(tmp_path / "one", methods=[method], evaluate=options)
    two = run(tmp_path / "two", methods=[method], evaluate={**options, "reuse": False})
    assert Matrix.read(one / "matrix.json") == Matrix.read(two / "matrix.json")
    assert answers(one) == answers(two)
    assert not any(about["reused"] for about in cells(two).values())
    reused = sum(about["reused"] for about in cells(one).values())
    assert reused > 8
    for (stage, task), about in cells(one).items():
        (path,) = one.glob(f"stages/{stage}-*/predictions/{task}.jsonl")
        origins = Counter(row.metadata["measured_at"] for row, _ in read_predictions(path))
        own = origins.pop(path.parents[1].name, 0)
        assert (about["reused"], about["from"]) == (about["n"] - own, dict(origins))
        assert all(origin < path.parents[1].name for origin in origins)  # earlier stages only


def test_an_oracle_asks_each_question_once_per_route(tmp_path: Path) -> None:
    found = cells(run(tmp_path / "run", methods=[experts("oracle")]))
    for index, task in enumerate(TASKS, start=1):
        for stage in range(index, 5):
            about = found[f"{stage:02d}-{TASKS[stage - 1]}", task]
            assert about["reused"] == (0 if stage == index else 8), (stage, task)
    assert {key[:9] for key in found["04-count", "colour"]["from"]} == {"01-colour"}


def test_a_shared_adapter_that_trains_changes_every_answer(tmp_path: Path) -> None:
    for name, methods in {
        "experts": [experts("oracle", freeze_shared=False)],
        "finetune": ["finetune"],
    }.items():
        found = cells(run(tmp_path / name, methods=methods, evaluate={"tasks": "all"}))
        assert len(found) == 4 * 5
        assert not any(about["reused"] for about in found.values())


def test_a_changed_route_is_measured(tmp_path: Path) -> None:
    """A task that is not learned yet goes to base, then to its own expert."""
    found = cells(run(tmp_path / "run", methods=[experts("oracle")], evaluate={"tasks": "all"}))
    assert found["02-position", "count"]["reused"] == 8
    assert found["03-shape", "count"]["reused"] == 8
    assert found["04-count", "count"]["reused"] == 0


STREAM = """
from dataclasses import replace
from mmcl.data.streams.shapes import Shapes
from mmcl.data.types import Turn

class Mine:
    def tasks(self):
        first, second = Shapes(tasks=["colour", "shape"], train_size=16, test_size=8).tasks()
        test = list(first.test)
        changes = {changes}
        if changes:
            test[3] = test[3].replace(**changes)
        return [replace(first, test=test), second]
"""


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ('{"turns": (Turn("user", "<image>What now?"),)}', 1),
        ('{"images": first.train[0].images}', 1),
        ('{"answers": ("nothing",)}', 0),  # scored anew, not asked anew
    ],
)
def test_a_changed_question_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: str, measured: int
) -> None:
    options = {"methods": [experts("oracle")], "stream": "./mine.py:Mine", "evaluate": {"zero_shot": False}}
    (tmp_path / "mine.py").write_text(STREAM.format(changes="{}"))
    run(tmp_path / "run", **options)
    asked: list[str] = []

    def spy(model, questions, *rest, **more):
        asked.extend(question.id for question in questions)
        return generate(model, questions, *rest, **more)

    monkeypatch.setattr(evaluate, "generate", spy)
    (tmp_path / "mine.py").write_text(STREAM.format(changes=changes))
    run(tmp_path / "run", **options)
    assert len(asked) == measured
    run(tmp_path / "fresh", **options)
    assert answers(tmp_path / "run") == answers(tmp_path / "fresh")
    assert Matrix.read(tmp_path / "run" / "matrix.json") == Matrix.read(tmp_path / "fresh" / "matrix.json")


def test_a_run_that_goes_on_takes_over_what_lies_there(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", methods=[experts("oracle")])
    folder = tmp_path / "part"
    stream = {"name": "shapes", "tasks": TASKS[:2], "train_size": 16, "test_size": 8}
    run(folder, methods=[experts("oracle")], stream=stream)
    (lost,) = folder.glob("stages/02-*/predictions/colour.json")  # as if it had been stopped before this cell
    lost.unlink()
    run(folder, methods=[experts("oracle")])
    assert answers(folder) == answers(whole)
    for key, about in cells(whole).items():
        assert (about["reused"], about["from"]) == (cells(folder)[key]["reused"], cells(folder)[key]["from"]), key


def test_variants_take_over_from_each_other(tmp_path: Path) -> None:
    """A task that is not learned goes to base, which is the same in both."""
    variants = {"frozen": {"methods": ["frozen"]}, "experts": {"methods": [experts("oracle")]}}
    folder = run(tmp_path / "run", variants=variants, evaluate={"tasks": "all", "zero_shot": False})
    heads = json.loads((folder / "run.json").read_text())["variants"]
    first, second = (folder / heads[name]["stages"][0]["folder"] for name in variants)
    about = {name: json.loads((second / f"predictions/{name}.json").read_text()) for name in TASKS[:2]}
    assert about["colour"]["reused"] == 0
    assert about["position"]["from"] == {first.name: 8}


def test_two_processes_take_over_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(methods=[experts("oracle")])))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    command = [sys.executable, *launch, "-m", "mmcl.cli", "run", str(path), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = cells(run(tmp_path / "one", methods=[experts("oracle")])), cells(tmp_path / "two")
    assert {key: about["reused"] for key, about in one.items()} == {key: a["reused"] for key, a in two.items()}


def test_a_sample_is_the_same_everywhere_and_has_an_interval(tmp_path: Path) -> None:
    some = cells(run(tmp_path / "some", methods=["frozen"], evaluate={"sample": 5, "zero_shot": False}))
    every = cells(run(tmp_path / "every", methods=["frozen"], evaluate={"sample": 8, "zero_shot": False}))
    for about in some.values():
        assert (about["n"], about["questions"]) == (5, 8)
        low, high = about["interval"]
        assert 0 <= low <= about["corpus"] <= high <= 1
        assert "95 %" in about["interval_definition"]
    assert all(about["interval"] is None for about in every.values())
    assert not any("interval_definition" in about for about in every.values())


def test_choices_are_the_only_answers_and_are_named(tmp_path: Path) -> None:
    stream = {"name": "shapes", "tasks": TASKS, "train_size": 64, "test_size": 8}
    how = {"answers": "likelihood", "zero_shot": False}
    folder = run(tmp_path / "run", methods=["finetune"], stream=stream, evaluate=how)
    about = cells(folder)["04-count", "position"]
    assert about["answers"] == "likelihood"
    assert about["choices"] == {"count": 4, "source": "the stream"}
    (path,) = folder.glob("stages/04-*/predictions/position.jsonl")
    assert {row.text for row, _ in read_predictions(path)} <= {"top left", "top right", "bottom left", "bottom right"}
