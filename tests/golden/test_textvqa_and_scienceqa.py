"""Texts in images and letters of choices against the field's scripts: `textvqa_accuracy.json`, `scienceqa.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcl.evaluation.metrics.scienceqa import ScienceQA
from mmcl.evaluation.metrics.textvqa import TextVQA, evalai_normalise
from mmcl.protocols import Metric, Prediction

FOLDER = Path(__file__).parent
TEXTS: list[dict[str, Any]] = json.loads((FOLDER / "textvqa_accuracy.json").read_text("utf-8"))["cases"]
LETTERS: list[dict[str, Any]] = json.loads((FOLDER / "scienceqa.json").read_text("utf-8"))["cases"]


def score(metric: Metric, case: dict[str, Any]) -> float:
    row = Prediction(id="", task="", prompt="", text=case["prediction"], answers=tuple(case["references"]))
    return metric([row]).corpus


@pytest.mark.parametrize("case", TEXTS, ids=[case["id"] for case in TEXTS])
@pytest.mark.parametrize(("mode", "variant"), [("strict", "llava_m4c"), ("paper", "lmms_eval_textvqa")])
def test_textvqa(case: dict[str, Any], mode: Any, variant: str) -> None:
    assert evalai_normalise(case["prediction"]) == case["normalized_prediction"]
    expected = case["scores"][variant] if case["prediction"].strip() else 0.0
    assert score(TextVQA(mode=mode), case) == pytest.approx(expected)


@pytest.mark.parametrize("case", LETTERS, ids=[case["id"] for case in LETTERS])
@pytest.mark.parametrize(("mode", "variant"), [("strict", "lmms_eval_scienceqa"), ("paper", "llava_eval_science_qa")])
def test_scienceqa(case: dict[str, Any], mode: Any, variant: str) -> None:
    assert score(ScienceQA(mode=mode), case) == case["scores"][variant]


@pytest.mark.parametrize(("metric", "right"), [(TextVQA(), "stop"), (ScienceQA(), "B")], ids=["textvqa", "scienceqa"])
def test_degenerate_answers_are_wrong(metric: Metric, right: str) -> None:
    for text in ("", " \n", "A B C D E stop go", "Which one is it?", "\u505c", "B" * 10_000, "...", "?!"):
        assert score(metric, {"prediction": text, "references": [right] * 10}) == 0.0


@pytest.mark.parametrize(
    ("mode", "text", "letter", "expected"),
    [
        ("strict", "b. a cat", "b", 0.0),  # a letter before a period has to be a capital
        ("strict", "B. a cat", "B", 1.0),
        ("paper", "The answer is B. The answer is A.", "B", 0.0),  # said twice, it says nothing
        ("paper", "I think. The answer is B.", "B", 1.0),
    ],
)
def test_letters_that_the_cases_leave_open(mode: Any, text: str, letter: str, expected: float) -> None:
    assert score(ScienceQA(mode=mode), {"prediction": text, "references": [letter]}) == expected
