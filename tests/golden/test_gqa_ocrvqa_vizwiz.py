"""Three benchmarks of short answers against the field's scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcl.evaluation.metrics.gqa import GQA
from mmcl.evaluation.metrics.ocrvqa import OCRVQA
from mmcl.evaluation.metrics.vizwiz import VizWiz
from mmcl.protocols import Metric, Prediction

FOLDER = Path(__file__).parent


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["cases"]
    return found


QUESTIONS, COVERS, PHOTOS = cases("gqa_exact_match"), cases("ocrvqa_coin_exact"), cases("vizwiz_accuracy")


def score(metric: Metric, case: dict[str, Any]) -> float:
    row = Prediction(id="", task="", prompt="", text=case["prediction"], answers=tuple(case["references"]))
    return metric([row]).corpus


def empty(case: dict[str, Any]) -> bool:
    """No answer, which some scripts credit."""
    return not case["prediction"].strip()


@pytest.mark.parametrize("case", QUESTIONS, ids=[case["id"] for case in QUESTIONS])
def test_gqa(case: dict[str, Any]) -> None:
    nothing = not case["prediction"].strip(" .,!?\n\t'\"-")  # marks alone are no answer either
    assert score(GQA(), case) == (0.0 if nothing else case["scores"]["lmms_eval_exact_match"])
    assert score(GQA(mode="paper"), case) == (0.0 if empty(case) else case["scores"]["llava_convert_then_gqa_eval"])


@pytest.mark.parametrize("case", COVERS, ids=[case["id"] for case in COVERS])
def test_ocrvqa(case: dict[str, Any]) -> None:
    expected = 0.0 if empty(case) else case["scores"]["ocrvqa"]
    assert score(OCRVQA(mode="paper"), case) == expected
    assert score(OCRVQA(), case) == (1.0 if case["id"] == "unanswerable" else expected)


@pytest.mark.parametrize("case", PHOTOS, ids=[case["id"] for case in PHOTOS])
def test_vizwiz(case: dict[str, Any]) -> None:
    single = case["n_annotators"] == 1 and case["id"].endswith("hit")  # the script never sees a single annotator agree
    expected = 1.0 if single else 0.0 if empty(case) else case["score"]
    assert score(VizWiz(), case) == pytest.approx(expected)


@pytest.mark.parametrize("case", COVERS, ids=[case["id"] for case in COVERS])
def test_vizwiz_as_papers_have_it(case: dict[str, Any]) -> None:
    assert score(VizWiz(mode="paper"), case) == case["scores"]["vizwiz"]


@pytest.mark.parametrize("metric", [GQA(), OCRVQA(), VizWiz()], ids=["gqa", "ocrvqa", "vizwiz"])
def test_degenerate_answers_are_wrong(metric: Metric) -> None:
    for text in ("", " \n", "yes no red blue two", "What colour is it?", "\u7ea2\u8272", "x" * 10_000, "...", "?!"):
        assert score(metric, {"prediction": text, "references": ["red"] * 10}) == 0.0
