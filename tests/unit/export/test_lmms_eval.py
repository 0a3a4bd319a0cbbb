"""Questions of a harness are answered as mmcl answers its own; with the harness itself where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl.errors import UserError
from mmcl.experiment import Experiment
from mmcl.export.answering import Answering, Question, sample_of
from mmcl.recipe.load import recipe_from_dict

TINY = yaml.safe_load((Path(__file__).parents[3] / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
RECIPE: dict[str, Any] = {
    "name": "test",
    "model": TINY["model"] | {"features": {"store": False}},
    "stream": {
        "name": "shapes",
        "tasks": ["colour", "yes_no"],
        "train_size": 320,
        "test_size": 24,
        "questions_per_image": 1,
    },
    "methods": [{"name": "replay", "budget": "20MB"}],
    "train": {"batch_size": 8, "learning_rate": 0.003, "epochs": 4},
    "evaluate": {"max_new_tokens": 8},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Experiment(recipe_from_dict(RECIPE, Path()), folder).run()
    return folder


def asked(run: Path) -> list[tuple[Question, str]]:
    """The test questions of the run with what it answered after its last stage."""
    experiment = Experiment(recipe_from_dict(RECIPE, Path()), run)
    _, tasks, stages = experiment.stages("default")
    pairs = []
    for task in tasks:
        path = experiment.cells.path(stages[-1], task).with_suffix(".jsonl")
        answers = {row["question_id"]: row["text"] for row in map(json.loads, path.read_text().splitlines())}
        pairs += [
            (Question(s.turns[0].text, tuple(image.open() for image in s.images)), answers[s.id]) for s in task.test
        ]
    return pairs


def test_the_answers_are_those_of_the_run(run: Path) -> None:
    pairs = asked(run)
    found = Answering(run).generate([question for question, _ in pairs], max_new_tokens=8)
    assert found == [answer for _, answer in pairs]
    assert len(set(found)) > 3  # it has learned to tell things apart


def test_an_earlier_stage(run: Path) -> None:
    first = Answering(run, stage="colour")
    assert first.label == "01-colour"
    questions = [question for question, _ in asked(run)]
    assert first.generate(questions, max_new_tokens=8) != Answering(run).generate(questions, max_new_tokens=8)
    with pytest.raises(UserError, match="no finished stage `nope`"):
        Answering(run, stage="nope")


def test_the_likelihood_of_the_greedy_answer_is_the_largest(run: Path) -> None:
    answering = Answering(run)
    pairs = asked(run)[:12]
    questions, answers = [question for question, _ in pairs], [answer for _, answer in pairs]
    own = answering.log_likelihoods(questions, [f" {answer}" for answer in answers])
    other = answering.log_likelihoods(questions, [f"{answer}, or not" for answer in answers])
    assert all(greedy for _, greedy in own)
    assert not any(greedy for _, greedy in other)
    assert all(-math.inf < b < a <= 0 for (a, _), (b, _) in zip(own, other, strict=True))
    alone = [answering.log_likelihoods([question], [answer])[0][0] for question, answer in pairs]
    assert alone == pytest.approx([value for value, _ in own], abs=1e-4)


def test_an_answer_ends_where_the_harness_says(run: Path) -> None:
    question, answer = asked(run)[0]
    answering = Answering(run)
    assert len(answer) > 2
    assert answering.generate([question], max_new_tokens=8, until=["\n\n", answer[2]]) == [answer[:2].strip()]
    assert answering.generate([question], max_new_tokens=8, until=["", "\n\n"]) == [answer]


def test_a_method_that_needs_the_task_answers_over_its_base_route(tmp_path: Path) -> None:
    experts = {"name": "projector_experts", "router": "oracle"}
    stream = {"name": "shapes", "tasks": ["colour", "count"], "train_size": 8, "test_size": 2}
    recipe = recipe_from_dict({**RECIPE, "stream": stream, "methods": [experts]}, Path())
    Experiment(recipe, tmp_path).run()
    answering = Answering(tmp_path)
    assert [route.label for route in answering.methods.select(answering.model, [sample_of(Question("?"))])] == ["base"]


def test_where_the_images_stand() -> None:
    from PIL import Image

    picture = Image.new("RGB", (8, 8), "red")
    texts = {
        "what <image> is": "what <image> is",
        "what is it?": "<image>\nwhat is it?",
        "<image> <image> two?": "<image>\ntwo?",
    }
    for text, expected in texts.items():
        sample = sample_of(Question(text, (picture,)))
        assert sample.turns[0].text == expected
        assert len(sample.images) == 1
    assert sample_of(Question("no <image> at all")).turns[0].text == "no  at all"
    with pytest.raises(UserError, match="a question with a str cannot be asked"):
        sample_of(Question("what happens?", ("film.mp4",)))  # type: ignore[arg-type]


TASK = {
    "task": "mine",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_visual": "!function utils.visual",
    "doc_to_text": "question",
    "doc_to_target": "answer",
    "generation_kwargs": {"max_new_tokens": 8, "until": ["\n\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def test_the_harness_finds_the_run(run: Path, tmp_path: Path) -> None:
    """The score of a task of the user's own, asked through lmms-eval, is the score in the run's matrix."""
    pytest.importorskip("lmms_eval")
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    rows = []
    colours = asked(run)[:24]
    experiment = Experiment(recipe_from_dict(RECIPE, Path()), run)
    references = [sample.answers[0] for sample in experiment.stages("default")[1][0].test]
    for number, ((question, _), answer) in enumerate(zip(colours, references, strict=True)):
        question.images[0].save(tmp_path / f"{number}.png")
        text = question.text.replace("<image>", "").strip()
        rows.append({"question": text, "answer": answer, "image": str(tmp_path / f"{number}.png")})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "utils.py").write_text(
        "from PIL import Image\ndef visual(doc):\n    return [Image.open(doc['image']).convert('RGB')]\n"
    )
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}}}
    text = yaml.safe_dump(task).replace("'!function utils.visual'", "!function utils.visual")
    (tmp_path / "mine.yaml").write_text(text)
    results = evaluator.simple_evaluate(
        model="mmcl",
        model_args=f"run={run},stage=last",
        tasks=["mine"],
        batch_size=1,
        task_manager=TaskManager(include_path=str(tmp_path)),
        bootstrap_iters=0,
    )
    score = results["results"]["mine"]["exact_match,none"]
    matrix = json.loads((run / "matrix.json").read_text())["matrix"]
    assert score == pytest.approx(matrix[-1][0])
    assert score > 0.2
