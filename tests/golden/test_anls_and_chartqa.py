"""Texts of documents and numbers of charts against the field's scripts: `docvqa_anls.json`, `chartqa_relaxed.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.evaluation.metrics.anls import ANLS, levenshtein
from mmcl.evaluation.metrics.chartqa import ChartQA
from mmcl.evaluation.score import score_file
from mmcl.protocols import Metric, Prediction

FOLDER = Path(__file__).parent
DOCUMENTS: list[dict[str, Any]] = json.loads((FOLDER / "docvqa_anls.json").read_text("utf-8"))["cases"]
CHARTS: list[dict[str, Any]] = json.loads((FOLDER / "chartqa_relaxed.json").read_text("utf-8"))["cases"]
ZERO = {"zero_float": "0.0 is 0"}
"""Where the script misses a reference of 0."""


def score(metric: Metric, case: dict[str, Any]) -> float:
    row = Prediction(id="", task="", prompt="", text=case["prediction"], answers=tuple(case["references"]))
    return metric([row]).corpus


def test_numbers_of_cases() -> None:
    assert (len(DOCUMENTS), len(CHARTS)) == (56, 59)


@pytest.mark.parametrize("case", DOCUMENTS, ids=[case["id"] for case in DOCUMENTS])
@pytest.mark.parametrize(("mode", "variant"), [("strict", "llava_stvqa_anls"), ("paper", "lmms_eval_anls")])
def test_anls(case: dict[str, Any], mode: Any, variant: str) -> None:
    # Both scripts give credit, or fail, where there is no answer.
    expected = case["scores"][variant] if case["prediction"].strip() else 0.0
    assert score(ANLS(mode=mode), case) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", CHARTS, ids=[case["id"] for case in CHARTS])
def test_chartqa(case: dict[str, Any]) -> None:
    assert score(ChartQA(mode="paper"), case) == case["score"]
    assert score(ChartQA(mode="strict"), case) == (1.0 if case["id"] in ZERO else case["score"])


@given(st.text("ab c", max_size=9), st.text("ab c", max_size=9))
def test_levenshtein_is_that_of_the_table(one: str, other: str) -> None:
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    assert levenshtein(one, other) == row[-1]


@pytest.mark.parametrize("metric", [ANLS(), ChartQA()], ids=["anls", "chartqa"])
def test_degenerate_answers_are_wrong(metric: Metric) -> None:
    words = "what is the total in 1999 12 dollars yes no red"
    for text in ("", "  \n", words, "What is the total?", "\u603b\u6570\u662f\u591a\u5c11", "x" * 10_000):
        assert score(metric, {"prediction": text, "references": ["12 dollars", "12"]}) == 0.0


def test_score_files() -> None:
    document = score_file(FOLDER / "docvqa_anls.json", metric="anls", mode="paper")
    assert document["n"] == 56 and "lmms-eval" in document["follows"]
    assert score_file(FOLDER / "chartqa_relaxed.json", metric="chartqa", mode="paper")["n"] == 59
