from __future__ import annotations

import random

import pytest

from mmcl.data.types import Sample, Task, Turn
from mmcl.errors import UserError
from mmcl.evaluation.choices import choices_of
from mmcl.evaluation.interval import interval


def test_independent_questions_have_wilsons_interval() -> None:
    # Wilson 95 % for 8 of 10: 0.490 to 0.943 (n p(1-p) / (n-1) in the variance: slightly wider).
    low, high = interval([1.0] * 8 + [0.0] * 2, range(10)) or (0, 0)
    assert low == pytest.approx(0.490, abs=0.02) and high == pytest.approx(0.943, abs=0.02)
    assert low <= 0.4902 and high >= 0.9433


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_all_right_or_all_wrong_is_no_certainty(score: float) -> None:
    many, few = (interval([score] * 20, [k % clusters for k in range(20)]) for clusters in (20, 5))
    assert many and few
    assert few[1] - few[0] > many[1] - many[0] > 0.1  # five images say less than twenty
    assert min(abs(many[0] - score), abs(many[1] - score)) < 1e-12


def test_questions_that_share_an_image_count_less() -> None:
    scores = [float(k // 4 % 2) for k in range(80)]  # right or wrong together
    alone, shared = interval(scores, range(80)), interval(scores, [k // 4 for k in range(80)])
    assert alone and shared
    assert 1.7 < (shared[1] - shared[0]) / (alone[1] - alone[0]) < 2.1  # 20 images instead of 80 questions
    assert interval(scores, [k % 2 for k in range(80)]) is not None


def test_it_agrees_with_a_bootstrap_over_images() -> None:
    rng = random.Random(0)
    groups = [[float(rng.random() < ease) for _ in range(4)] for ease in (rng.betavariate(2, 1) for _ in range(100))]
    means = []
    for _ in range(2000):
        drawn = [rng.choice(groups) for _ in groups]
        means.append(sum(map(sum, drawn)) / 400)
    means.sort()
    low, high = interval([s for group in groups for s in group], [k // 4 for k in range(400)]) or (0, 0)
    assert (low, high) == pytest.approx((means[50], means[1949]), abs=0.012)


def test_it_holds_the_true_value_as_often_as_it_says() -> None:
    rng = random.Random(1)
    hits = 0
    for _ in range(1000):
        images = [rng.betavariate(4, 1) for _ in range(40)]  # mean 0.8
        scores = [float(rng.random() < ease) for ease in images for _ in range(3)]
        low, high = interval(scores, [k // 3 for k in range(120)]) or (0, 0)
        hits += low <= 0.8 <= high
    assert 930 <= hits <= 985


def test_no_questions() -> None:
    assert interval([], []) is None


def answered(reply: str) -> Sample:
    return Sample("1", "t", (Turn("user", "?"), Turn("assistant", reply)))


def test_the_choices_of_a_task() -> None:
    train = [answered(reply) for reply in ("no", "yes", "no")]
    assert choices_of(Task("t", train)).answers == ("no", "yes")
    assert "training" in choices_of(Task("t", train)).source
    own = choices_of(Task("t", train, choices=("b", "a", "b")))
    assert (own.answers, own.source) == (("b", "a"), "the stream")
    with pytest.raises(UserError, match=r"task t: .*has none"):
        choices_of(Task("t", ()))
    with pytest.raises(UserError, match="300 different answers"):
        choices_of(Task("t", [answered(str(n)) for n in range(300)]))
