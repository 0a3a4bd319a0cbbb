"""Rows 1 to 13: forgetting, transfer, continuity, conflict between tasks and with time."""

from __future__ import annotations

import json
from itertools import pairwise
from operator import ge
from pathlib import Path

import pytest
import torch
from torch import equal

from mmcl.data.types import Sample, Task, Turn
from mmcl.evaluation.ability import fuar, x_delta
from mmcl.evaluation.continual import acc, bwt, fm, fwt, mft, transfer
from mmcl.evaluation.curve import samples_to
from mmcl.evaluation.knowledge import changes
from mmcl.evaluation.matrix import Matrix
from mmcl.report.collect import document
from mmcl.testing import tiny_assembly, tiny_tasks
from mmcl.training.checkpoint import load_tensors
from mmcl.training.conflict import gradient_cosine
from mmcl.training.objectives.answers import Answers

GOLDEN = Path(__file__).parents[1] / "golden"


def read(experiment, name: str, variant: str = "") -> dict:
    home = experiment.folder / "variants" / variant if variant else experiment.folder
    return json.loads((home / name).read_text())


def manifests(experiment) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(experiment.folder.glob("stages/*/manifest.json"))]


def test_row_01_fine_tuning_forgets_and_a_frozen_model_does_not(run, learnable) -> None:
    variants = {"finetune": {"methods": ["finetune"]}, "frozen": {"methods": ["frozen"]}}
    for seed in (0, 1, 2):
        changes = learnable(seed=seed, tasks=["colour"], length=2, questions_per_image=1, test_size=30)
        changes["evaluate"]["choices"] = "task"
        done = run(str(seed), variants=variants, **changes)
        assert read(done, "metrics.json", "finetune")["metrics"]["FM"] > 0.1
        assert read(done, "metrics.json", "frozen")["metrics"]["FM"] == 0


def test_row_02_a_chain_of_stages_hands_its_weights_on(run) -> None:
    stages = [{"kind": "align"}, {"kind": "domain", "tasks": ["position"]}, {"kind": "instruct", "tasks": ["colour"]}]
    done = run(stages=stages, stream__captions=16)
    found = manifests(done)
    assert [entry["kind"] for entry in found] == ["align", "domain", "instruct"]
    assert all(later["parent"] == earlier["hash"] for earlier, later in pairwise(found))
    _, _, planned = done.stages("default")
    for stage in planned[1:]:
        session = done.at(stage, planned, done.recipe)
        saved = load_tensors(done.folder / stage.folder / "trainable.safetensors")
        assert saved
        assert all(equal(tensor, session.model.state()[name]) for name, tensor in saved.items())


def test_row_03_the_same_tasks_in_two_orders(run) -> None:
    variants = {"given": {}, "reversed": {"setting": {"order": "reversed"}}}
    done = run(variants=variants)
    one, other = (Matrix.read(done.folder / "variants" / name / "matrix.json") for name in variants)
    assert one.tasks == other.tasks[::-1] == ("colour", "position")
    assert one.to_dict() != other.to_dict()


def test_row_04_vertical_forgetting_equals_the_hand_values() -> None:
    cases = json.loads((GOLDEN / "ability_deltas.json").read_text())["cases"]
    plain = [case for case in cases if isinstance(case["prediction"], list) and not case["id"].startswith("wtl")]
    assert len(plain) > 10
    for case in plain:
        assert x_delta(case["prediction"], case["references"][0]) == pytest.approx(case["score"], abs=1e-9), case["id"]


def test_row_04_probes_are_reported_apart_from_the_tasks(run) -> None:
    probes = [{"name": "shapes", "tasks": ["shape"], "train_size": 4, "test_size": 8}]
    done = run(probes=probes, stream__captions=16, stages=[{"kind": "align"}, {"kind": "instruct"}])
    found = read(done, "probes.json")
    assert found["probes"] == ["shape"]
    assert found["stages"] == ["01-captions", "02-colour", "03-position"]  # the aligned model is what they start from
    assert found["delta"] == [row[0] - found["scores"][0][0] for row in found["scores"]]
    assert not list(done.folder.glob("stages/00-*/probes/*"))
    assert Matrix.read(done.folder / "matrix.json").tasks == ("colour", "position")
    assert "shape" not in json.dumps([entry["mixture"] for entry in manifests(done)])


def test_row_05_horizontal_forgetting_and_transfer_equal_the_reference() -> None:
    matrix = Matrix(["a", "b", "c"], ["a", "b", "c"], [[0.9, 0.1, 0], [0.6, 0.8, 0], [0.5, 0.9, 0.7]])
    assert fm(matrix) == pytest.approx((0.4 - 0.1) / 2)
    assert bwt(matrix) == pytest.approx((-0.4 + 0.1) / 2)  # all 44 matrices: tests/golden/test_cl_matrices.py


def test_row_06_what_the_domain_stage_is_worth(run, learnable) -> None:
    changes = learnable(tasks=["shape", "colour"], questions_per_image=1, captions=200, test_size=30)
    changes["evaluate"]["curve"] = 6
    tasks = [{"kind": "instruct", "tasks": ["colour"]}]
    variants = {"without": {"stages": tasks}, "with": {"stages": [{"kind": "align"}, *tasks]}}
    done = run(variants=variants, **changes)
    curves = {entry["parent"]: entry for entry in manifests(done) if entry["name"] == "colour"}
    assert len(curves) == 2
    found = {}
    for entry in curves.values():
        points = entry["curve"]
        assert [point["samples"] for point in points] == [0, 160, 320, 480, 640, 800, 960]
        found["with" if entry["label"].startswith("02") else "without"] = points
    last = {name: points[-1]["scores"]["colour"] for name, points in found.items()}
    reached = {name: samples_to(points, "colour", 0.5) for name, points in found.items()}
    assert last["with"] >= last["without"]
    assert reached["with"] is not None
    assert reached["without"] is None or reached["with"] < reached["without"]
    assert read(done, "matrix.json", "with")["matrix"][0][0] == last["with"]  # the curve ends where the cell is


def test_row_07_and_row_15_time(run) -> None:
    done = run(stream={"name": "./parts.py:Periods"}, setting__order="time")
    matrix = Matrix.read(done.folder / "matrix.json")
    assert matrix.tasks == matrix.stages == ("2023", "2024")
    _, _, planned = done.stages("default")
    for stage in planned[1:]:
        assert stage.task is not None
        assert all(sample.time <= stage.task.time for sample in stage.task.train)


def test_row_08_forward_transfer_only_where_a_factor_is_shared(run, learnable) -> None:
    stream = {"tasks": ["colour"], "length": 2, "questions_per_image": 1, "test_size": 30}
    changes = learnable(**stream)
    changes["evaluate"] = {"answers": "likelihood", "tasks": "all"}
    done = run(variants={name: {"stream": {"similarity": float(name)}} for name in ("1.0", "0.0")}, **changes)
    found = {name: Matrix.read(done.folder / "variants" / name / "matrix.json") for name in ("1.0", "0.0")}
    start = {name: dict(zip(matrix.tasks, matrix.row0 or (), strict=True)) for name, matrix in found.items()}
    assert fwt(found["1.0"], start["1.0"]) > 0.3
    assert abs(fwt(found["0.0"], start["0.0"])) < 0.3


def test_row_09_fuar_equals_the_hand_values() -> None:
    cases = json.loads((GOLDEN / "fuar.json").read_text())["cases"]
    assert len(cases) > 10
    for case in cases:
        given = case["prediction"]
        if "invariant" in given:
            before = case["references"][0]
            value = fuar(
                [before["invariant"] - given["invariant"]],
                [given["updated"] - before["updated"]],
                [given["new"] - before["new"]],
            )
        else:
            value = fuar(given["forgotten_gaps"], given["updated_gaps"], given["acquired_gaps"])
        assert value == (None if case["score"] is None else pytest.approx(case["score"])), case["id"]


def test_row_09_a_changed_answer_is_an_update_and_no_forgetting(run, learnable) -> None:
    changed = learnable()
    changed["stream"] = {"name": "./parts.py:Periods"}
    done = run(setting__order="time", **changed)
    found = read(done, "knowledge.json")
    (period,) = found["periods"]
    assert period["counts"] == {"updated": 1, "invariant": 1, "new": 1}
    matrix = Matrix.read(done.folder / "matrix.json")
    assert matrix.values[1][1] == 1.0
    assert fm(matrix) > 0  # the old answer about Bob is gone from the old column, as it should be
    assert period["outdated"] == 0
    assert period["updated"] == 1
    assert period["acquired"] == 1
    assert period["forgotten"] == pytest.approx(matrix.values[0][0] - (3 * matrix.values[1][0]) / 2)
    assert found["FUAR"] == pytest.approx(max(0.0, period["forgotten"]) / 2)


def test_row_09_a_stream_may_tag_what_changed() -> None:
    def task(name: str, answer: str, **metadata: str) -> Task:
        return Task(name, (), [Sample("q", name, (Turn("user", "who?"),), answers=(answer,), metadata=metadata)])

    tasks = [task("a", "Ann"), task("b", "ann "), task("c", "Bob"), task("d", "Cem", knowledge="new")]
    assert [tags["q"] for tags in changes(tasks)] == ["new", "invariant", "updated", "new"]


def test_row_10_experts_with_a_router_beside_one_shared_projector(run) -> None:
    def experts(router: str) -> dict:
        return {"methods": [{"name": "projector_experts", "router": router, "freeze_shared": True}]}

    variants = {"shared": {"methods": ["finetune"]}, "router": experts("prototype"), "oracle": experts("oracle")}
    done = run(variants=variants)
    found = document(done.folder)["variants"]
    assert found["shared"]["routing"] is None
    assert 0 <= found["router"]["routing"]["accuracy"] <= found["oracle"]["routing"]["accuracy"] == 1
    page = (done.folder / "report.html").read_text()
    assert all(f">{name}<" in page for name in variants)
    assert "reads the task" in page or "oracle" in page


def test_row_12_transfer_between_tasks_and_their_gradients() -> None:
    matrix = Matrix(["a", "b"], ["a", "b"], [[0.9, 0.2], [0.5, 0.8]], row0=[0.1, 0.1])
    assert transfer(matrix) == {
        "a": {"a": pytest.approx(0.8), "b": pytest.approx(0.1)},
        "b": {"a": pytest.approx(-0.4), "b": pytest.approx(0.6)},
    }
    model = tiny_assembly(train=("language",))
    task, _ = tiny_tasks()
    yes, no = (
        [sample.replace(turns=(*sample.turns[:-1], Turn("assistant", word))) for sample in task.train]
        for word in ("yes", "no")
    )
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=3e-3)
    for _ in range(60):  # a model that finds both answers likely: what one gains, the other loses
        for batch in model.pack([*yes, *no]):
            loss = Answers().loss(model, batch, model.forward(batch))["tokens"]
            (loss.total / loss.count).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert gradient_cosine(model, yes, yes, Answers()) == pytest.approx(1, abs=1e-4)
    assert gradient_cosine(model, yes, no, Answers()) < 0


def test_row_13_a_stage_is_reproduced_from_its_parent_bit_for_bit(run) -> None:
    done = run()
    (folder,) = done.folder.glob("stages/02-*")
    before = load_tensors(folder / "trainable.safetensors")
    (folder / "DONE").unlink()
    run()
    after = load_tensors(folder / "trainable.safetensors")
    assert before.keys() == after.keys()
    assert all(equal(tensor, after[name]) for name, tensor in before.items())
    first, second = manifests(done)
    assert second["parent"] == first["hash"]


def test_row_11_balance_is_never_one_number_and_one_command_gives_the_front(run) -> None:
    variants = {f"ratio-{ratio}": {"methods": [{"name": "replay", "ratio": ratio}]} for ratio in (0.0, 0.25, 0.5)}
    done = run(variants=variants)
    found = document(done.folder)
    points = {}
    for name, variant in found["variants"].items():
        matrix = Matrix(variant["tasks"], variant["stages"], variant["matrix"])
        metrics = variant["metrics"]
        points[name] = (metrics["ACC"], metrics["MFT"], -metrics["FM"])
        assert points[name] == (acc(matrix), mft(matrix), -fm(matrix))
    better = {
        name: [other for other, theirs in points.items() if theirs != mine and all(map(ge, theirs, mine))]
        for name, mine in points.items()
    }
    assert found["front"] == [name for name, others in better.items() if not others] != []
    assert "Pareto front" in (done.folder / "report.html").read_text()
