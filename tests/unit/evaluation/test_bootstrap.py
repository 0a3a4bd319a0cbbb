from __future__ import annotations

import numpy as np
import pytest

from mmcl.evaluation.bootstrap import METRICS, Rows, draw
from mmcl.evaluation.matrix import Matrix
from mmcl.evaluation.uncertainty import interval

TASKS = ["a", "b"]


def stream(scores: dict[tuple[int, int], list[float]], images: dict[int, list[str]]) -> tuple[Matrix, Rows]:
    """A matrix of two tasks and its rows: scores of each cell, the image of each question of a task."""
    rows = {key: list(zip(each, images[key[1]], strict=True)) for key, each in scores.items()}
    cell = {key: sum(each) / len(each) for key, each in scores.items()}
    values = [[cell.get((row, column)) for column in range(2)] for row in range(2)]
    row0 = [cell.get((-1, column)) for column in range(2)] if any(row < 0 for row, _ in cell) else None
    return Matrix(TASKS, TASKS, values, row0), rows


def simple(seed: int = 0, questions: int = 60, names: str = "ab") -> tuple[Matrix, Rows]:
    rng = np.random.default_rng(seed)
    images = {column: [f"{names[column]}{k // 2}" for k in range(questions)] for column in range(2)}
    chance = {(0, 0): 0.8, (1, 0): 0.5, (1, 1): 0.7, (-1, 0): 0.2, (-1, 1): 0.3, (0, 1): 0.4}
    return stream({key: [float(x) for x in rng.random(questions) < p] for key, p in chance.items()}, images)


def test_every_metric_has_draws_around_its_value() -> None:
    matrix, rows = simple()
    found = draw(matrix, rows, count=400)
    assert set(found.values) == set(METRICS) and not found.undefined
    for metric in METRICS:
        assert found.values[metric].shape == (400,)
        assert found.estimates[metric] == pytest.approx(float(np.mean(found.values[metric])), abs=0.02), metric
    assert found.freedom == 60 - 2  # 30 images of each task, drawn apart


def test_the_spread_is_that_of_the_mean_of_a_sample() -> None:
    images = {c: [f"{c}-{k}" for k in range(4)] for c in range(2)}
    found = draw(*stream({key: [1.0, 0.0, 1.0, 0.0] for key in [(0, 0), (1, 0), (1, 1)]}, images), count=20_000)
    # The variance of four scores is 1/3 (with n - 1), of their mean 1/12, of the mean of two tasks 1/24.
    assert np.var(found.values["ACC"]) == pytest.approx(1 / 24, rel=0.03)


def test_a_question_that_never_changes_does_not_blur_a_difference() -> None:
    # Forgetting is 0 for whatever questions are drawn, though the scores themselves vary with them.
    scores = [1.0, 0.0] * 20
    images = {0: [f"i{k}" for k in range(40)], 1: [f"j{k}" for k in range(40)]}
    found = draw(*stream({(0, 0): scores, (1, 0): scores, (1, 1): scores}, images), count=200)
    assert np.all(np.abs(found.values["BWT"]) < 1e-12) and np.ptp(found.values["ACC"]) > 0.1


def test_questions_about_one_image_are_drawn_together() -> None:
    scores = [float(k // 4 % 2) for k in range(80)]  # right or wrong together
    cells = {(0, 0): scores, (1, 0): scores, (1, 1): scores}
    alone, shared = (
        draw(*stream(cells, {c: [f"{c}-{k // size}" for k in range(80)] for c in range(2)}), count=1000)
        for size in (1, 4)
    )
    # 20 images instead of 80 questions: twice the standard deviation.
    assert 1.8 < np.std(shared.values["ACC"]) / np.std(alone.values["ACC"]) < 2.2
    assert (alone.freedom, shared.freedom) == (158, 38)


def test_tasks_about_the_same_images_are_drawn_together() -> None:
    scores = [float(k % 2) for k in range(60)]
    cells = {(0, 0): scores, (1, 0): scores, (1, 1): scores}
    apart = draw(*stream(cells, {c: [f"{c}-{k}" for k in range(60)] for c in range(2)}), count=1000)
    shared = draw(*stream(cells, {c: [f"{k}" for k in range(60)] for c in range(2)}), count=1000)
    # The mean of two equal things varies as one of them, that of two independent ones less by the root of 2.
    assert 1.3 < np.std(shared.values["ACC"]) / np.std(apart.values["ACC"]) < 1.55
    assert shared.freedom == 59


def test_the_same_questions_have_the_same_draws() -> None:
    one, other = draw(*simple(0), count=50), draw(*simple(1), count=50)
    matrix, rows = simple(0)
    shuffled = draw(matrix, {key: cell[::-1] for key, cell in reversed(list(rows.items()))}, count=50)
    assert one.questions == other.questions == shuffled.questions
    assert all(np.allclose(one.values[name], shuffled.values[name]) for name in METRICS)
    elsewhere = draw(*simple(0, names="xy"), count=50)
    assert elsewhere.questions != one.questions
    assert not np.allclose(elsewhere.values["ACC"], one.values["ACC"])


def test_a_peak_that_was_looked_for_is_a_bias() -> None:
    # After each of four stages the task is as good as before: the highest of the four is high by chance.
    rng = np.random.default_rng(0)
    tasks = list("abcde")
    rows = {(s, 0): [(float(rng.random() < 0.5), f"i{k}") for k in range(100)] for s in range(5)}
    rows |= {(s, c): [(1.0, f"{c}-{k}") for k in range(10)] for c in range(1, 5) for s in range(c, 5)}
    values = [
        [sum(x for x, _ in rows[s, c]) / len(rows[s, c]) if (s, c) in rows else None for c in range(5)]
        for s in range(5)
    ]
    found = draw(Matrix(tasks, tasks, values), rows, count=500)
    assert found.bias["FM"] > 0.003 and found.bias["BWT"] == 0
    low, high = interval(found, "FM")
    assert (low + high) / 2 < found.estimates["FM"] - 0.003


def test_scores_that_are_no_means_have_no_draws() -> None:
    matrix, rows = simple()
    changed = Matrix(TASKS, TASKS, [[0.99, matrix.values[0][1]], matrix.values[1]], matrix.row0)
    found = draw(changed, rows, count=20)
    assert not found.values and found.estimates["ACC"] == matrix_acc(matrix)
    assert "not the mean of their rows: a" in found.undefined["ACC"]
    assert not draw(matrix, {}, count=20).values
    assert "not known" in draw(matrix, {}, count=20).undefined["FM"]


def matrix_acc(matrix: Matrix) -> float:
    last = [cell for cell in matrix.values[-1] if cell is not None]
    return sum(last) / len(last)


def test_unmeasured_cells_leave_a_metric_undefined() -> None:
    matrix, rows = simple()
    some = {key: cell for key, cell in rows.items() if key[0] >= 0 and key != (0, 1)}
    bare = Matrix(TASKS, TASKS, [[matrix.values[0][0], None], matrix.values[1]])
    found = draw(bare, some, count=20)
    assert "FWT" in found.undefined and "FWT" not in found.estimates and "ACC" in found.values
