"""CIDEr, BLEU and ROUGE-L against the scripts of COCO's caption task and rouge-score, on their own outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcl.evaluation.metrics.captions import BLEU, CIDEr, RougeL
from mmcl.evaluation.metrics.ptb import tokens
from mmcl.protocols import Prediction

HERE = Path(__file__).parent


def load(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


COCO = load("caption_coco")
CORPORA = {each["corpus"]: each for each in COCO["corpora"]}


def rows(cases: list[dict[str, Any]]) -> list[Prediction]:
    return [Prediction(case["id"], "t", "", case["prediction"], tuple(case["references"])) for case in cases]


@pytest.mark.parametrize("case", load("ptb_tokenizer")["cases"], ids=lambda case: case["id"])
def test_tokens(case: dict[str, Any]) -> None:
    assert " ".join(tokens(case["input"])) == case["output"]


@pytest.mark.parametrize("corpus", CORPORA)
def test_captions_in_their_corpus(corpus: str) -> None:
    cases = [case for case in COCO["cases"] if case["corpus"] == corpus]
    assert len(cases) == CORPORA[corpus]["n_images"]
    cider, bleu, rouge = (metric(rows(cases)) for metric in (CIDEr(), BLEU(), RougeL()))
    assert cider.details["CIDEr"] == pytest.approx(CORPORA[corpus]["CIDEr"], abs=1e-6)
    for n in range(1, 5):
        assert bleu.details[f"BLEU-{n}"] == pytest.approx(CORPORA[corpus][f"Bleu_{n}"], abs=1e-6)
    assert rouge.corpus == pytest.approx(CORPORA[corpus]["ROUGE_L"], abs=1e-6)
    for case, *values in zip(cases, cider.rows, bleu.rows, rouge.rows, strict=True):
        wanted = [case["scores"]["CIDEr"] / 10, case["scores"]["Bleu_4"], case["scores"]["ROUGE_L"]]
        assert values == pytest.approx(wanted, abs=1e-6), case["id"]


@pytest.mark.parametrize("case", load("rouge_bleu_text")["cases"], ids=lambda case: case["id"])
def test_rouge_of_texts(case: dict[str, Any]) -> None:
    (score,) = RougeL(mode="paper")(rows([case])).rows
    assert score == pytest.approx(case["score"], abs=1e-6)
