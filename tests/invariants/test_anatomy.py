"""Planted causes of forgetting, found by the anatomy on real small models that were trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl.anatomy.evidence import Asker, look
from mmcl.anatomy.run import Options, anatomy
from mmcl.cli import main
from mmcl.errors import UserError
from mmcl.evaluation.anatomy import PARTS
from mmcl.experiment import Experiment
from mmcl.progress import Progress
from mmcl.recipe import registry
from mmcl.recipe.load import recipe_from_dict
from mmcl.recipe.spec import PluginSpec
from mmcl.revisit import open_run

HERE = Path(__file__).parent  # where `./plants.py` is
SHAPES = {
    "name": "shapes",
    "tasks": ["colour", "position"],
    "train_size": 320,
    "test_size": 60,
    "questions_per_image": 1,
}


def recipe(stream: Any, methods: list[Any], **more: Any) -> dict[str, Any]:
    """A tiny model that learns a task of `shapes` within three seconds: its language model trains as a whole."""
    tiny = yaml.safe_load((HERE.parents[1] / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
    data = {
        "name": "test",
        "model": tiny["model"] | {"features": {"store": False}},
        "stream": stream,
        "methods": methods,
        "train": {"batch_size": 8, "learning_rate": 0.003, "epochs": 4},
        "evaluate": {"max_new_tokens": 24},
    }
    return data | more


PLANTED = {
    "format": recipe("./plants.py:Sentences", ["finetune"]),
    "vision": recipe(
        SHAPES,
        ["./plants.py:Scramble", {"name": "replay", "budget": "20MB"}],
        stages=[
            {"kind": "instruct", "tasks": ["colour"]},
            {"kind": "instruct", "tasks": ["position"], "trainable": ["language"]},
        ],
    ),
    "routing": recipe(
        {**SHAPES, "captions": 320},
        [{"name": "./plants.py:Lost", "adapter": True, "freeze_shared": True}],
        stages=[
            {"kind": "align", "methods": ["finetune"], "trainable": ["projector", "language"]},
            {"kind": "instruct"},
        ],
    ),
    "prior": recipe(
        "./plants.py:Hearsay",
        ["finetune"],
        stages=[
            {"kind": "instruct", "tasks": ["colour"]},
            {"kind": "instruct", "tasks": ["hearsay"], "trainable": ["language"]},
        ],
    ),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run with a planted cause; each is trained once."""
    made: dict[str, Path] = {}

    def run(cause: str) -> Path:
        if cause not in made:
            made[cause] = tmp_path_factory.mktemp(cause)
            Experiment(recipe_from_dict(PLANTED[cause], HERE), made[cause]).run()
        return made[cause]

    return run


def of_colour(folder: Path, **options: int) -> dict[str, Any]:
    (document,) = anatomy(folder, options=Options(**options)).values()
    (entry,) = [entry for entry in document["tasks"] if entry["task"] == "colour"]
    found: dict[str, Any] = entry
    return found


def of_all(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = anatomy(folder, options=Options(relearn=0))["default"]["tasks"]
    return found


@pytest.mark.parametrize("cause", PLANTED)
def test_a_planted_cause_is_found(planted: Callable[[str], Path], cause: str) -> None:
    entry = of_colour(planted(cause), relearn=0)
    assert entry["before"] > 0.8  # it was learned
    assert entry["loss"] > 0.5  # and lost
    assert entry["parts"][cause] >= 0.8 * entry["loss"], entry["parts"]
    assert entry["rest"] + sum(entry["parts"].values()) == pytest.approx(entry["loss"])
    assert entry["before"] - entry["after"] == pytest.approx(entry["loss"] - entry["gained"])
    assert {example["part"] for example in entry["examples"]} <= {*PARTS, "rest"}
    assert sum(example["part"] == cause for example in entry["examples"]) == 6


@pytest.mark.parametrize("kind", ["tiny:llava", "tiny:qwen2_5_vl", "padded", "likelihood"])
def test_any_model_and_any_way_of_asking(tmp_path: Path, kind: str) -> None:
    """The same questions learned with opposite answers, half of them without an image: no image is in question."""
    data = recipe("./plants.py:Opposites", ["finetune"])
    if kind.startswith("tiny"):
        data["model"] = {"vlm": kind, "train": ["projector", "language"], "features": {"store": False}}
    elif kind == "padded":
        data["model"]["packing"] = "padded"
    else:
        data["evaluate"] = {"answers": "likelihood"}
    Experiment(recipe_from_dict(data, HERE), tmp_path).run()
    (document,) = anatomy(tmp_path, options=Options(relearn=8, steps=2)).values()
    (entry,) = document["tasks"]
    assert (entry["before"], entry["after"]) == (1.0, 0.0)
    # Without an image an answer is not called blind. The run that ranks answers had no other to fall back on.
    assert entry["parts"] == dict.fromkeys(PARTS, 0.0) | {"prior": 0.5, "language": 0.5}
    assert entry["images"]["before"] == dict.fromkeys(("own", "blank", "foreign", "disordered"), 1.0)
    assert entry["images"]["after"] == dict.fromkeys(("own", "blank", "foreign", "disordered"), 0.0)


def test_nothing_is_asked_for_a_side_that_did_not_change(
    planted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three kinds of images at two stages, the language side, which is both sides, and two rankings."""
    asked = []
    monkeypatch.setattr(Asker, "answers", lambda *a, own=Asker.answers: asked.append(a[4]) or own(*a))
    of_colour(planted("prior"), relearn=0, sample=11)  # not looked at in this way before
    images = ["blank images", "foreign images", "disordered images"]
    assert asked == [*images, *images, "own route", "language", "ranking", "ranking without the image"]


def test_what_was_learned_from_images_needs_them(planted: Callable[[str], Path]) -> None:
    """Before: a right answer needs the image, whatever the order of its tokens. After hearsay: nothing changes it."""
    images = of_colour(planted("prior"), relearn=0)["images"]
    assert images["before"]["disordered"] > 0.8 > 0.4 > max(images["before"]["blank"], images["before"]["foreign"])
    assert len(set(images["after"].values())) == 1


@pytest.mark.parametrize(("cause", "stage", "least", "most"), [("prior", "last", 60, 60), ("prior", "colour", 0, 15)])
def test_answers_that_do_not_come_from_the_image(
    planted: Callable[[str], Path], cause: str, stage: str, least: int, most: int
) -> None:
    """All of the 60 after hearsay; before it only those whose answer happens to be that to other images too."""
    run = open_run(planted(cause))
    session, chosen, _, (colour, _) = run.open(None, stage)
    session.model.set_trainable(())
    metric = registry.build("metrics", PluginSpec("exact"), HERE)
    asker = Asker(metric, metric, run.recipe.evaluate, None, Progress.silent(), "test")
    routes = session.active(chosen).select(session.model, colour.test)
    texts = asker.answers(session.model, colour.test, routes, "test")
    found = look(session.model, asker, colour.test, routes, texts, colour.test)
    assert least <= len(found.unmoved) <= most


def test_drift_tells_which_side_moved(planted: Callable[[str], Path]) -> None:
    frozen, scrambled = (of_colour(planted(cause), relearn=0)["drift"]["images"] for cause in ("prior", "vision"))
    assert frozen["cosine"] == pytest.approx(1)
    assert frozen["cka"] == pytest.approx(1)
    assert scrambled["cosine"] < 0.5 < scrambled["cka"]  # channels that change places keep the geometry


def test_what_is_only_unreadable_comes_back_in_a_few_steps(planted: Callable[[str], Path]) -> None:
    known = of_colour(planted("format"), relearn=32, steps=16)["relearning"]
    assert known["steps"] == [0, 1, 2, 4, 8, 16]
    assert known["forgotten"][-1] > 0.6 > 0.3 > known["parent"][-1]


def test_a_second_look_takes_what_is_there_and_leaves_the_run_alone(
    planted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planted("vision")
    before = {path: path.read_bytes() for path in sorted((folder / "stages").rglob("*")) if path.is_file()}
    first = of_colour(folder, relearn=8, steps=2)
    written = (folder / "anatomy.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("mmcl.anatomy.run.gather", None)  # nothing is asked
        assert of_colour(folder, relearn=8, steps=2) == first
    assert (folder / "anatomy.json").read_bytes() == written
    assert of_colour(folder, relearn=8, steps=2, sample=20)["sampled"] == 20
    other = {"key": "of another run", "task": "gone"}
    (folder / "anatomy.json").write_text(json.dumps({"tasks": [other]}))
    assert [entry["task"] for entry in of_all(folder)] == ["colour"]
    assert {path: path.read_bytes() for path in sorted((folder / "stages").rglob("*")) if path.is_file()} == before


def test_the_command(planted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = planted("format")
    assert main(["anatomy", str(folder), "--relearn", "0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["default"]
    assert document["stage"] == "02-told"
    counts = document["confusion"]["counts"]
    assert counts[0][1] >= 50  # colours are asked, and answered in the sentences of the other task
    assert "Why it was forgotten" in (folder / "report.html").read_text(encoding="utf-8")
    assert main(["anatomy", str(folder), "--relearn", "0"]) == 0
    assert "answer format" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["colr"]}, "no task `colr` was learned up to 02-told"),
        ({"stage": "colour"}, "nothing was learned before 01-colour"),
        ({"stage": "nope"}, "there is no finished stage `nope`"),
        ({"variant": "nope"}, "nope"),
    ],
)
def test_mistakes(planted: Callable[[str], Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        anatomy(planted("format"), **options)


def test_answers_that_are_not_there(planted: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(planted("format"), folder)
    for path in folder.glob("stages/02-told-*/predictions/colour.json"):
        path.unlink()
    with pytest.raises(UserError, match="task colour has no answers after 02-told"):
        anatomy(folder)
