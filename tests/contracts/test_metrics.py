"""Every registered metric keeps its promises, in both modes."""

from importlib.metadata import entry_points

import pytest

from mmcl.protocols import Prediction
from mmcl.testing import check_metric

RIGHT = {
    "pope": ("yes", "no", "yes"),
    "scienceqa": ("A", "B", "C"),
    "refcoco": ("[0.1, 0.1, 0.5, 0.5]", "[0, 0, 1, 0.5]"),
}
ALONE = {"cider", "bleu"}
"""Metrics of a whole set: a row's value may depend on the others, or the set's on more than the rows."""

CLASSES = {point.name: point for point in entry_points(group="mmcl.metrics")}


def test_the_walk_finds_the_metrics():
    assert len(CLASSES) >= 3


@pytest.mark.parametrize("mode", ["strict", "paper"])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_metric_keeps_its_promises(name, mode):
    rows = [Prediction(str(place), "t", "q", text, (text,)) for place, text in enumerate(RIGHT.get(name, ()))]
    check_metric(CLASSES[name].load()(mode=mode), rows or None)


DEGENERATE = [
    "",
    " ",
    "\n",
    "\u2028",
    "\r",
    "\ufeff",
    "\0",
    ".",
    "a" * 20_000,
    "是" * 50,
    "\U0001f600",
    "\ud800",
    "[",
    "%",
    "(A",
]


@pytest.mark.parametrize("mode", ["strict", "paper"])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_degenerate_answers_are_scored(name, mode):
    metric = CLASSES[name].load()(mode=mode)
    right = RIGHT.get(name, ("red",))[0]
    for references in ((right,), (right, right), ()):
        rows = [Prediction(str(k), "t", "q", text, references) for k, text in enumerate([right, *DEGENERATE, right])]
        score = metric(rows)
        assert len(score.rows) == len(rows)
        assert all(0 <= value <= 1 for value in (*score.rows, score.corpus))
        assert not any(value for row, value in zip(rows, score.rows, strict=True) if not row.text.strip())
        if not references:
            assert not any(score.rows)
        if name not in ALONE:
            assert [metric([row]).rows[0] for row in rows] == list(score.rows)
            assert score.corpus == pytest.approx(sum(score.rows) / len(rows))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("B. blue", 1), ("blue", 1), ("The answer is B", 1),
        ("Option B.", 1), ("A", 0), ("red", 0), ("Blue is not it", 0), ("C", 0), ("Bananas", 0), ("", 0),
    ],
)  # fmt: skip
def test_multiple_choice(answer, right):
    prompt = "Which colour is it?\nA. red\nB. blue\nAnswer with the option's letter."
    for reference in ("B", "blue"):
        row = Prediction("1", "t", prompt, answer, (reference,))
        assert CLASSES["multiple_choice"].load()()([row]).rows == (float(right),)
    without = Prediction("1", "t", "Which?", answer, ("B",), metadata={"choices": ["red", "blue"]})
    assert CLASSES["multiple_choice"].load()()([without]).rows == (float(right),)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("3", "3", 1), ("There are 3 dogs.", "3", 1), ("three", "3", 1), ("1,234.50", "1234.5", 1),
        ("from 2 to 3", "3", 1), ("-3", "3", 0), ("30", "3", 0), ("many", "3", 0),
        ("none", "0", 1), ("yes", "yes", 1), ("12,34", "34", 1),
    ],
)  # fmt: skip
def test_numeric(answer, reference, right):
    row = Prediction("1", "t", "How many?", answer, (reference,))
    assert CLASSES["numeric"].load()()([row]).rows == (float(right),)
    assert CLASSES["numeric"].load()(tolerance=0.05)([Prediction("1", "t", "", "104", ("100",))]).rows == (1.0,)
