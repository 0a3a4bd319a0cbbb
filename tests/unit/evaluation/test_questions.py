"""Answers scored against a file of questions: nothing that is missing, repeated or unknown passes in silence."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcl.errors import UserError
from mmcl.evaluation.predictions import write_predictions
from mmcl.evaluation.score import Questions, score_file
from mmcl.protocols import Prediction


@pytest.fixture
def asked(tmp_path: Path) -> Questions:
    """Three questions of one image, in the layout of LLaVA's test files."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    answers = {"1": "red", "2": ["2", "two"], "3": "cat"}
    rows = [
        {"question_id": int(key), "image": "a.png", "text": "<image>\nwhat?", "answer": answer}
        for key, answer in answers.items()
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    return Questions(tmp_path / "test.json")


def answered(folder: Path, *given: tuple[object, str]) -> Path:
    """An answer file of another program: no references in it."""
    rows = [{"question_id": key, "prompt": "what?", "text": text} for key, text in given]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "answers.jsonl"


def score(path: Path, asked: Questions, metric: str = "exact") -> dict[str, Any]:
    return score_file(path, metric=metric, questions=asked)


def test_rows_are_those_of_the_questions(tmp_path: Path, asked: Questions) -> None:
    document = score(answered(tmp_path, ("3", "cat"), (2, "two"), (1, "blue")), asked)
    assert [row["id"] for row in document["rows"]] == ["1", "2", "3"]
    assert [row["score"] for row in document["rows"]] == [0, 1, 1]
    assert not any(document[key] for key in ("missing", "repeated", "unknown", "warnings"))


def test_a_missing_answer_is_wrong_and_told(tmp_path: Path, asked: Questions) -> None:
    document = score(answered(tmp_path, (1, "red"), (3, "cat")), asked)
    assert (document["corpus"], document["n"], document["missing"]) == (pytest.approx(2 / 3), 3, ["2"])
    assert document["warnings"] == ["1 of 3 questions have no answer and count as wrong: 2"]


@pytest.mark.parametrize("metric", ["cider", "bleu", "rouge_l", "vqa_accuracy", "anls"])
def test_a_missing_answer_scores_0_on_every_kind_of_metric(tmp_path: Path, asked: Questions, metric: str) -> None:
    document = score(answered(tmp_path, (1, "red"), (3, "cat")), asked, metric)
    assert document["rows"][1] == {"id": "2", "score": 0.0}


def test_answers_to_other_questions_do_not_count(tmp_path: Path, asked: Questions) -> None:
    document = score(answered(tmp_path, (1, "red"), (2, "2"), (3, "cat"), (9, "red")), asked)
    assert (document["corpus"], document["n"], document["unknown"]) == (1.0, 3, ["9"])
    assert "9" in document["warnings"][0]


def test_equal_answers_to_one_question_count_once(tmp_path: Path, asked: Questions) -> None:
    document = score(answered(tmp_path, (1, "red"), (2, "2"), (3, "dog"), (1, "red")), asked)
    assert (document["corpus"], document["repeated"]) == (pytest.approx(2 / 3), ["1"])
    assert document["warnings"]


def test_different_answers_to_one_question_are_a_mistake(tmp_path: Path, asked: Questions) -> None:
    with pytest.raises(UserError, match="different answers") as caught:
        score(answered(tmp_path, (1, "red"), (1, "blue"), (2, "2")), asked)
    assert "(question 1)" in caught.value.problems[0].where


def test_answers_to_another_file_are_a_mistake(tmp_path: Path, asked: Questions) -> None:
    with pytest.raises(UserError, match="no answer is to a question") as caught:
        score(answered(tmp_path, ("x1", "red"), ("x2", "blue")), asked)
    assert "x1" in str(caught.value) and "1, 2, 3" in str(caught.value)


def test_references_of_the_questions_count(tmp_path: Path, asked: Questions) -> None:
    path = tmp_path / "ours.jsonl"
    write_predictions(path, [Prediction("1", "t", "what?", "blue", ("blue",))])
    assert score_file(path, metric="exact")["corpus"] == 1
    assert score(path, asked)["rows"][0]["score"] == 0


@pytest.mark.parametrize(
    ("form", "message"),
    [("llava", "llava_json"), ("{name: llava_json, grup: x}", "group"), ("[", "is no format"), ("3", "--format")],
)
def test_a_format_that_is_none(tmp_path: Path, asked: Questions, form: str, message: str) -> None:
    path = answered(tmp_path, (1, "red"))
    with pytest.raises(UserError, match=message):
        score_file(path, metric="exact", questions=Questions(asked.path, form))


def test_a_format_with_options(tmp_path: Path) -> None:
    """The official pair of questions and annotations: ten annotators each."""
    Image.new("RGB", (4, 4)).save(tmp_path / "COCO_val2014_000000000007.jpg")
    questions = {"questions": [{"question_id": 5, "image_id": 7, "question": "what?"}], "data_subtype": "val2014"}
    answers = [{"answer": "cat" if number < 2 else "dog", "answer_id": number} for number in range(10)]
    annotations = {
        "annotations": [{"question_id": 5, "image_id": 7, "answers": answers, "multiple_choice_answer": "dog"}]
    }
    (tmp_path / "q.json").write_text(json.dumps(questions))
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    given = answered(tmp_path, (5, "cat"))
    asked = Questions(tmp_path / "q.json", "{name: vqav2, annotations: a.json}", tmp_path)
    assert score_file(given, metric="vqa_accuracy", questions=asked)["corpus"] == pytest.approx(0.6)


def test_missing_questions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        score(answered(tmp_path, (1, "red")), Questions(tmp_path / "none.json"))


# ------------------------------------------------------------------------------------------------------- files of cases


def cases(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "cases.json").write_text(json.dumps({"cases": rows}))
    return folder / "cases.json"


def test_cases_of_several_sets_are_scored_within_them(tmp_path: Path) -> None:
    one = [{"id": f"a{n}", "prediction": t, "references": [t], "corpus": "a"} for n, t in enumerate(("a cat", "a dog"))]
    other = [{"id": "b", "prediction": "a red bus", "references": ["a red bus"], "corpus": "b"}]
    document = score_file(cases(tmp_path, *one, *other), metric="cider")
    alone = score_file(cases(tmp_path, *one), metric="cider")
    assert [row["score"] for row in document["rows"][:2]] == [row["score"] for row in alone["rows"]]
    assert document["details"]["a"] == pytest.approx(alone["corpus"]) and document["details"]["b"] == 0
    assert document["corpus"] == pytest.approx(sum(row["score"] for row in document["rows"]) / 3)
    assert "2 sets" in document["warnings"][0]


def test_a_case_nobody_answered_counts_as_wrong_and_is_told(tmp_path: Path) -> None:
    given = cases(
        tmp_path,
        {"id": "x", "prediction": "cat", "references": []},
        {"id": "y", "prediction": "cat", "references": ["cat"]},
    )
    document = score_file(given, metric="vizwiz")
    assert (document["corpus"], document["n"]) == (0.5, 2)
    assert document["warnings"] == ["these cases have no references and count as wrong: x"]


def test_boxes_as_numbers(tmp_path: Path) -> None:
    given = cases(tmp_path, {"prediction": [0, 0, 10, 10], "references": [[0, 0, 10, 8]]})
    assert score_file(given, metric="refcoco")["corpus"] == 1


def test_a_metric_that_gives_no_number(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from mmcl.protocols import Score\n"
        "class Nan:\n"
        "    definition, follows = 'none', 'nobody'\n"
        "    def __call__(self, rows):\n"
        "        return Score(tuple(float('nan') if row.text == 'b' else 1.0 for row in rows), 1.0)\n"
    )
    given = cases(
        tmp_path,
        {"id": "x", "prediction": "a", "references": ["a"]},
        {"id": "y", "prediction": "b", "references": ["b"]},
    )
    with pytest.raises(UserError, match="gave no number for: y"):
        score_file(given, metric="./mine.py:Nan", folder=tmp_path)


def test_a_recorded_score_that_is_no_number(tmp_path: Path) -> None:
    row = '{"question_id": 1, "text": "a", "metadata": {"answers": ["a"], "score": NaN}}\n'
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(UserError, match="finite"):
        score_file(tmp_path / "a.jsonl", metric="exact")


def test_scoring_costs_about_as_much_as_reading(tmp_path: Path) -> None:
    """Ten annotators' answers are normalised once each, not once per row."""
    words = ["a red bus", "on the table", "man's hat", "left, right", "3,000", "Skiing", "2", "yes", "no", "it is."]
    rows = [
        Prediction(str(number), "t", "what?", words[number % 10], tuple(words[(number * k) % 10] for k in range(10)))
        for number in range(20_000)
    ]
    write_predictions(tmp_path / "a.jsonl", rows)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    started = time.process_time()
    for line in lines:
        json.loads(line)
    parsing = time.process_time() - started
    started = time.process_time()
    score_file(tmp_path / "a.jsonl", metric="vqa_accuracy")
    ratio = (time.process_time() - started) / parsing
    assert ratio < 12, ratio
