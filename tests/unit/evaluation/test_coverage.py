"""Intervals hold the truth as often as they say, in simulated streams whose truth is known."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from mmcl.evaluation.bootstrap import Draws, draw
from mmcl.evaluation.matrix import Matrix
from mmcl.evaluation.uncertainty import difference, estimate, interval

DROP = np.array([[0.8, 0.3, 0.2], [0.6, 0.85, 0.3], [0.45, 0.6, 0.9]])
FLAT = np.array([[0.8, 0.3, 0.2], [0.8, 0.85, 0.3], [0.8, 0.85, 0.9]])
"""Score of three tasks after three stages, in the population; in the second the peaks are ties."""

TRUE = {
    "drop": {"ACC": 0.65, "MAA": (0.8 + 0.725 + 0.65) / 3, "MFT": 0.85, "BWT": -0.3, "FM": 0.3},
    "flat": {"ACC": 0.85, "MAA": (0.8 + 0.825 + 0.85) / 3, "MFT": 0.85, "BWT": 0.0, "FM": 0.0},
}


def population(
    rng: np.random.Generator, scores: np.ndarray, *, share: bool, spread: float = 0.0, runs: int = 1
) -> list[Draws]:
    """Runs on a new test set: questions and images are of different difficulty, runs differ by `spread` (probits)."""
    images, questions, tasks = 40, 3, len(scores)
    base = [(rng.normal(size=(1, images, 1)), rng.normal(size=(1, images, questions))) for _ in range(tasks)]
    found = []
    for _ in range(runs):
        rows: dict[tuple[int, int], list[tuple[float, str]]] = {}
        values = np.zeros((tasks, tasks))
        for column in range(tasks):
            image, question = base[0 if share else column]
            noise = rng.normal(size=(tasks, images, questions))
            # Of variance 1 + spread ** 2, so that the mean over runs is the population's score.
            ease = 0.5 * image + 0.6 * question + np.sqrt(0.39) * noise
            shift = spread * rng.normal(size=tasks)
            limit = [
                NormalDist().inv_cdf(s) * np.sqrt(1 + spread**2) + d
                for s, d in zip(scores[:, column], shift, strict=True)
            ]
            right = (ease < np.array(limit)[:, None, None]).astype(float)
            for row in range(tasks):
                values[row, column] = right[row].mean()
                where = 0 if share else column
                rows[row, column] = [(float(v), f"{where}-{i}") for i in range(images) for v in right[row, i]]
        names = [str(column) for column in range(tasks)]
        found.append(draw(Matrix(names, names, values.tolist()), rows, count=1000))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drop", "flat"])
@pytest.mark.parametrize("share", [False, True])
def test_intervals_hold_the_truth_in_95_percent_of_1000_streams(name: str, share: bool) -> None:
    coverage(name, share=share, streams=1000, least=0.93, most=0.97)


def test_intervals_hold_the_truth_in_most_of_200_streams() -> None:
    coverage("flat", share=True, streams=200, least=0.90, most=0.99)


def coverage(name: str, *, share: bool, streams: int, least: float, most: float) -> None:
    rng = np.random.default_rng(8)
    hits = dict.fromkeys(TRUE[name], 0)
    for _ in range(streams):
        (found,) = population(rng, DROP if name == "drop" else FLAT, share=share)
        for metric, true in TRUE[name].items():
            low, high = interval(found, metric)
            hits[metric] += low <= true <= high
    shares = {metric: count / streams for metric, count in hits.items()}
    assert all(least <= value <= most for value in shares.values()), shares


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_intervals_over_three_runs_hold_the_truth_in_at_least_95_percent_of_1000_streams(spread: float) -> None:
    rng = np.random.default_rng(3)
    hits = dict.fromkeys(TRUE["drop"], 0)
    for _ in range(1000):
        runs = population(rng, DROP, share=False, spread=spread, runs=3)
        for metric, true in TRUE["drop"].items():
            found = estimate(runs, metric)
            assert found and found.low is not None and found.high is not None
            hits[metric] += found.low <= true <= found.high
    assert all(945 <= count <= 985 for count in hits.values()), hits


def test_no_difference_is_found_in_few_of_200_pairs() -> None:
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(200):
        one, other = population(rng, DROP, share=False, runs=2)
        pair = difference([one], [other], "ACC")
        assert pair and pair.p is not None
        found += pair.p < 0.05
    assert 2 <= found <= 20
