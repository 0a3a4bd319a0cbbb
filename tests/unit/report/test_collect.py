"""The JSON document, unfinished runs, and broken files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcl.errors import UserError
from mmcl.report import document, write
from mmcl.report.routing import routing
from mmcl.report.run import read_run

COST = {
    "stage",
    "seconds",
    "evaluation_seconds",
    "tokens",
    "image_tokens",
    "encoder_parameters",
    "trainable_parameters",
    "stored_parameters",
    "checkpoint_bytes",
    "memory_bytes",
    "peak_rss_bytes",
}


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def test_document_has_the_documented_keys_and_the_matrix(fake_run: Any) -> None:
    got = document(fake_run.folder)
    assert set(got) == {"run", "variants", "front", "summary"}
    assert got["run"] == "easy-vqa"
    assert list(got["variants"]) == ["finetune", "experts"]
    keys = {"tasks", "stages", "matrix", "row0", "cells", "row0_cells", "notes"}
    keys |= {
        "metrics",
        "intervals",
        "definitions",
        "cost",
        "routing",
        "probes",
        "losses",
        "edits",
        "knowledge",
        "curves",
        "anatomy",
    }
    for name, variant in got["variants"].items():
        assert set(variant) == keys
        assert variant["tasks"] == list(fake_run.tasks)
        assert variant["stages"] == ["shape", "color", "yes-no"]
        assert variant["matrix"] == fake_run.matrix[name]
        assert variant["row0"] == [0.05, 0.15, 0.4]
        assert [row["stage"] for row in variant["cost"]] == ["align", *variant["stages"]]
        assert all(set(row) == COST for row in variant["cost"])
        assert set(variant["definitions"]) == set(variant["metrics"])
    assert got["variants"]["finetune"]["metrics"]["FM"] == pytest.approx(0.8)
    assert isinstance(got["variants"]["finetune"]["cost"][0]["tokens"], int)
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_document_of_a_run_without_variants_has_one_named_default(make_run: Any) -> None:
    fake = make_run(alone=True)
    got = document(fake.folder)["variants"]
    assert list(got) == ["default"]
    assert got["default"]["matrix"] == fake.matrix["default"]


def test_routing_counts_true_tasks_against_experts(fake_run: Any) -> None:
    got = document(fake_run.folder)["variants"]
    assert got["finetune"]["routing"] is None
    taken = got["experts"]["routing"]
    assert taken["stage"] == "03-yes-no"
    assert taken["tasks"] == list(fake_run.tasks)
    assert taken["experts"] == [*fake_run.tasks, "base"]
    assert taken["counts"] == [[18, 0, 0, 2], [0, 18, 0, 2], [0, 0, 18, 2]]
    assert taken["per_task"] == [0.9, 0.9, 0.9]
    assert taken["accuracy"] == 0.9


def test_an_expert_that_serves_two_tasks_is_right_for_both(fake_run: Any) -> None:
    """The manifests say who owns what: color reuses the expert of shape, so only its answers through it are right."""
    path = fake_run.stage("experts", "02-color") / "manifest.json"
    edit(path, lambda manifest: manifest | {"experts": {"shape": "shape", "color": "shape"}})
    taken = routing(read_run(fake_run.folder).variants[1])
    assert taken is not None
    assert taken.own[:2] == ("shape", "shape")
    assert taken.per_task[:2] == (0.9, 0.0)


def test_without_the_manifests_word_an_expert_of_another_name_is_nobodys(fake_run: Any) -> None:
    path = fake_run.stage("experts", "03-yes-no") / "predictions" / "0-task.jsonl"
    path.write_text(path.read_text().replace('"route": "shape"', '"route": "expert-of-shape"'))
    taken = routing(read_run(fake_run.folder).variants[1])
    assert taken is not None
    assert (taken.own[0], taken.per_task[0], taken.accuracy) == (None, None, 0.9)
    assert taken.experts == (*fake_run.tasks[1:], "expert-of-shape", "base")


def test_a_stage_without_done_is_not_there(fake_run: Any) -> None:
    (fake_run.stage("finetune", "03-yes-no") / "DONE").unlink()
    (fake_run.stage("finetune", "03-yes-no") / "manifest.json").write_text("{half")
    got = document(fake_run.folder)["variants"]["finetune"]
    assert got["stages"] == ["shape", "color"]
    assert got["matrix"] == fake_run.matrix["finetune"][:2]
    assert [row["stage"] for row in got["cost"]] == ["align", "shape", "color"]
    assert "3 of 4 stages are done" in write(fake_run.folder).read_text()


def test_a_matrix_that_lacks_its_last_row_is_read_as_far_as_it_got(fake_run: Any) -> None:
    path = fake_run.folder / "variants" / "finetune" / "matrix.json"
    edit(path, lambda grid: grid | {"matrix": grid["matrix"][:1], "row0": None})
    got = document(fake_run.folder)["variants"]["finetune"]
    assert (got["stages"], got["row0"]) == (["shape"], None)


def test_a_variant_that_has_not_begun_has_its_tasks_and_no_rows(fake_run: Any) -> None:
    shutil.rmtree(fake_run.folder / "variants" / "finetune")
    for label in ("00-align", "01-shape", "02-color", "03-yes-no"):
        shutil.rmtree(fake_run.stage("finetune", label))
    got = document(fake_run.folder)["variants"]["finetune"]
    assert got["tasks"] == list(fake_run.tasks)
    assert (got["stages"], got["matrix"], got["row0"], got["metrics"], got["cost"]) == ([], [], None, {}, [])
    assert "Nothing has been scored yet" in write(fake_run.folder).read_text()


def test_a_matrix_may_name_its_rows_by_stage_name(fake_run: Any) -> None:
    path = fake_run.folder / "variants" / "finetune" / "matrix.json"
    edit(path, lambda grid: grid | {"stages": ["shape", "color", "yes-no"]})
    assert document(fake_run.folder)["variants"]["finetune"]["stages"] == ["shape", "color", "yes-no"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.json.*\n.*mmcl run"):
        document(tmp_path)


BROKEN: list[tuple[str, Callable[[str], str], str]] = [
    ("run.json", lambda text: text.replace("{", "{\n", 1) + ",", r"run\.json:2: not JSON"),
    ("run.json", lambda text: text.replace('"folder": "stages', '"folder": "../x'), "lies outside the run"),
    ("recipe.yaml", lambda text: "a: 1\nb: [", r"recipe\.yaml:2: not YAML"),
    ("environment.json", lambda text: "[]", r"environment\.json: the document should be an object"),
    ("variants/finetune/matrix.json", lambda text: text[:40], r"matrix\.json:1: not JSON"),
    ("variants/finetune/matrix.json", lambda text: text.replace("0.95", "1.95"), r"matrix\[0\]\[shape\] is 1\.95"),
    ("variants/finetune/matrix.json", lambda text: text.replace("0.95", "NaN"), "NaN is not JSON"),
    ("variants/finetune/matrix.json", lambda text: text.replace("0.95", "true"), "should be a number, not bool"),
    ("variants/finetune/matrix.json", lambda text: text.replace("[0.95, ", "["), r"matrix\[0\] has 2 cells for 3"),
    ("variants/finetune/matrix.json", lambda text: text.replace("01-shape", "01-other"), "no stage '01-other'"),
    ("variants/finetune/metrics.json", lambda text: '{"metrics": []}', "metrics should be an object"),
]


@pytest.mark.parametrize(("name", "harm", "message"), BROKEN)
def test_a_broken_file_is_named(make_run: Any, name: str, harm: Callable[[str], str], message: str) -> None:
    folder = make_run().folder
    path = folder / name
    path.write_text(harm(path.read_text()))
    with pytest.raises(UserError, match=message) as caught:
        document(folder)
    assert str(folder / name.split("/")[0]) in str(caught.value)


ROWS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda row: row.pop("text"), "text is missing"),
    (lambda row: row.pop("metadata"), "metadata is missing"),
    (lambda row: row["metadata"].pop("score"), r"metadata\.score is missing"),
    (lambda row: row["metadata"].update(score=2), r"metadata\.score is 2"),
    (lambda row: row["metadata"].update(answers="yes"), r"metadata\.answers should be a list"),
]


@pytest.mark.parametrize(("harm", "message"), ROWS)
def test_a_broken_prediction_is_named_with_its_line(
    make_run: Any, harm: Callable[[dict[str, Any]], Any], message: str
) -> None:
    fake = make_run()
    path = fake.stage("experts", "03-yes-no") / "predictions" / "0-task.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[2])
    harm(row)
    path.write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]))
    with pytest.raises(UserError, match=message) as caught:
        document(fake.folder)
    assert caught.value.problems[0].where == f"{path}:3"


def test_a_cut_off_predictions_file_is_named_with_its_line(make_run: Any) -> None:
    fake = make_run()
    path = fake.stage("experts", "03-yes-no") / "predictions" / "0-task.jsonl"
    path.write_text(path.read_text()[:-50])
    with pytest.raises(UserError, match=r"0-task\.jsonl:20: not JSON"):
        document(fake.folder)


def test_importing_the_report_loads_no_torch() -> None:
    code = "import sys, mmcl.report; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], check=True)
