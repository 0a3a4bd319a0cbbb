"""The commands in this process, with stand-ins for the parts that train."""

from __future__ import annotations

import errno
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmcl.cli import main
from mmcl.errors import Problem, UserError

RECIPE = """\
# A small recipe.
# Its summary goes on.
#
# Not the summary.
model:
  encoder: "./mine.py:Eyes"
  projector: "./mine.py:Bridge"
  language: {weights: somewhere, lora: {rank: 2}}
stream: {name: "./mine.py:Data", size: 2}
methods: []
"""

MINE = '''
from mmcl.data.types import Sample, Task, Turn
from mmcl.errors import UserError


class Eyes:
    """Sees.

    Args:
        size: in pixels.
    """

    def __init__(self, *, size: int = 8) -> None: ...
    def transform(self): ...
    def forward(self, pixels): ...


class Bridge:
    def __init__(self, *, in_width: int, out_width: int) -> None: ...
    def tokens(self, tokens_in): ...
    def forward(self, features): ...


class Data:
    """Data."""

    def __init__(self, *, size: int, metric: str = "exact", broken: bool = False) -> None:
        if broken:
            raise UserError("no such file", where="train.json")
        print("noise from a library")
        self.size, self.metric = size, metric

    def tasks(self):
        sample = Sample(id="1", task="a", turns=(Turn("user", "q"), Turn("assistant", "x")))
        question = Sample(id="1", task="a", turns=(Turn("user", "q"),), answers=("x",))
        return [Task(name="a", train=(sample,) * self.size, test=(question,), metric=self.metric)]
'''

Replace = Callable[..., None]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "small.yaml"


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Puts a stand-in in the place of a module of mmcl."""

    def put(name: str, **members: Any) -> None:
        module = ModuleType(f"mmcl.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, f"mmcl.{name}", module)
        parent, _, child = f"mmcl.{name}".rpartition(".")
        monkeypatch.setattr(importlib.import_module(parent), child, module, raising=False)

    return put


@pytest.fixture
def reports(replace: Replace) -> None:
    replace(
        "report",
        document=lambda folder: {"run": str(folder), "variants": {}},
        write=lambda folder: folder / "report.html",
        tables=lambda folder, console: console.print("the matrix"),
    )


def document_of(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


# ----------------------------------------------------------------------------------------------------------------- run


def test_run_trains_in_the_folder_of_the_recipe_s_name_and_reports(
    recipe: Path, replace: Replace, reports: None, capsys: Capture
) -> None:
    calls: list[Any] = []

    class Experiment:
        def __init__(self, loaded: Any, folder: Path, *, progress: Any) -> None:
            calls.append((loaded.train.epochs, folder))

        def run(self, only: str | None = None) -> None:
            calls.append(only)
            print("noise from a library")

    replace("experiment", Experiment=Experiment)
    assert main(["run", "small.yaml", "train.epochs=3", "--json"]) == 0
    assert document_of(capsys) == {"run": "runs/small", "variants": {}}
    assert calls == [(3, Path("runs/small")), None]
    assert main(["run", str(recipe), "--out", "elsewhere", "--variant", "default"]) == 0
    assert calls[2:] == [(1, Path("elsewhere")), "default"]
    output = capsys.readouterr().out
    assert "the matrix" in output
    assert "elsewhere/report.html" in output
    assert main(["run", str(recipe), "--variant", "nothing"]) == 2
    assert len(calls) == 4


@pytest.mark.parametrize(
    "error, code, where, message",
    [
        (UserError("the loss is not finite", where="stage a"), 2, "stage a", "the loss is not finite"),
        (OSError(errno.ENOSPC, "No space left on device", "x.safetensors"), 2, "x.safetensors", "disk full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "", "disk full"),
        (KeyboardInterrupt(), 130, "", ""),
    ],
)
def test_what_stops_a_run(
    recipe: Path, replace: Replace, capsys: Capture, error: BaseException, code: int, where: str, message: str
) -> None:
    def run(self: Any, only: str | None = None) -> None:
        raise error

    stand_in = type("Experiment", (), {"__init__": lambda self, *given, **named: None, "run": run})
    replace("experiment", Experiment=stand_in)
    assert main(["run", str(recipe), "--json"]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err
    if message:
        problem = json.loads(captured.out)["problems"][0]
        assert (problem["where"], problem["message"]) == (where, message)


def test_our_own_fault_is_a_traceback(recipe: Path, replace: Replace, capsys: Capture) -> None:
    replace("experiment", Experiment=lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # which Python prints, and exits with 1
        main(["run", str(recipe), "--json"])
    assert "ZeroDivisionError" in document_of(capsys)["problems"][0]["message"]


# --------------------------------------------------------------------------------------------------------------- check


@pytest.fixture
def checks(replace: Replace) -> list[Problem]:
    found: list[Problem] = []
    replace("data.check", check_tasks=lambda tasks: (found, {"tasks": [], "count": len(tasks)}))
    return found


def test_check_of_a_right_recipe(recipe: Path, checks: list[Problem], capsys: Capture) -> None:
    assert main(["check", "small.yaml", "--json"]) == 0
    assert document_of(capsys) == {"ok": True, "problems": [], "data": {"default": {"tasks": [], "count": 1}}}
    assert main(["check", "small.yaml"]) == 0
    assert "no mistakes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, where, message",
    [
        ("train.epochs=0", "train.epochs", "more than 0"),
        ("stages.0.tasks=[b]", "stages.0.tasks", "no task `b`"),
        ("stream.metric=exat", "stream, task a, metric", "no metric `exat`"),
        ("stream.broken=true", "train.json", "no such file"),
    ],
)
def test_check_finds_mistakes_of_recipe_stream_and_metrics(
    recipe: Path, checks: list[Problem], capsys: Capture, override: str, where: str, message: str
) -> None:
    assert main(["check", "small.yaml", override, "--json"]) == 2
    document = document_of(capsys)
    assert document["ok"] is False
    (problem,) = document["problems"]
    assert problem["where"] == where
    assert message in problem["message"]
    assert main(["check", "small.yaml", override]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_check_shows_the_data_s_mistakes_once_for_all_variants(
    recipe: Path, checks: list[Problem], capsys: Capture
) -> None:
    checks.append(Problem("train.json:7", "no image", "Add it."))
    assert main(["check", "small.yaml", "variants={a: {seed: 1}, b: {seed: 2}}", "--json"]) == 2
    document = document_of(capsys)
    assert document["problems"] == [{"where": "train.json:7", "message": "no image", "hint": "Add it."}]
    assert set(document["data"]) == {"a", "b"}


# ------------------------------------------------------------------------------------------------------ list, describe


def test_list_gives_the_documented_rows(capsys: Capture) -> None:
    for kind in ("encoders", "projectors", "methods", "streams", "formats", "metrics", "objectives", "models"):
        assert main(["list", kind, "--json"]) == 0
        rows = document_of(capsys)
        assert rows, kind
        assert all(set(row) == {"name", "kind", "summary", "distribution", "version"} for row in rows)
        assert {row["kind"] for row in rows} == {kind}
    assert main(["list", "methods"]) == 0
    assert "finetune" in capsys.readouterr().out


def test_packaged_recipes_are_found_by_name(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, checks: list[Problem], capsys: Capture
) -> None:
    monkeypatch.setattr("mmcl.cli_catalogue.recipe_files", lambda: [recipe])
    monkeypatch.chdir("/")
    assert main(["list", "recipes", "--json"]) == 0
    (row,) = document_of(capsys)
    assert (row["name"], row["summary"]) == ("small", "A small recipe. Its summary goes on.")
    assert main(["check", "small", "--json"]) == 0
    assert document_of(capsys)["ok"]
    assert main(["check", "smal", "--json"]) == 2
    assert document_of(capsys)["problems"][0]["hint"] == "Did you mean `small`?"
    assert main(["describe", "small", "--json"]) == 0
    assert "weights: somewhere" in document_of(capsys)["doc"]


def test_the_packaged_recipes_are_there(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir("/")
    assert main(["list", "recipes", "--json"]) == 0
    rows = document_of(capsys)
    assert "quickstart" in [row["name"] for row in rows]
    assert all(row["summary"] for row in rows)


def test_describe_gives_options_and_origin(recipe: Path, capsys: Capture) -> None:
    assert main(["describe", "encoders:./mine.py:Eyes", "--json"]) == 0
    document = document_of(capsys)
    assert document["kind"] == "encoders"
    assert document["doc"].startswith("Sees.")
    assert document["options"] == [
        {"name": "size", "type": "int", "required": False, "default": 8, "doc": "in pixels."}
    ]
    assert main(["describe", "encoder:./mine.py:Eyes"]) == 0
    output = capsys.readouterr().out
    assert output.count("in pixels.") == 1, "not in the docstring and again in the options"
    assert "size: int, default 8" in output
    assert main(["describe", "method:finetune", "--json"]) == 0
    assert document_of(capsys)["target"] == "mmcl.methods.finetune:Finetune"
    assert main(["describe", "smollm2-135m-instruct"]) == 0
    assert "mmcl fetch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, hint",
    [("fintune", "`finetune`"), ("methods:exact", "Choose"), ("./mine.py:Eyes", "Write kind:./mine.py:Eyes")],
)
def test_describe_of_nothing(recipe: Path, capsys: Capture, name: str, hint: str) -> None:
    assert main(["describe", name, "--json"]) == 2
    assert hint in document_of(capsys)["problems"][0]["hint"]


# -------------------------------------------------------------------------------------------- report, eval, ask, others


def test_report_eval_and_ask_of_a_run(tmp_path: Path, replace: Replace, reports: None, capsys: Capture) -> None:
    (tmp_path / "run.json").write_text("{}")
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    calls: list[Any] = []
    cell = {
        "stage": "b", "task": "a", "metric": "exact", "corpus": 0.5, "n": 2, "definition": "equal", "predictions": image
    }  # fmt: skip

    def evaluate(folder: Path, *, progress: Any, **given: Any) -> dict[str, Any]:
        calls.append((folder, given))
        return cell

    def ask(folder: Path, *, progress: Any, **given: Any) -> list[Any]:
        calls.append((folder, given))
        return [{"stage": "b", "answer": "[red] yes", "route": "base"}]

    replace("revisit", evaluate=evaluate, ask=ask)
    run = str(tmp_path)
    assert main(["report", run, "--json"]) == 0
    assert document_of(capsys)["run"] == run
    assert main(["eval", run, "--task", "a", "--stage", "b", "--sample", "3", "--json"]) == 0
    assert document_of(capsys) == {**cell, "predictions": str(image)}
    assert main(["eval", run, "--task", "a"]) == 0
    assert "a after b: 0.5000" in capsys.readouterr().out
    assert main(["ask", run, "--image", str(image), "why?", "--stage", "all", "--json"]) == 0
    assert document_of(capsys) == [{"stage": "b", "answer": "[red] yes", "route": "base"}]
    assert main(["ask", run, "why?"]) == 0
    assert "[red] yes" in capsys.readouterr().out, "an answer is no markup"
    assert calls == [
        (tmp_path, {"stage": "b", "task": "a", "variant": None, "sample": 3}),
        (tmp_path, {"stage": "last", "task": "a", "variant": None, "sample": None}),
        (tmp_path, {"image": image, "question": "why?", "stage": "all", "variant": None}),
        (tmp_path, {"image": None, "question": "why?", "stage": "last", "variant": None}),
    ]
    assert main(["ask", run, "why?", "--image", "nowhere.png"]) == 2


def test_metrics_of_a_matrix(tmp_path: Path, capsys: Capture) -> None:
    matrix = tmp_path / "matrix.csv"
    matrix.write_text("stage,a,b\na,0.9,0.1\nb,0.5,0.8\n")
    assert main(["metrics", str(matrix), "--json"]) == 0
    document = document_of(capsys)
    assert document["ACC"] == pytest.approx(0.65)
    assert document["FWT"] is None
    assert {"FWT", "intransigence"} <= set(document["undefined"])
    (tmp_path / "baseline.csv").write_text("task,score\na,0.1\nb,0.3\n")
    (tmp_path / "single.csv").write_text("task,score\na,1.0\nb,0.9\n")
    references = ["--baseline", str(tmp_path / "baseline.csv"), "--single", str(tmp_path / "single.csv")]
    assert main(["metrics", str(matrix), *references, "--json"]) == 0
    document = document_of(capsys)
    assert document["FWT"] == pytest.approx(0.1 - 0.3)
    assert document["intransigence"] is not None
    assert main(["metrics", str(matrix)]) == 0
    assert "0.6500" in capsys.readouterr().out


def test_score_of_cases(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "cases.json"
    file.write_text('{"cases": [{"id": "1", "prediction": "a", "references": ["a"]}, '
                    '{"id": "2", "prediction": "", "references": ["a"]}]}')  # fmt: skip
    assert main(["score", "--metric", "exact", "--mode", "strict", str(file), "--json"]) == 0
    document = document_of(capsys)
    assert (document["corpus"], document["n"]) == (0.5, 2)
    assert main(["score", "--metric", "exat", str(file), "--json"]) == 2
    assert "`exact`" in document_of(capsys)["problems"][0]["hint"]


def test_fetch_hands_on_the_folder(replace: Replace, capsys: Capture) -> None:
    replace("fetch", fetch=lambda name, notify: notify("downloading") or Path("/cache") / name)
    assert main(["fetch", "small", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "small", "folder": "/cache/small"}
    assert "downloading" in captured.err
