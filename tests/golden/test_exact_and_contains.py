"""Exact and lenient match against CoIN's and LLaVA's scripts: `ocrvqa_coin_exact.json`, `gqa_exact_match.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcl.evaluation.metrics.contains import Contains
from mmcl.evaluation.metrics.exact import Exact
from mmcl.protocols import Metric, Prediction

FOLDER = Path(__file__).parent
COIN: list[dict[str, Any]] = json.loads((FOLDER / "ocrvqa_coin_exact.json").read_text("utf-8"))["cases"]
GQA: list[dict[str, Any]] = json.loads((FOLDER / "gqa_exact_match.json").read_text("utf-8"))["cases"]

# Where strict mode and LLaVA's rule for GQA (cut trailing periods of the answer, lower-case, compare) differ, and why.
DIFFERENT = {
    "period_space": "white space around the answer",
    "rand_33": "white space around the answer",
    "inner_double_space": "white space inside the answer",
    "tab": "white space inside the answer",
    "gt_period": "a period at the end of the reference",
    "both_period": "a period at the end of the reference",
    "sharp_s": "case folding: STRASSE = straße",
    "uni_same": "case of the reference, which LLaVA's rule leaves as it is",
}


def score(metric: Metric, case: dict[str, Any]) -> float:
    row = Prediction(id="", task="", prompt="", text=case["prediction"], answers=tuple(case["references"]))
    return metric([row]).corpus


def test_numbers_of_cases() -> None:
    assert (len(COIN), len(GQA)) == (37, 58)


@pytest.mark.parametrize("case", GQA, ids=[case["id"] for case in GQA])
def test_exact_strict(case: dict[str, Any]) -> None:
    theirs = case["scores"]["llava_convert_then_gqa_eval"]
    if case["id"] in DIFFERENT:
        assert (theirs, score(Exact(mode="strict"), case)) == (0.0, 1.0)
    else:
        assert score(Exact(mode="strict"), case) == theirs


@pytest.mark.parametrize("case", COIN, ids=[case["id"] for case in COIN])
def test_paper_modes(case: dict[str, Any]) -> None:
    assert score(Exact(mode="paper"), case) == case["scores"]["vizwiz"]
    empty = not case["prediction"].strip()
    assert score(Contains(mode="paper"), case) == (0.0 if empty else case["scores"]["imagenet"])
