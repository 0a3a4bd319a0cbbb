from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcl.data.streams.files import Files
from mmcl.errors import Problem, UserError
from mmcl.recipe import registry
from mmcl.recipe.spec import PluginSpec
from mmcl.testing import check_stream


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A recipe's folder with `data`: two tasks that name one image folder each."""
    for task, colour in (("OCR", "red"), ("Math", "blue")):
        (tmp_path / "data" / task / "images").mkdir(parents=True)
        Image.new("RGB", (4, 4), colour).save(tmp_path / "data" / task / "images" / "1.png")
        write(tmp_path, f"{task}/train.json", [train_row("a"), train_row("b")])
        write(tmp_path, f"{task}/test.json", [{"question_id": 1, "image": "1.png", "text": "What?", "answer": task}])
    return tmp_path


def train_row(name: str, **keys: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}]
    return {"id": name, "image": "1.png", "conversations": turns, **keys}


def write(root: Path, name: str, rows: Any) -> Path:
    path = root / "data" / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def entry(task: str, **keys: Any) -> dict[str, Any]:
    files = {"train": f"{task}/train.json", "test": f"{task}/test.json", "images": f"{task}/images"}
    return {"name": task, **files, **keys}


def stream(root: Path, *tasks: dict[str, Any], folder: str = "data") -> Files:
    """Built as a recipe builds it."""
    built: Files = registry.build("streams", PluginSpec("files", {"folder": folder, "tasks": list(tasks)}), root)
    return built


def mistakes(stream: Files) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        stream.tasks()
    problems = list(caught.value.problems)
    assert all(problem.where and problem.message and problem.hint for problem in problems)
    return problems


def test_tasks_in_the_order_given(root: Path) -> None:
    math = entry("Math", metric="contains", metric_options={"mode": "paper"}, kind="domain", domain="maths")
    built = stream(root, math, entry("OCR"))
    check_stream(built)
    first, second = built.tasks()
    assert (first.name, first.metric, first.metric_options, first.kind) == (
        "Math", "contains", {"mode": "paper"}, "domain",
    )  # fmt: skip
    assert (first.domain, first.time, first.language) == ("maths", "", "")
    assert (second.name, second.metric, second.metric_options, second.kind) == ("OCR", "exact", {}, "instruct")
    assert [len(first.train), len(first.test)] == [2, 1]
    assert first.test[0].answers == ("Math",) and first.test[0].task == "Math"
    assert first.train[0].images[0].digest != second.train[0].images[0].digest


def test_paths_start_at_the_recipe_whatever_the_working_directory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "data" / "OCR")
    assert len(stream(root, entry("OCR")).tasks()) == 1
    assert len(stream(tmp_path / "elsewhere", entry("OCR"), folder=str(root / "data")).tasks()) == 1


def test_images_start_at_the_folder_by_default(root: Path) -> None:
    write(root, "here.json", [train_row("a", image="Math/images/1.png")])
    (task,) = stream(root, {"name": "t", "train": "here.json"}).tasks()
    assert task.test == () and task.train[0].images[0].open().size == (4, 4)


def test_tags_ids_and_groups(root: Path) -> None:
    write(root, "OCR/train.json", [train_row("a", topic="sign"), train_row("a", topic="page")])
    given = entry("OCR", time="2024", language="zh", ids="row", group="topic")
    del given["test"]
    (task,) = stream(root, given).tasks()
    assert (task.time, task.language) == ("2024", "zh")
    assert [(row.id, row.group, row.time, row.language) for row in task.train] == [
        ("1", "sign", "2024", "zh"), ("2", "page", "2024", "zh"),
    ]  # fmt: skip


def test_a_test_file_of_conversations(root: Path) -> None:
    write(root, "OCR/test.json", [train_row("a")])
    (task,) = stream(root, entry("OCR")).tasks()
    assert task.test[0].answers == ("x",) and task.test[0].turns[-1].role == "user"


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"trian": "a.json"}, "tasks.0.trian", "unknown"),
        ({"train": None}, "tasks.0.train", "text"),
        ({"kind": "instructions"}, "tasks.0.kind", "instruct"),
        ({"ids": "rows"}, "tasks.0.ids", "row"),
    ],
)
def test_mistakes_in_the_recipe(root: Path, changes: dict[str, Any], where: str, message: str) -> None:
    options = {"folder": "data", "tasks": [entry("OCR", **changes)]}
    (problem,) = registry.check("streams", PluginSpec("files", options), root, "stream")
    assert problem.where == f"stream.{where}" and message in problem.message


def test_no_tasks_or_no_folder(root: Path) -> None:
    (problem,) = mistakes(stream(root))
    assert problem.where == "stream.tasks" and "no tasks" in problem.message and "`train`" in problem.hint
    (problem,) = mistakes(stream(root, entry("OCR"), folder="dta"))
    assert problem.where == "stream.folder" and str(root / "dta") in problem.message and "recipe" in problem.hint


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_rows(root: Path, split: str) -> None:
    write(root, f"OCR/{split}.json", [])
    (problem,) = mistakes(stream(root, entry("Math"), entry("OCR")))
    assert problem.where == f"stream.tasks.1.{split}"
    assert f"{split}.json holds no rows" in problem.message and "add rows" in problem.hint


def test_file_is_missing(root: Path) -> None:
    (problem,) = mistakes(stream(root, entry("OCR", test="OCR/tset.json")))
    assert problem.where == "stream.tasks.0.test"
    assert str(root / "data" / "OCR" / "tset.json") in problem.message and str(root / "data") in problem.hint


def test_missing_image_folder_is_named_once(root: Path) -> None:
    (problem,) = mistakes(stream(root, entry("OCR", images="pictures"), entry("Math", images="pictures")))
    assert problem.where == str(root / "data" / "pictures")
    assert "does not exist" in problem.message and "`images`" in problem.hint


def test_missing_image_folder_of_text_only_rows(root: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "x"}]
    write(root, "OCR/train.json", [{"id": "a", "conversations": turns}])
    (problem,) = mistakes(stream(root, {"name": "t", "train": "OCR/train.json", "images": "pictures"}))
    assert problem.where == str(root / "data" / "pictures")


def test_mistakes_of_all_tasks_come_at_once(root: Path) -> None:
    broken = write(root, "OCR/train.json", '[{"id" 1}]')
    unanswered = write(root, "OCR/test.json", [{"question_id": 1, "text": "What?"}])
    outside = write(root, "Math/train.json", [train_row("a", image="../train.json"), train_row("b", image="2.png")])
    write(root, "good.json", [train_row("a")])
    third = {"name": "third", "train": "good.json", "images": "none"}
    problems = mistakes(stream(root, entry("OCR"), entry("Math", test="no.json"), third))
    assert [problem.where for problem in problems] == [
        f"{broken}:1:8",
        f"{unanswered}:1, answers",
        f"{outside}:1, image",
        str(outside),
        "stream.tasks.1.test",
        str(root / "data" / "none"),
    ]
