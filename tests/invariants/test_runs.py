"""Whole runs: repeatable, resumable, extensible, and honest about what the model may know."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import allclose, equal

from mmcl.errors import UserError
from mmcl.evaluation.matrix import Matrix
from mmcl.experiment import Experiment
from mmcl.progress import Progress
from mmcl.recipe.load import recipe_from_dict


def recipe(**changes):
    """Three small tasks on tiny parts: about two seconds."""
    data = {
        "name": "test",
        "model": {
            "encoder": {"name": "tiny", "width": 16},
            "projector": "mlp",
            "language": {"weights": "tiny:llama", "lora": {"rank": 2}},
        },
        "stream": {"name": "shapes", "tasks": ["colour", "position", "shape"], "train_size": 32, "test_size": 8},
        "train": {"batch_size": 8, "learning_rate": 0.01},
        "evaluate": {"max_new_tokens": 8},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[last] = value
    return data


def run(folder: Path, **changes) -> Experiment:
    experiment = Experiment(recipe_from_dict(recipe(**changes), folder.parent), folder)
    experiment.run()
    return experiment


def results(folder: Path) -> dict[str, object]:
    """Everything that must be the same in two equal runs: matrix, answers, weights."""
    found: dict[str, object] = {"matrix": (folder / "matrix.csv").read_text()}
    for path in sorted(folder.glob("stages/*/predictions/*.jsonl")):
        found[str(path.relative_to(folder))] = path.read_text()
    for path in sorted(folder.glob("stages/*/trainable.safetensors")):
        found[str(path.relative_to(folder))] = load_file(path)
    return found


def assert_same(one: Path, two: Path) -> None:
    first, second = results(one), results(two)
    assert first.keys() == second.keys()
    assert len(first) > 6
    for key, value in first.items():
        if isinstance(value, str):
            assert value == second[key], key
        else:
            assert all(equal(tensor, second[key][name]) for name, tensor in value.items()), key


METHODS = [
    {"name": "replay", "rows": 12, "distill_logits": 0.5, "distill_features": 0.1},
    {"name": "projector_experts", "adapter": True},
]


def test_the_same_recipe_gives_the_same_run(tmp_path: Path) -> None:
    run(tmp_path / "one", methods=METHODS)
    run(tmp_path / "two", methods=METHODS)
    assert_same(tmp_path / "one", tmp_path / "two")
    run(tmp_path / "seed", methods=METHODS, seed=1)
    assert results(tmp_path / "seed").keys() != results(tmp_path / "one").keys()  # other hashes


@pytest.mark.parametrize("methods", [["finetune"], METHODS], ids=["finetune", "replay and experts"])
def test_a_run_that_was_killed_goes_on_to_the_same_end(tmp_path: Path, methods) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(methods=methods, train__epochs=2)))
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "mmcl.cli", "run", str(path), "--out", str(folder)]

    def killed_when(done: int, extra: float) -> None:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        while process.poll() is None and len(list(folder.glob("stages/*/DONE"))) < done:
            time.sleep(0.01)
        time.sleep(extra)
        process.send_signal(signal.SIGKILL)
        process.wait()

    killed_when(1, 0.0)  # between stages
    first = next(folder.glob("stages/01-*/DONE")).stat().st_mtime_ns
    killed_when(2, 0.3)  # somewhere in the third
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert next(folder.glob("stages/01-*/DONE")).stat().st_mtime_ns == first
    run(tmp_path / "whole", methods=methods, train__epochs=2)
    assert_same(folder, tmp_path / "whole")


def test_another_task_is_appended(tmp_path: Path) -> None:
    run(tmp_path / "grown", methods=METHODS, stream__tasks=["colour", "position"])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown").glob("stages/*/DONE")}
    assert len(kept) == 2
    run(tmp_path / "grown", methods=METHODS)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    run(tmp_path / "whole", methods=METHODS)
    assert_same(tmp_path / "grown", tmp_path / "whole")


def test_oracle_experts_forget_nothing(tmp_path: Path) -> None:
    experts = {"name": "projector_experts", "router": "oracle", "freeze_shared": True}
    experiment = run(tmp_path / "run", methods=[experts], train__epochs=3)
    matrix = Matrix.read(tmp_path / "run" / "matrix.json")
    for column in range(3):
        assert matrix.values[2][column] == matrix.values[column][column]
    metrics = json.loads((experiment.folder / "metrics.json").read_text())["metrics"]
    assert metrics["FM"] == 0
    assert metrics["BWT"] == 0
    assert json.loads((experiment.folder / "run.json").read_text())["variants"]["default"]["methods"][0][
        "needs_task_id"
    ]


def test_a_frozen_model_does_not_change(tmp_path: Path) -> None:
    run(tmp_path / "run", methods=["frozen"], evaluate__tasks="all")
    matrix = Matrix.read(tmp_path / "run" / "matrix.json")
    assert all(row == matrix.row0 for row in matrix.values)
    tensors = [load_file(path) for path in sorted((tmp_path / "run").glob("stages/*/trainable.safetensors"))]
    assert len(tensors) == 3
    assert all(equal(tensor, tensors[0][name]) for each in tensors for name, tensor in each.items())


def test_variants_share_what_is_the_same(tmp_path: Path) -> None:
    changes = {
        "stream__captions": 16,
        "stages": [{"kind": "align", "methods": ["finetune"], "trainable": ["projector"]}, {"kind": "instruct"}],
        "variants": {"plain": {"methods": ["finetune"]}, "replay": {"methods": [{"name": "replay", "rows": 8}]}},
    }
    run(tmp_path / "run", **changes)
    assert len(list((tmp_path / "run").glob("stages/01-captions-*/DONE"))) == 1
    assert len(list((tmp_path / "run").glob("stages/*/DONE"))) == 1 + 2 * 3
    one, two = (Matrix.read(tmp_path / "run" / "variants" / name / "matrix.json") for name in ("plain", "replay"))
    assert one.row0 == two.row0
    assert one.values[0] == two.values[0]  # nothing to replay in the first task


def test_seeds_and_orders_of_every_variant(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = {
        "variants": {"plain": {"methods": ["finetune"]}, "replay": {"methods": [{"name": "replay", "rows": 8}]}},
        "seeds": [0, 1],
        "orders": ["given", "reversed"],
    }
    run(folder, **changes)
    given, reverse = (Matrix.read(folder / f"variants/plain-s0-{order}/matrix.json") for order in changes["orders"])
    assert given.tasks == given.stages == reverse.tasks[::-1] == reverse.stages[::-1]
    # The model before any stage is the seed's, whatever the order and the method: it was asked once.
    assert given.row0 is not None and reverse.row0 is not None and given.row0 == reverse.row0[::-1]
    assert len(list(folder.glob("stages/00-start-*"))) == 2
    assert len(list(folder.glob("stages/*/DONE"))) == 2 * 2 * 2 * 3
    summary = json.loads((folder / "summary.json").read_text())
    about = summary["groups"]["replay"]
    assert (about["seeds"], about["orders"], len(about["runs"])) == ([0, 1], ["given", "reversed"], 4)
    runs = [json.loads((folder / f"variants/{name}/metrics.json").read_text()) for name in about["runs"]]
    for name, entry in about["metrics"].items():
        assert entry["value"] == pytest.approx(sum(each["metrics"][name] for each in runs) / 4)
        assert entry["runs"] == 2
    alone = runs[0]["intervals"]["ACC"]
    assert alone["value"] == runs[0]["metrics"]["ACC"] and alone["interval"][0] <= alone["interval"][1]
    tested = {row["metric"]: row for row in summary["differences"]}
    assert tested["ACC"]["one"] == "plain" and tested["ACC"]["runs"] == 2
    page = (folder / "report.html").read_text()
    assert "Means and intervals" in page and "2 seeds, 2 orders" in page
    written = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/DONE")}
    run(folder, **changes | {"orders": ["given"]})  # fewer of them: all is there already
    assert {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/DONE")} == written
    assert len(json.loads((folder / "summary.json").read_text())["groups"]["plain"]["runs"]) == 2


SPY = '''
from mmcl.protocols import Method

class Spy(Method):
    """Writes down what it is shown."""
    def select(self, model, samples):
        with open({path!r}, "a") as file:
            for sample in samples:
                file.write(repr((sample.task, sample.id, sample.answers, sample.group, dict(sample.metadata))) + "\\n")

class Oracle(Spy):
    """Asks for the task."""
    needs_task_id = True
'''


@pytest.mark.parametrize(("name", "task"), [("Spy", ""), ("Oracle", "colour")])
def test_nothing_but_the_question_is_shown_at_test_time(tmp_path: Path, name: str, task: str) -> None:
    (tmp_path / "spy.py").write_text(SPY.format(path=str(tmp_path / "seen.txt")))
    run(tmp_path / "run", methods=[f"./spy.py:{name}"], stream__tasks=["colour"], evaluate__zero_shot=False)
    seen = (tmp_path / "seen.txt").read_text().splitlines()
    assert len(seen) == 8
    assert set(seen) == {repr((task, "", (), "", {}))}


def test_two_processes_are_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(methods=METHODS, stream__tasks=["colour", "position"])))
    run(tmp_path / "one", methods=METHODS, stream__tasks=["colour", "position"])
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "0",
        "--standalone",
    ]
    command = [*launch, "-m", "mmcl.cli", "run", str(path), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key.endswith("safetensors"):
            for name, tensor in value.items():
                assert allclose(tensor, two[key][name], atol=1e-3), (key, name)


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task position.*loss is (nan|inf)[\s\S]*learning_rate") as caught:
        run(
            tmp_path / "run",
            stages=[
                {"kind": "instruct", "tasks": ["colour"]},
                {"kind": "instruct", "tasks": ["position"], "train": {"learning_rate": 1e30, "clip": 0.0}},
            ],
        )
    assert "finished stages are kept" in str(caught.value)
    assert len(list((tmp_path / "run").glob("stages/*/DONE"))) == 1
    assert Matrix.read(tmp_path / "run" / "matrix.json").stages == ("colour",)


def test_a_question_longer_than_the_context(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"task colour, sample (train|test)-\d+: \d+ tokens[\s\S]*takes 12[\s\S]*max_length"
    ):
        run(tmp_path / "run", model__max_length=12)


@pytest.mark.parametrize("limit", [2_000, 15_000], ids=["state", "weights"])
def test_a_full_disk_loses_nothing(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands in for a full disk: both fail in the middle of a write."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(stream__tasks=["colour"])))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import mmcl.experiment, mmcl.report;"  # before the limit: importing may write bytecode
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from mmcl.cli import main; sys.argv[0] = 'mmcl'; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "run", str(path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "room" in done.stderr or "space" in done.stderr or "full" in done.stderr
    assert not list((tmp_path / "run").glob("stages/*/DONE"))
    assert not list((tmp_path / "run").glob("stages/.*"))
    run(tmp_path / "run", stream__tasks=["colour"])  # with room again, it goes on
    assert list((tmp_path / "run").glob("stages/*/DONE"))


def manifests(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("stages/*/manifest.json"))]


def test_few_shots_are_all_that_any_method_sees(tmp_path: Path) -> None:
    run(tmp_path / "run", methods=["joint"], train__max_samples=8)
    assert [about["cost"]["samples"] for about in manifests(tmp_path / "run")] == [8, 16, 24]


def test_rows_that_reach_nothing_that_trains(tmp_path: Path) -> None:
    experts = {"name": "projector_experts", "router": "oracle", "freeze_shared": True}
    run(tmp_path / "run", methods=[experts], stream__tasks=["colour", "sum"], train__batch_size=4)
    assert Matrix.read(tmp_path / "run" / "matrix.json").values[1][1] is not None


def test_a_chain_of_stage_kinds(tmp_path: Path) -> None:
    chain = [
        {"kind": "align", "tasks": ["captions"], "trainable": ["projector"]},
        {"kind": "domain", "tasks": ["colour"]},
        {"kind": "instruct", "tasks": ["position"]},
    ]
    run(tmp_path / "run", stages=chain, stream__captions=16, stream__tasks=["colour", "position"])
    align, domain, instruct = manifests(tmp_path / "run")
    assert [about["kind"] for about in (align, domain, instruct)] == ["align", "domain", "instruct"]
    assert (domain["parent"], instruct["parent"]) == (align["hash"], domain["hash"])
    assert align["cost"]["trainable_parameters"] < domain["cost"]["trainable_parameters"]
    before, after = (load_file(path) for path in sorted((tmp_path / "run").glob("stages/*/trainable.safetensors"))[:2])
    frozen = [name for name in before if ".lora_B." in name]
    assert frozen
    assert not any(before[name].any() for name in frozen)  # did not train in the alignment
    assert all(after[name].any() for name in frozen)


METRIC = """
from mmcl.protocols import Score

class Mine:
    definition = "constant"
    follows = "nobody"
    def __call__(self, rows):
        return Score(({value},) * len(rows), {value})
"""

STREAM = """
from dataclasses import replace
from mmcl.data.streams.shapes import Shapes

class Mine:
    def tasks(self):
        return [replace(task, metric="./metric.py:Mine") for task in Shapes(tasks=["colour"], train_size=8).tasks()]
"""


def test_an_edited_metric_is_another_metric(tmp_path: Path) -> None:
    (tmp_path / "stream.py").write_text(STREAM)
    for value in (0.25, 0.75):
        (tmp_path / "metric.py").write_text(METRIC.format(value=value))
        run(tmp_path / "run", stream="./stream.py:Mine")
        assert Matrix.read(tmp_path / "run" / "matrix.json").values == ((value,),)
    assert len(list((tmp_path / "run").glob("stages/*/DONE"))) == 1  # not trained again


def test_padded_rows_are_announced(tmp_path: Path) -> None:
    for packing, said in (("padded", True), ("auto", False)):
        text = io.StringIO()
        data = recipe(model__packing=packing, stream__tasks=["colour"])
        progress = Progress(Console(file=text))
        Experiment(recipe_from_dict(data, tmp_path), tmp_path / packing, progress=progress).run()
        assert ("one padded row per question: the recipe asks for it" in text.getvalue()) == said
