from __future__ import annotations

import math

import numpy as np
import pytest

from mmcl.evaluation.bootstrap import Draws
from mmcl.evaluation.repeats import RunDraws, summarise
from mmcl.evaluation.uncertainty import difference, estimate, holm, pooled, share, student


def run(value: float, draws: np.ndarray | None = None, questions: str = "q", bias: float = 0.0) -> Draws:
    """A run with an accuracy and draws around it."""
    values = {} if draws is None else {"ACC": value + draws}
    lacking = {"ACC": "not a mean"} if draws is None else {}
    return Draws({"ACC": value}, values, {"ACC": bias} if values else {}, 99, questions, lacking)


def noise(seed: int, size: float = 0.02) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, size, 1000)
    return drawn - drawn.mean()


@pytest.mark.parametrize(
    ("level", "degrees", "t"),  # of the printed tables of Student's distribution
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 9, 2.262),
        (0.95, 100, 1.984),
        (0.99, 5, 4.032),
        (0.95, math.inf, 1.960),
    ],
)
def test_t_is_that_of_the_tables(level: float, degrees: float, t: float) -> None:
    assert student(level, degrees) == pytest.approx(t, abs=6e-4)
    assert share(student(level, degrees), degrees) == pytest.approx(level, abs=1e-9)


def test_without_questions_the_interval_is_students_over_the_runs() -> None:
    found = estimate([run(value) for value in (0.5, 0.6, 0.7)], "ACC")
    assert found and found.low is not None and found.high is not None
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.6 - half, 0.6 + half), abs=1e-6)
    assert found.runs == 3 and found.p is None and "other questions" in found.over


def test_one_run_has_the_percentiles_of_its_draws() -> None:
    found = estimate([run(0.5, noise(0), bias=0.01)], "ACC")
    assert found and found.low is not None and found.high is not None
    low, high = np.quantile(noise(0), [0.025, 0.975]) * 1.984217 / 1.959964
    assert (found.low, found.high) == pytest.approx((0.49 + low, 0.49 + high), abs=1e-6)
    alone = estimate([run(0.5)], "ACC")
    assert alone and alone.low is None and alone.over == "no interval: not a mean"


def test_what_is_common_to_all_runs_stays_and_what_is_not_counts_once() -> None:
    # Equal draws: the questions are hard for all runs alike; more runs do not help.
    same = estimate([run(0.5, noise(0)), run(0.5, noise(0)), run(0.5, noise(0))], "ACC")
    assert same and same.low is not None and same.high is not None
    assert (same.high - same.low) / 2 == pytest.approx(1.98 * np.std(noise(0)), rel=0.01)
    # Independent draws: the spread between the runs holds them already.
    apart = estimate([run(0.48, noise(0)), run(0.5, noise(1)), run(0.52, noise(2))], "ACC")
    students = 4.302653 * 0.02 / math.sqrt(3)
    assert apart and apart.high is not None
    assert apart.high - 0.5 == pytest.approx(students, rel=0.05)


def test_runs_with_other_questions_have_the_spread_only() -> None:
    found = estimate([run(0.5, noise(0), "a"), run(0.6, noise(1), "b")], "ACC")
    assert found and found.high is not None and "other questions" in found.over
    assert found.high - 0.55 == pytest.approx(12.7062 * 0.05, abs=1e-4)


def test_the_bias_of_a_peak_is_taken_off_the_interval() -> None:
    plain, moved = (estimate([run(0.5, noise(0), bias=b), run(0.6, noise(1), bias=b)], "ACC") for b in (0.0, 0.03))
    assert plain and moved and plain.low is not None and moved.low is not None and moved.high is not None
    assert moved.value == plain.value and moved.low == pytest.approx(plain.low - 0.03)


def test_a_difference_is_paired_by_question_and_by_run() -> None:
    one, other = [run(0.60, noise(0))], [run(0.55, noise(0))]
    certain = difference(one, other, "ACC")
    assert certain and certain.value == pytest.approx(0.05) and certain.low == pytest.approx(0.05)
    vague = difference(one, [run(0.55, noise(1))], "ACC")
    assert vague and vague.p is not None and 0.05 < vague.p < 0.2  # 0.05 / (0.02 * sqrt(2)) = 1.77 deviations
    # By run: the same gain in three runs that differ a lot.
    seeds = [0.3, 0.5, 0.7]
    gain = difference(
        [run(s + g) for s, g in zip(seeds, (0.05, 0.06, 0.04), strict=True)], [run(s) for s in seeds], "ACC"
    )
    assert gain and gain.p is not None and gain.low is not None
    assert gain.p == pytest.approx(1 - share(0.05 / (0.01 / math.sqrt(3)), 2), abs=1e-9) and 0.013 < gain.p < 0.0135
    assert gain.low > 0.02


def test_differences_that_can_not_be_tested() -> None:
    other = difference([run(0.5, noise(0), "a")], [run(0.6, noise(0), "b")], "ACC")
    assert other and other.p is None and other.low is None and "same questions" in other.over
    assert difference([run(0.5)], [run(0.5), run(0.6)], "ACC") is None
    assert difference([run(0.5)], [run(0.5)], "FM") is None and estimate([run(0.5)], "FM") is None
    assert difference([run(0.5), run(0.5)], [run(0.5), run(0.5)], "ACC").p == 1  # type: ignore[union-attr]
    equal = difference([run(0.6), run(0.6)], [run(0.5), run(0.5)], "ACC")
    assert equal and equal.p is None  # no spread to hold it against


def test_holm() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_orders_are_averaged_within_a_seed() -> None:
    both = pooled([run(0.4, noise(0)), run(0.6, noise(1))])
    assert both.estimates["ACC"] == 0.5
    assert np.allclose(both.values["ACC"], 0.5 + (noise(0) + noise(1)) / 2)
    assert not pooled([run(0.4, noise(0)), run(0.6)]).values
    runs = [
        RunDraws(f"s{seed}-{order}", seed, order, run(value))
        for seed, order, value in [(0, "given", 0.4), (0, "reversed", 0.6), (1, "given", 0.6), (1, "reversed", 0.8)]
    ]
    about = summarise({"x": runs})["groups"]["x"]
    assert (about["seeds"], about["orders"]) == ([0, 1], ["given", "reversed"])
    ends = about["metrics"]["ACC"]["interval"]
    assert about["metrics"]["ACC"]["value"] == pytest.approx(0.6)
    assert ends[1] - ends[0] == pytest.approx(2 * 12.7062 * 0.1, abs=1e-3)  # 0.5 and 0.7
    orders = summarise({"x": runs[:2]})["groups"]["x"]["metrics"]["ACC"]
    assert orders["runs"] == 2 and orders["interval"] is not None


def test_methods_are_compared_on_the_runs_that_they_share() -> None:
    groups = {
        name: [RunDraws(f"{name}-{seed}", seed, None, run(base + seed / 10, noise(k))) for seed in seeds]
        for k, (name, base, seeds) in enumerate([("a", 0.5, (0, 1, 2)), ("b", 0.4, (0, 1)), ("c", 0.3, (1, 2, 0))])
    }
    rows = {(row["one"], row["other"]): row for row in summarise(groups)["differences"]}
    assert list(rows) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert rows["a", "c"]["value"] == pytest.approx(0.2) and rows["a", "c"]["runs"] == 3
    assert rows["a", "b"]["runs"] == 2
    tested = [row["p"] for row in rows.values()]
    assert [row["p_holm"] for row in rows.values()] == list(holm(dict(zip("xyz", tested, strict=True))).values())
