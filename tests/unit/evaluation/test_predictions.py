from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.errors import UserError
from mmcl.evaluation.predictions import answer_row, read_predictions, write_predictions
from mmcl.protocols import Prediction

ROW = Prediction(
    id="7",
    task="shape",
    prompt="What shape?",
    text="circle",
    answers=("circle", "round"),
    route="expert-1",
    group="what",
    images=("a/1.png",),
    metadata={"answer_type": "other", "score": "of the source file"},
)


def test_layout() -> None:
    row = answer_row(ROW, score=1.0, model_id="01-shape")
    assert list(row) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert row["metadata"] == {
        "answer_type": "other",
        "score": 1.0,
        "answers": ["circle", "round"],
        "route": "expert-1",
        "group": "what",
        "images": ["a/1.png"],
        "task": "shape",
    }
    assert row["answer_id"] == answer_row(ROW, score=0.0, model_id="01-shape")["answer_id"]
    assert row["answer_id"] != answer_row(ROW, score=1.0, model_id="02-color")["answer_id"]


def test_write_and_read(tmp_path: Path) -> None:
    odd = Prediction(id="8", task="t", prompt="a\u2028b\x85\r\n", text='红\u2029"\\\ud800', answers=("é\x00",))
    path = tmp_path / "predictions" / "shape.jsonl"
    write_predictions(path, [ROW, odd], [1.0, 0.25], model_id="01-shape")
    assert path.read_bytes().isascii() and path.read_bytes().count(b"\n") == 2
    (first, first_score), second = read_predictions(path)
    assert (first.id, first.answers, first.route, first.group, first.images) == (
        ROW.id, ROW.answers, ROW.route, ROW.group, ROW.images,
    )  # fmt: skip
    assert first.metadata == {"answer_type": "other"} and first_score == 1.0
    assert second == (odd, 0.25)


WORD = st.text(max_size=8)


@given(st.lists(st.builds(Prediction, id=WORD, task=WORD, prompt=WORD, text=WORD, answers=st.lists(WORD).map(tuple))))
def test_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, rows: list[Prediction]) -> None:
    path = tmp_path_factory.mktemp("answers") / "a.jsonl"
    write_predictions(path, rows)
    assert read_predictions(path) == [(row, None) for row in rows]


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "llava.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question_id": 3, "prompt": "p", "text": "yes", "answer_id": "x", "metadata": {}}\r\n'
        b'\r\n{"question_id": "4", "text": "\xe2\x80\xa8", "metadata": {"answers": "no"}}'
    )
    (first, score), (second, _) = read_predictions(path)
    assert (first.id, first.text, first.answers, first.route, score) == ("3", "yes", (), "base", None)
    assert (second.id, second.prompt, second.answers) == ("4", "", ("no",))
    assert second.text == "\u2028"  # a line break for str.splitlines, not for JSON lines


def test_all_broken_lines_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    good = '{"question_id": 1, "text": "a"}'
    lines = {
        '{"question_id": 1, "text": ': "is not JSON",
        "[1]": "is not a JSON object",
        '{"text": "a"}': "has no question_id",
        '{"question_id": null, "text": "a"}': "question_id must be",
        '{"question_id": 1}': "has no text",
        '{"question_id": 1, "text": null}': "text must be a text",
        '{"question_id": 1, "text": "a", "metadata": [1]}': "metadata must be an object",
        '{"question_id": 1, "text": "a", "metadata": {"answers": [1]}}': "metadata.answers must be",
        '{"question_id": 1, "text": "a", "metadata": {"score": "1"}}': "metadata.score must be",
    }
    path.write_text("\n".join([good, *lines, good]))
    with pytest.raises(UserError) as caught:
        read_predictions(path)
    assert len(caught.value.problems) == len(lines)
    for number, (problem, message) in enumerate(zip(caught.value.problems, lines.values(), strict=True), start=2):
        assert problem.where.startswith(f"{path}:{number}") and problem.message.startswith(message)
        assert problem.hint


def test_a_score_for_every_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_predictions(tmp_path / "a.jsonl", [ROW], [])
    assert not (tmp_path / "a.jsonl").exists()


def test_any_metadata_can_be_written(tmp_path: Path) -> None:
    row = Prediction(id="1", task="t", prompt="", text="", answers=(), metadata={"day": date(2024, 1, 2)})
    write_predictions(tmp_path / "a.jsonl", [row], [0.5])
    assert json.loads((tmp_path / "a.jsonl").read_text())["metadata"]["day"] == "2024-01-02"
