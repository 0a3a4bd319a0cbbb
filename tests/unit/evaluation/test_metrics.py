from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.errors import UserError
from mmcl.evaluation.metrics.contains import Contains
from mmcl.evaluation.metrics.exact import Exact
from mmcl.evaluation.metrics.normalise import vqa_normalise
from mmcl.evaluation.metrics.vqa_accuracy import VQAAccuracy
from mmcl.protocols import Metric, Prediction

Mode = Literal["strict", "paper"]
CLASSES = (VQAAccuracy, Exact, Contains)
MODES: tuple[Mode, ...] = ("strict", "paper")
METRICS = [pytest.param(kind(mode=mode), id=f"{kind.__name__}-{mode}") for kind in CLASSES for mode in MODES]


def row(text: str, *answers: str) -> Prediction:
    return Prediction(id="1", task="t", prompt="?", text=text, answers=answers)


def score(metric: Metric, text: str, *answers: str) -> float:
    result = metric([row(text, *answers)])
    assert len(result.rows) == 1
    return result.rows[0]


# ------------------------------------------------------------------------------------------------------- every metric


@pytest.mark.parametrize("metric", METRICS)
def test_empty_answers_are_wrong_and_count(metric: Metric) -> None:
    for empty in ("", " ", "\n\t", "\u3000"):
        assert score(metric, empty, "yes") == 0
        assert score(metric, empty, "") == 0
        assert score(metric, empty, *[""] * 10) == 0
        assert score(metric, empty, empty) == 0
    result = metric([row("yes", "yes"), row("", "yes"), row("yes"), row("yes", "yes")])
    assert result.rows == (1.0, 0.0, 0.0, 1.0)
    assert result.corpus == 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows(metric: Metric) -> None:
    assert (metric([]).rows, metric([]).corpus) == ((), 0.0)


@pytest.mark.parametrize("metric", METRICS)
def test_says_what_it_is(metric: Metric) -> None:
    assert "empty answer is wrong" in metric.definition and "\n" not in metric.definition
    assert metric.follows


@pytest.mark.parametrize("kind", CLASSES)
def test_modes(kind: type) -> None:
    assert kind().mode == "strict"
    assert kind(mode="strict").definition != kind(mode="paper").definition
    with pytest.raises(UserError, match="has no mode 'lax'"):
        kind(mode="lax")


TEXT = st.text(alphabet=st.sampled_from("ab .,'éßÀ红3\n"), max_size=6)


@pytest.mark.parametrize("metric", METRICS)
@given(st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=10)), max_size=8), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(metric: Metric, cases: list[tuple[str, list[str]]], rng: object) -> None:
    rows = [row(text, *answers) for text, answers in cases]
    order = list(range(len(rows)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    result, moved = metric(rows), metric([rows[index] for index in order])
    assert moved.rows == tuple(result.rows[index] for index in order)
    assert moved.corpus == result.corpus
    assert all(0 <= value <= 1 for value in result.rows)
    assert all(value == 0 for value, (text, _) in zip(result.rows, cases, strict=True) if not text.strip())


# -------------------------------------------------------------------------------------------------------- VQA accuracy


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_ten_annotators(agreeing: int, expected: float) -> None:
    answers = ["dog"] * agreeing + ["cat"] * (10 - agreeing)
    assert score(VQAAccuracy(), "Dog", *answers) == pytest.approx(expected)


def test_order_does_not_show_in_the_last_bit() -> None:
    rows = [row("dog", *["dog"] * agreeing, *["cat"] * (10 - agreeing)) for agreeing in (1, 1, 1, 3)]
    scores = VQAAccuracy()(rows).rows
    assert sum(scores) / 4 != sum(reversed(scores)) / 4  # what a plain sum would do
    assert VQAAccuracy()(rows).corpus == VQAAccuracy()(rows[::-1]).corpus


def test_normalised_only_if_annotators_disagree() -> None:
    assert score(VQAAccuracy(), "dog", *["a dog"] * 10) == 0
    assert score(VQAAccuracy(), "dog", *["a dog"] * 9, "cat") == 1


@pytest.mark.parametrize("annotators", range(1, 10))
def test_fewer_annotators(annotators: int) -> None:
    metric = VQAAccuracy()
    assert score(metric, "The dog!", *["dog"] * annotators) == 1  # unanimity is a full score, always normalised
    assert score(metric, "cat", *["dog"] * annotators) == 0
    shares = [score(metric, "dog", *["dog"] * k, *["cat"] * (annotators - k)) for k in range(annotators + 1)]
    assert shares == sorted(shares)


def test_three_and_five_annotators_by_hand() -> None:
    # Two of three agree: 1/2 of the others when one of the two is left out, 2/2 when the third is.
    assert score(VQAAccuracy(), "x", "x", "x", "y") == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert score(VQAAccuracy(), "x", "x", "x", "y", "y", "y") == pytest.approx((2 * 1 / 3 + 3 * 2 / 3) / 5)


def test_paper_takes_the_most_frequent_answer() -> None:
    metric = VQAAccuracy(mode="paper")
    assert score(metric, "NET", "racket", "net", "net") == 1
    assert score(metric, "racket", "racket", "net", "net") == 0
    assert score(metric, "a", "a", "b") == 1 and score(metric, "b", "a", "b") == 0
    assert score(metric, "net.", "net") == 0 and score(metric, "net ", "net") == 0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("wont", "won't"),
        ("aint", "ain't"),
        ("shant", "shan't"),
        ("hed", "he'd"),
        ("hell", "hell"),
        ("wed", "wed"),
        ("were", "were"),
        ("shed", "shed"),
        ("ill", "ill"),
        ("8 oclock", "8 o'clock"),
        ("yall'll", "y'all'll"),
        ("'ows'at", "'ow's'at"),
        ("somebodyd", "somebodyd"),
        ("Somebody'd", "somebodyd"),
        ("somebodyll", "somebody'll"),
        ("couldntve", "couldntve"),
        ("zero", "0"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("The A-Team", "team"),
        ("no.5", "no.5"),
        ("5.", "5"),
        (". " * 33, "."),
        ("1,000 t-shirt", "1000 tshirt"),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert vqa_normalise(text) == normal


# -------------------------------------------------------------------------------------------------- exact and contains


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("Yes", ["yes"], 1),
        (" yes.\n", ["yes"], 1),
        ("yes", ["Yes."], 1),
        ("b", ["a", "b"], 1),
        ("cell  phone", ["cell phone"], 1),
        ("yes!", ["yes"], 0),
        ("the dog", ["dog"], 0),
        ("3.5", ["35"], 0),
        ("...", ["..."], 1),
        ("...", [""], 0),
        ("cafe\u0301", ["CAF\u00c9"], 1),
        ("STRASSE", ["straße"], 1),
        ("красный", ["Красный"], 1),
        ("红色", ["红色"], 1),
        ("红", ["红色"], 0),
        ("🐶", ["🐶"], 1),
    ],
)
def test_exact(text: str, answers: list[str], expected: float) -> None:
    assert score(Exact(), text, *answers) == expected


def test_exact_paper_is_raw_equality_with_one_answer() -> None:
    metric = Exact(mode="paper")
    assert score(metric, "YES", "yes") == 1
    assert score(metric, "yes.", "yes") == score(metric, "yes ", "yes") == score(metric, "b", "a", "b") == 0


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("The answer is Red.", ["red"], 1),
        ("It is coloured.", ["red"], 0),
        ("redred red", ["red"], 1),
        ("b or c", ["a", "c"], 1),
        ("(A) newton", ["a"], 1),
        ("yes", ["yes, it is"], 0),
        ("a hot  dog", ["Hot dog"], 1),
        ("red", [""], 0),
        ("red", [], 0),
        ("3.5", ["3"], 0),
        ("3.5", ["5"], 0),
        ("1,000 people", ["1"], 0),
        ("13", ["3"], 0),
        ("There are 3.", ["3"], 1),
        ("3, or 4", ["3"], 1),
        ("它是红色的", ["红色"], 1),
        ("これは赤です", ["赤"], 1),
        ("un café", ["cafe"], 0),
        ("un cafe\u0301", ["café"], 1),
        ("हिन्दी", ["हिन्द"], 0),
        ("snake_case", ["case"], 0),
        ("no-one", ["no"], 1),
    ],
)
def test_contains(text: str, answers: list[str], expected: float) -> None:
    assert score(Contains(), text, *answers) == expected


@given(TEXT, st.lists(TEXT, max_size=3))
def test_exact_implies_contains(text: str, answers: list[str]) -> None:
    assert score(Contains(), text, *answers) >= score(Exact(), text, *answers)


def test_contains_paper_is_a_substring_in_either_direction() -> None:
    metric = Contains(mode="paper")
    assert score(metric, "n01440764 tench", "tench") == score(metric, "shark", "great white shark") == 1
    assert score(metric, "Tench", "tench") == score(metric, "tench", "") == score(metric, "b", "a", "b") == 0
