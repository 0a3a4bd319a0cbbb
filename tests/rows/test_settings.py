"""Rows 36 to 45: task-, domain- and class-incremental settings, boundaries, growing and changing streams."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from mmcl.data.setting import ORIGIN, arrange
from mmcl.data.streams.shapes import Shapes
from mmcl.data.types import Task
from mmcl.errors import UserError
from mmcl.evaluation.matrix import Matrix
from mmcl.protocols import Method
from mmcl.stages import few

FEW = ["train-00009", "train-00029", "train-00034"]
"""By SHA-256 of task and id, so the same everywhere."""

EXPERTS = {"name": "projector_experts", "adapter": True}


def matrix(experiment) -> Matrix:
    return Matrix.read(experiment.folder / "matrix.json")


def manifest(experiment, label: str) -> dict:
    (path,) = experiment.folder.glob(f"stages/{label}-*/manifest.json")
    return json.loads(path.read_text())


def shapes(**options) -> list[Task]:
    return list(Shapes(train_size=40, test_size=8, **options).tasks())


def setting(tasks, **changes) -> list[Task]:
    plain = {"order": "given", "cycles": 1, "boundaries": "clear", "leak": 0.0, "seed": 0}
    return arrange(tasks, **{**plain, **changes})


def test_row_36_task_incremental_an_oracle_with_isolated_experts_forgets_nothing(run) -> None:
    methods = [{**EXPERTS, "router": "oracle", "freeze_shared": True}]
    done = run(methods=methods, stream__tasks=["colour", "position", "shape"])
    scores = matrix(done).values
    assert [row[0] for row in scores] == [scores[0][0]] * 3
    assert scores[1][1] == scores[2][1]
    assert json.loads((done.folder / "metrics.json").read_text())["metrics"]["FM"] == 0
    assert manifest(done, "01-colour")["methods"][0]["needs_task_id"] is True


def test_row_37_domain_incremental_no_task_id_can_be_read_at_test_time() -> None:
    (task, *_) = shapes()
    sample = task.test[0].replace(time="2024", language="en", metadata={"task": task.name})
    seen = sample.hidden()
    hidden = (seen.task, seen.id, seen.group, seen.answers, seen.time, seen.language, dict(seen.metadata))
    assert hidden == ("", "", "", (), "", "", {})
    assert not Method.needs_task_id


def test_row_38_class_incremental_an_old_class_is_a_wrong_answer_to_a_question_about_a_new_one(run) -> None:
    evaluate = {"answers": "likelihood", "choices": "seen", "zero_shot": False}
    done = run(evaluate=evaluate, stream__tasks=["shape", "text"])
    counts = {}
    for label, task in (("01-shape", "shape"), ("02-text", "shape"), ("02-text", "text")):
        (path,) = done.folder.glob(f"stages/{label}-*/predictions/{task}.json")
        counts[label, task] = json.loads(path.read_text())["choices"]
    assert counts["01-shape", "shape"] == {"count": 4, "source": "all tasks seen so far"}
    assert counts["02-text", "shape"] == counts["02-text", "text"] == {"count": 12, "source": "all tasks seen so far"}
    (answers,) = done.folder.glob("stages/02-text-*/predictions/shape.jsonl")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    new = [row for row in rows if row["text"] in "ABCDEFGH"]  # the random eye can't tell: the newest classes win
    assert new
    assert all(row["metadata"]["score"] == 0 for row in new)


def test_row_39_clear_boundaries_hooks_fire_once_each_in_order(run, tmp_path) -> None:
    run(methods=[{"name": "./parts.py:Noted", "path": str(tmp_path / "notes")}])
    notes = (tmp_path / "notes").read_text().splitlines()
    assert notes == ["begin colour, seen 0", "end colour", "begin position, seen 1", "end position"]


@pytest.mark.parametrize("leak", [0.0, 0.1, 0.5])
def test_row_40_blurry_boundaries_leak_as_much_as_asked(leak: float) -> None:
    before = shapes(tasks=["colour", "position", "shape"])
    after = setting(before, boundaries="blurry", leak=leak)
    origins = [Counter(sample.metadata.get(ORIGIN, sample.task) for sample in task.train) for task in after]
    names = [task.name for task in before]
    for place, name in enumerate(names):
        assert sum(count[name] for count in origins) == 40
        assert sum(count[name] for count in origins) - origins[place][name] == leak * 40
    assert origins[0]["shape"] == origins[2]["colour"] == 0  # only neighbours
    assert origins[0]["position"] == origins[2]["position"] == leak * 20  # half with each
    assert all(sample.task == task.name for task in after for sample in task.train)
    assert [task.test for task in after] == [task.test for task in before]


def test_row_40_no_boundary_fades_from_task_to_task() -> None:
    after = setting(shapes(tasks=["colour", "position", "shape"]), boundaries="none")
    origins = [Counter(sample.metadata.get(ORIGIN, sample.task) for sample in task.train) for task in after]
    assert sum(sum(count.values()) for count in origins) == 120
    assert 0 < origins[0]["position"] < origins[1]["position"] > origins[2]["position"] > 0
    assert origins[0]["shape"] == origins[2]["colour"] == 0


def test_row_40_methods_that_need_boundaries_refuse(make, run) -> None:
    with pytest.raises(UserError, match=r"methods\.1.*`projector_experts` needs boundaries") as error:
        make(methods=["replay", EXPERTS], setting__boundaries="blurry").run()
    assert len(error.value.problems) == 1
    done = run(methods=["replay"], setting={"boundaries": "blurry", "leak": 0.25})
    assert manifest(done, "01-colour")["mixture"] == {"colour": 24, "position": 8}


def test_row_41_a_new_task_is_appended(run) -> None:
    grown = run("grown", stream__tasks=["colour", "position"])
    kept = {path: path.stat().st_mtime_ns for path in grown.folder.glob("stages/*/DONE")}
    grown = run("grown", stream__tasks=["colour", "position", "shape"])
    assert len(kept) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    whole = run("whole", stream__tasks=["colour", "position", "shape"])
    assert matrix(grown).to_dict() == matrix(whole).to_dict()


def test_row_42_versions_of_a_task_have_columns_of_their_own(run) -> None:
    changed = run("changed", stream__tasks=["colour", "position", "colour"])
    assert matrix(changed).tasks == ("colour", "position", "colour-2")  # other answers the second time
    returned = run("returned", setting__cycles=2)
    assert matrix(returned).tasks == ("colour", "position", "colour-2", "position-2")
    assert [len(row) for row in matrix(returned).values] == [4] * 4
    assert manifest(returned, "03-colour-2")["mixture"] == {"colour": 32}
    both = setting(shapes(captions=8), cycles=2, boundaries="blurry", leak=0.5)
    assert [task.name for task in both if task.kind == "align"] == ["captions"]
    assert all(len({sample.id for sample in task.train}) == len(task.train) for task in both)


def test_row_43_several_data_sets_in_one_stage(run) -> None:
    stages = [{"tasks": ["colour", "position"], "together": True}, {"tasks": ["shape"]}]
    done = run(stages=stages, stream__tasks=["colour", "position", "shape"], methods=["replay", EXPERTS])
    found = matrix(done)
    assert found.tasks == ("colour", "position", "shape")
    assert found.stages == ("colour+position", "shape")
    assert found.values[0][:2] != (None, None)
    assert found.values[0][2] is None
    assert manifest(done, "01-colour+position")["mixture"] == {"colour": 32, "position": 32}
    assert manifest(done, "02-shape")["experts"].keys() == {"colour", "position", "shape"}
    metrics = json.loads((done.folder / "metrics.json").read_text())
    assert metrics["metrics"]["forgetting_per_task"].keys() == {"colour", "position"}
    assert metrics["warnings"] == []


def test_row_44_forgetting_grows_as_similarity_falls(run, learnable) -> None:
    lost: dict[str, list[float]] = {"1.0": [], "0.5": [], "0.0": []}
    for seed in (0, 1):
        variants = {value: {"stream": {"similarity": float(value)}} for value in lost}  # they share the first stage
        stream = {"tasks": ["colour"], "length": 2, "questions_per_image": 1}
        done = run(str(seed), variants=variants, **learnable(seed=seed, **stream))
        for value, found in lost.items():
            path = done.folder / "variants" / value / "metrics.json"
            found.append(json.loads(path.read_text())["metrics"]["FM"])
    for same, half, other in zip(*lost.values(), strict=True):
        assert same + 0.1 < half < other - 0.1, lost


def test_row_44_the_similarity_knob_keeps_as_many_answers_as_asked() -> None:
    for similarity in (0.0, 0.5, 1.0):
        old, new = shapes(tasks=["colour"], length=2, similarity=similarity)
        assert {sample.reply for sample in new.train} <= set(new.choices)
        assert len(set(old.choices) & set(new.choices)) == round(similarity * 6)


def test_row_45_twenty_stages_keep_no_more_than_ten(run) -> None:
    """Time and peak memory over eight and fifty stages: tests/invariants/test_long_streams.py."""
    kept = {}
    for length in (10, 20):
        stream = {"name": "shapes", "tasks": ["colour"], "length": length, "train_size": 8, "test_size": 2}
        done = run(str(length), stream=stream, methods=[{"name": "replay", "rows": 8}], evaluate__zero_shot=False)
        last = manifest(done, f"{length}-colour-{length}")["cost"]
        kept[length] = last["stored_parameters"], last["trainable_parameters"], last["steps"]
        assert last["memory_bytes"] < 20_000
    assert kept[10] == kept[20]


@pytest.mark.parametrize("order", ["given", "reversed", "random", "time"])
def test_orders(order: str) -> None:
    tasks = [
        Task(name=name, train=shapes()[0].train, time=time, kind=kind)
        for name, time, kind in [
            ("a", "2024-05", "instruct"),
            ("words", "", "align"),
            ("b", "2023", "instruct"),
            ("c", "2024-04-30", "instruct"),
        ]
    ]
    found = [task.name for task in setting(tasks, order=order)]
    expected = {"given": ["abc"], "reversed": ["cba"], "time": ["bca"], "random": ["bac", "bca", "cab", "cba", "acb"]}
    assert "".join(name for name in found if name != "words") in expected[order]
    assert found == [task.name for task in setting(tasks, order=order)]


def test_dates_that_cannot_be_read_are_named() -> None:
    tasks = [Task(name=name, train=(), time=time) for name, time in [("a", "2024-13"), ("b", "soon"), ("c", "2024")]]
    with pytest.raises(UserError) as error:
        setting(tasks, order="time")
    assert [problem.where for problem in error.value.problems] == ["stream, task a, time", "stream, task b, time"]


def test_few_is_the_same_on_every_machine() -> None:
    (task, *_) = shapes()
    turned = few(list(task.train)[::-1], 4)
    assert [sample.id for sample in few(task.train, 4)] == [sample.id for sample in turned[::-1]]
    assert [sample.id for sample in few(task.train, 3)] == FEW
