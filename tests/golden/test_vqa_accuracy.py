"""VQA accuracy and its normalisation against the official script: `vqav2_accuracy.json`, `vqa_normalization.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcl.evaluation.metrics.normalise import vqa_normalise, vqa_punctuation, vqa_words
from mmcl.evaluation.metrics.vqa_accuracy import VQAAccuracy
from mmcl.evaluation.score import score_file
from mmcl.protocols import Prediction

FOLDER = Path(__file__).parent
ACCURACY: list[dict[str, Any]] = json.loads((FOLDER / "vqav2_accuracy.json").read_text("utf-8"))["cases"]
NORMALISATION: list[dict[str, Any]] = json.loads((FOLDER / "vqa_normalization.json").read_text("utf-8"))["cases"]
COIN: list[dict[str, Any]] = json.loads((FOLDER / "ocrvqa_coin_exact.json").read_text("utf-8"))["cases"]

# The official script gives credit for an empty answer where annotators left theirs empty; here it is wrong.
EMPTY = {"space_only": 1.0, "rand_11_34": 1.0, "rand_11_56": 1.0}


def rows_of(cases: list[dict[str, Any]]) -> list[Prediction]:
    return [
        Prediction(id=case["id"], task="", prompt="", text=case["prediction"], answers=tuple(case["references"]))
        for case in cases
    ]


def test_numbers_of_cases() -> None:
    assert (len(ACCURACY), len(NORMALISATION), len(COIN)) == (95, 159, 37)
    blank = {case["id"]: case["score"] for case in ACCURACY if not case["prediction"].strip() and case["score"] > 0}
    assert blank == EMPTY


@pytest.mark.parametrize("case", ACCURACY, ids=[case["id"] for case in ACCURACY])
def test_official(case: dict[str, Any]) -> None:
    expected = 0.0 if case["id"] in EMPTY else case["score"]
    assert VQAAccuracy(mode="strict")(rows_of([case])).rows == (pytest.approx(expected),)


@pytest.mark.parametrize("case", ACCURACY, ids=[case["id"] for case in ACCURACY])
def test_normalised_prediction(case: dict[str, Any]) -> None:
    text = case["prediction"].replace("\n", " ").replace("\t", " ").strip()
    assert vqa_normalise(text) == case["normalized_prediction"]


@pytest.mark.parametrize("case", NORMALISATION, ids=[case["id"] for case in NORMALISATION])
def test_normalisation(case: dict[str, Any]) -> None:
    text, outputs = case["input"], case["outputs"]
    assert vqa_punctuation(text) == outputs["punct_only"]
    assert vqa_words(text) == outputs["digit_article_only"]
    assert vqa_normalise(text) == outputs["official_punct_then_digit"]


@pytest.mark.parametrize("case", COIN, ids=[case["id"] for case in COIN])
def test_paper_mode(case: dict[str, Any]) -> None:
    assert VQAAccuracy(mode="paper")(rows_of([case])).rows == (case["scores"]["vqav2"],)


def test_score_file() -> None:
    document = score_file(FOLDER / "vqav2_accuracy.json", metric="vqa_accuracy", mode="strict")
    expected = {case["id"]: 0.0 if case["id"] in EMPTY else case["score"] for case in ACCURACY}
    assert {row["id"]: row["score"] for row in document["rows"]} == pytest.approx(expected)
    assert document["n"] == 95
    assert document["corpus"] == pytest.approx(sum(expected.values()) / 95)
    assert document["mode"] == "strict" and "official" in document["follows"]
