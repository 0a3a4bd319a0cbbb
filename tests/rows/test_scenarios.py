"""Rows 82 to 90: realistic streams, and the scenarios of the survey."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from mmcl.data.streams.emoji_glyphs import glyphs
from mmcl.evaluation.matrix import Matrix
from mmcl.report.collect import document

ROOT = Path(__file__).parents[2]


def read(experiment, name: str, variant: str = "") -> dict:
    home = experiment.folder / "variants" / variant if variant else experiment.folder
    return json.loads((home / name).read_text())


def manifests(experiment) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(experiment.folder.glob("stages/*/manifest.json"))]


def test_row_82_realistic_streams_compose(run) -> None:
    setting = {"boundaries": "blurry", "leak": 0.25, "cycles": 2, "order": "random"}
    done = run(setting=setting, methods=["replay"], stream__tasks=["colour", "position", "shape"])
    matrix = Matrix.read(done.folder / "matrix.json")
    assert len(matrix.tasks) == 6
    assert {name.removesuffix("-2") for name in matrix.tasks} >= {"colour", "position"}
    assert all(sum(entry["mixture"].values()) >= 32 * 0.75 for entry in manifests(done))


def test_row_83_the_same_stream_as_a_classifier_and_as_a_generator(run) -> None:
    variants = {"classifier": {"evaluate": {"answers": "likelihood"}}, "generator": {"evaluate": {"answers": "greedy"}}}
    done = run(variants=variants)
    hows = {}
    for name in variants:
        matrix = Matrix.read(done.folder / "variants" / name / "matrix.json")
        assert matrix.tasks == ("colour", "position")
        hows[name] = matrix.to_dict()
    page = (ROOT / "docs" / "classic_and_llm.md").read_text()
    for line in ("Data", "Task", "Forgetting", "Evaluation", "Technique"):
        assert f"| {line}" in page


@pytest.mark.parametrize("stream", ["Periods", "Tongues"])
def test_row_84_streams_of_text_alone(run, stream: str) -> None:
    done = run(stream={"name": f"./parts.py:{stream}"}, methods=["replay"])
    assert all(entry["cost"]["image_tokens"] is None for entry in manifests(done))
    assert len(Matrix.read(done.folder / "matrix.json").tasks) == 2


def test_row_85_real_knowledge_that_changes(run) -> None:
    stream = {"name": "emoji", "tasks": ["2010", "2015"], "glyphs": 3, "views": 2, "test_views": 1, "image_size": 32}
    done = run(stream=stream)
    (period,) = read(done, "knowledge.json")["periods"]
    assert period["task"] == "2015"
    assert period["counts"]["updated"] == len({glyph.category for glyph in glyphs() if glyph.year == 2015})
    assert period["outdated"] is not None
    assert document(done.folder)["variants"]["default"]["knowledge"]["periods"] == [period]


def test_row_86_from_alignment_to_diagnosis_with_vertical_forgetting(run) -> None:
    small = {"glyphs": 4, "views": 2, "test_views": 1, "image_size": 32, "shift": "content"}
    streams = [
        {"name": "emoji", **small, "tasks": ["animals"], "form": "caption", "kind": "domain", "prefix": "domain "}
        | {"captions": 8},
        {"name": "emoji", **small, "tasks": ["animals"], "form": "vqa", "prefix": "questions "},
        {"name": "emoji", **small, "tasks": ["travel"], "form": "edit", "prefix": "corrections "},
        {"name": "emoji", **small, "tasks": ["food"], "form": "preference", "prefix": "wishes "},
    ]
    stages = [{"kind": kind} for kind in ("align", "domain", "instruct", "refine", "prefer")]
    probes = [{"name": "shapes", "tasks": ["colour"], "train_size": 4, "test_size": 4}]
    done = run(stream={"name": "join", "streams": streams}, stages=stages, probes=probes, methods=["replay"])
    assert [entry["kind"] for entry in manifests(done)] == ["align", "domain", "instruct", "refine", "prefer"]
    probed = read(done, "probes.json")
    assert probed["stages"][0] == "01-captions"
    assert len(probed["delta"]) == 5
    assert read(done, "edits.json")["edits"][0]["locality"] is not None
    assert read(done, "losses.json")["corpora"] == ["01-captions", "02-domain animals"]
    page = (done.folder / "report.html").read_text()
    assert all(text in page for text in ("General ability", "Losses on corpora", "Edits"))


def test_row_87_a_knowledge_base_grows_within_a_budget_of_bytes_and_keeps_no_picture(run) -> None:
    replay = {"name": "replay", "budget": "3KB", "store": "question"}
    run("base", methods=[replay])
    grown = run("base", methods=[replay], stream__tasks=["colour", "position", "shape"])
    costs = [entry["cost"]["memory_bytes"] for entry in manifests(grown)]
    assert len(costs) == 3
    assert all(0 < size <= 3000 for size in costs)
    states = [path for path in grown.folder.glob("stages/03-*/state*") if path.is_file()]
    assert states
    assert not any(b"\x89PNG" in path.read_bytes() for path in states)


def test_row_88_orders_of_domain_streams(run) -> None:
    assert files("mmcl.data.benchmarks").joinpath("mllm_dcl.yaml").is_file()
    done = run(stream={"name": "shapes", "train_size": 16, "test_size": 4, "order": ["text", "colour"]})
    assert Matrix.read(done.folder / "matrix.json").tasks == ("text", "colour")


def test_row_89_a_learning_curve_per_task(run) -> None:
    done = run(evaluate__curve=2)
    curves = document(done.folder)["variants"]["default"]["curves"]
    assert list(curves) == ["01-colour", "02-position"]
    assert [point["samples"] for point in curves["02-position"]] == [0, 16, 32]
    plain = run("plain")
    assert Matrix.read(done.folder / "matrix.json").to_dict() == Matrix.read(plain.folder / "matrix.json").to_dict()


def test_row_90_new_domains_and_new_classes_need_no_code_of_their_own(run) -> None:
    emoji = {"name": "emoji", "glyphs": 4, "views": 2, "test_views": 1, "image_size": 32}
    domains = run("domains", stream={**emoji, "shift": "domain", "tasks": ["colour", "noisy"]})
    assert Matrix.read(domains.folder / "matrix.json").tasks == ("colour", "noisy")
    classes = {**emoji, "shift": "content", "form": "classification", "tasks": ["food"]}
    stream = {"name": "split", "by": "answer", "per_task": 2, "stream": classes}
    grown = run("classes", stream=stream, evaluate={"answers": "likelihood", "choices": "seen"})
    assert Matrix.read(grown.folder / "matrix.json").tasks == ("classes 1-2", "classes 3-4")
