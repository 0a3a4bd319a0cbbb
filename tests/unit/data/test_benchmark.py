"""Benchmarks of continual instruction tuning, in miniatures of their official layout."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mmcl.data.check import check_tasks
from mmcl.data.streams.benchmark import Benchmark
from mmcl.errors import UserError
from mmcl.recipe import registry
from mmcl.recipe.spec import PluginSpec

NAMES = sorted(
    path.name.removesuffix(".yaml") for path in files("mmcl.data.benchmarks").iterdir() if ".yaml" in path.name
)
ORDERS = {
    "coin": "ScienceQA TextVQA ImageNet GQA VizWiz Grounding VQAv2 OCR-VQA",
    "ucit": "ImageNet-R ArxivQA VizWiz-cap IconQA CLEVR Flickr30k",
    "mllm_dcl": "RS Med AD Sci Fin",
    "mllm_acl": "OCR Math VP APP",
    "trigap": "PMCVQA DocVQA ChartQA IconQA InfographicVQA ArxivQA Roadside ChemVQA FloodNetVQA CLEVR",
    "vqacl": "recognition location judge commonsense count action color type subcategory causal",
}


def layout(name: str) -> dict[str, Any]:
    return yaml.safe_load(files("mmcl.data.benchmarks").joinpath(f"{name}.yaml").read_text())


def first(names: Any) -> str:
    return names if isinstance(names, str) else names[0]


def write(home: Path, name: str) -> None:
    """A row of training and one of test per task, with images, where the benchmark has them."""
    table = layout(name)
    for number, task in enumerate(table["tasks"]):
        images = home / str(task.get("images") or table["images"]).replace("{task}", task["name"])
        for split in ("train", "test"):
            path = home / first(task[split])
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == "vqacl":
                key = f"COCO_{split.replace('test', 'val')}2014_{number:012d}"
                image = f"{key.split('_')[1]}/{key}.jpg"
                rows: list[Any] = [{"img_id": key, "question_id": number, "sent": "what?", "label": {"cat": 1.0}}]
                places = home / "ImgId_cate_map.json"
                known = json.loads(places.read_text()) if places.exists() else {}
                places.write_text(json.dumps({**known, key: [58, 19, 60, 35, 45][number % 5]}))
            else:
                image = f"{task['name']}/{split}.jpg"
                talk = [{"from": "human", "value": "<image>\nWhich?\nA. one\nB. two"}, {"from": "gpt", "value": "B"}]
                train = {"id": f"{number}", "image": image, "conversations": talk}
                asked = {"question_id": f"{number}", "image": image, "text": "<image>\nWhich?", "answer": "B"}
                rows = [train if split == "train" else asked]
            path.write_text(json.dumps(rows))
            target = images / image
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 100 if split == "train" else 0)).save(target)


def build(home: Path, name: str, **options: Any) -> Benchmark:
    spec = PluginSpec("benchmark", {"benchmark": name, "folder": str(home), **options})
    return registry.build("streams", spec, home)


def test_the_orders_are_the_benchmarks() -> None:
    assert {name: " ".join(task["name"] for task in layout(name)["tasks"]) for name in NAMES} == ORDERS


@pytest.mark.parametrize("scoring", ["strict", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_is_read_as_it_lies(tmp_path: Path, name: str, scoring: str) -> None:
    write(tmp_path, name)
    tasks = build(tmp_path, name, scoring=scoring).tasks()
    assert " ".join(task.name for task in tasks) == ORDERS[name]
    assert all(len(task.train) == len(task.test) == 1 for task in tasks)
    assert check_tasks(tasks)[0] == []
    for task in tasks:
        metric = registry.build("metrics", PluginSpec(task.metric, task.metric_options), tmp_path)
        assert getattr(metric, "mode", scoring) == scoring


def test_training_rows_may_have_the_same_id(tmp_path: Path) -> None:
    write(tmp_path, "mllm_dcl")
    for split in ("train", "test"):
        path = tmp_path / "RS" / f"{split}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    with pytest.raises(UserError) as error:
        build(tmp_path, "mllm_dcl", tasks=["RS"]).tasks()
    assert ["test.json" in problem.where for problem in error.value.problems] == [True]  # answers are scored by id
    (tmp_path / "RS" / "test.json").write_text(json.dumps(json.loads((tmp_path / "RS" / "test.json").read_text())[:1]))
    (task,) = build(tmp_path, "mllm_dcl", tasks=["RS"]).tasks()
    assert [sample.id for sample in task.train] == ["1", "2"]


def test_a_missing_task_is_named_and_the_rest_offered(tmp_path: Path) -> None:
    write(tmp_path, "coin")
    (tmp_path / "Instructions_Original" / "GQA" / "train.json").unlink()
    with pytest.raises(UserError) as error:
        build(tmp_path, "coin").tasks()
    (problem,) = error.value.problems
    assert "task GQA" in problem.where
    assert "no Instructions_Original/GQA/train.json" in problem.message
    assert "skip_missing: true" in problem.hint
    assert "tasks: [ScienceQA, TextVQA, ImageNet, VizWiz, Grounding, VQAv2, OCR-VQA]" in problem.hint
    assert len(build(tmp_path, "coin", skip_missing=True).tasks()) == 7
    assert [task.name for task in build(tmp_path, "coin", tasks=["VQAv2", "ScienceQA"]).tasks()] == [
        "VQAv2",
        "ScienceQA",
    ]


def test_novel_compositions_are_left_out_of_training_only(tmp_path: Path) -> None:
    write(tmp_path, "vqacl")
    with pytest.raises(
        UserError, match="holds no rows"
    ):  # the miniature's only row of each fifth task is of this group
        build(tmp_path, "vqacl", leave_out=["G1"]).tasks()
    tasks = build(tmp_path, "vqacl", leave_out=["G1"], tasks=["location", "judge"]).tasks()
    assert [task.test[0].group for task in tasks] == ["G2", "G3"]


def test_a_benchmark_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path, "mllm_dcl")
    own = {
        "images": "{task}",
        "suffix": " Be brief.",
        "tasks": [{"name": "RS", "train": "RS/train.json", "metric": "gqa"}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    (task,) = build(tmp_path, "./mine.yaml", scoring="paper").tasks()
    assert (task.metric, dict(task.metric_options), len(task.test)) == ("gqa", {"mode": "paper"}, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks: []", "a mapping with a list of `tasks`"),
        ("tasks: [{name: a, train: b}]", "it lacks metric"),
        ("tasks: [{name: a, train: b, metric: exact, colour: red}]", "unknown keys: colour"),
        ("tasks: [1]", "a task is a mapping"),
        ("order: x\ntasks: [{name: a, train: b, metric: exact}]", "unknown key `order`"),
        ("tasks: [", "broken YAML"),
    ],
)
def test_mistakes_in_a_benchmark_of_ones_own(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        build(tmp_path, "./mine.yaml").tasks()
    assert message in error.value.problems[0].message


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no benchmark `coinn`"):
        build(tmp_path, "coinn").tasks()
    with pytest.raises(UserError, match="no such tasks: XYZ"):
        build(tmp_path, "coin", tasks=["XYZ"]).tasks()
