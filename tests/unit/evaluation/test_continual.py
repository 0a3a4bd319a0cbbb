from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.evaluation import continual
from mmcl.evaluation.all_metrics import DEFINITIONS, metrics_document, metrics_of
from mmcl.evaluation.continual import Undefined, learned_at
from mmcl.evaluation.matrix import Matrix

ABC = ("a", "b", "c")


def metrics(rows: list[list[float | None]], **keywords: Any) -> dict[str, Any]:
    tasks = [f"t{index}" for index in range(len(rows))]
    return metrics_of(Matrix(tasks, tasks, rows), **keywords)["metrics"]


# ------------------------------------------------------------------------------------------ values worked out by hand


def test_old_tasks_that_improve() -> None:
    # Task 0 rises from .4 over .5 to .7, task 1 from .6 to .9: nothing is forgotten, and only the measure that counts
    # the last stage among the peaks can't say so.
    found = metrics([[0.4, 0.1, 0.2], [0.5, 0.6, 0.3], [0.7, 0.9, 0.8]])
    assert found["FM"] == pytest.approx((0.5 - 0.7 + 0.6 - 0.9) / 2) == pytest.approx(-0.25)
    assert found["FM_chaudhry"] == pytest.approx(-0.25)
    assert found["FM_incl_last"] == 0
    assert found["BWT"] == pytest.approx((0.3 + 0.3) / 2)
    assert found["BWT_T"] == pytest.approx((0.3 + 0.3 + 0.0) / 3)
    assert found["forgetting_per_task"] == pytest.approx({"t0": -0.2, "t1": -0.3})
    assert found["DR_REM"] == 1
    assert found["DR_BWT_plus"] == pytest.approx((0.1 + 0.3 + 0.3) / 3)


def test_old_tasks_that_are_forgotten() -> None:
    found = metrics([[0.9, 0.0, 0.3], [0.5, 0.8, 0.1], [0.2, 0.6, 0.7]], baseline={"t1": 0.1, "t2": 0.1})
    assert found["ACC"] == pytest.approx(1.5 / 3)
    assert found["OP"] == pytest.approx([0.9, 0.65, 0.5])
    assert found["MAA"] == pytest.approx((0.9 + 0.65 + 0.5) / 3)
    assert found["MFT"] == pytest.approx(2.4 / 3)
    assert found["BWT"] == pytest.approx((-0.7 - 0.2) / 2)
    assert found["FM"] == pytest.approx((0.7 + 0.2) / 2)
    assert found["FWT"] == pytest.approx((0.0 - 0.1 + 0.1 - 0.1) / 2)
    assert found["MTIL_transfer"] == pytest.approx((0.0 + (0.3 + 0.1) / 2) / 2)
    assert found["MTIL_avg"] == pytest.approx(4.1 / 9)
    assert found["DR_A"] == pytest.approx((0.9 + 0.5 + 0.2 + 0.8 + 0.6 + 0.7) / 6)
    assert found["DR_FWT"] == pytest.approx((0.0 + 0.3 + 0.1) / 3)


def test_a_peak_before_the_task_was_learned_counts_for_chaudhry_only() -> None:
    found = metrics([[0.5, 0.9], [0.5, 0.6]])
    assert found["FM"] == found["FM_chaudhry"] == 0
    found = metrics([[0.5, 0.9, 0.0], [0.5, 0.6, 0.0], [0.5, 0.4, 0.8]])
    assert found["FM"] == pytest.approx((0.0 + 0.2) / 2)
    assert found["FM_chaudhry"] == pytest.approx((0.0 + 0.5) / 2)


def test_climb() -> None:
    found = metrics([[0.9, 0.0], [0.6, 0.8]], baseline={"t0": 0.3, "t1": 0.8}, single={"t0": 0.8, "t1": 0.8})
    assert found["climb_relative_gain_percent"] == {"t0": pytest.approx(20.0), "t1": None}
    assert found["climb_forgetting_percent"] == {"t1": {"t0": pytest.approx(50.0)}}
    assert found["intransigence"] == pytest.approx((-0.1 + 0.0) / 2)
    found = metrics([[0.9, 0.0], [0.6, 0.8]], baseline={"t0": 0.9, "t1": 0.1})
    assert found["climb_forgetting_percent"] == {"t1": {"t0": None}}  # nothing was learned that could be lost


def test_one_task() -> None:
    document = metrics_of(Matrix(["a"], ["a"], [[0.5]], [0.2]))
    assert document["metrics"]["ACC"] == document["metrics"]["MFT"] == document["metrics"]["MAA"] == 0.5
    for name in ("BWT", "FM", "FM_chaudhry", "FM_incl_last", "FWT", "MTIL_transfer", "DR_BWT", "DR_REM", "DR_FWT"):
        assert document["metrics"][name] is None
        assert "needs a task that was learned" in document["undefined"][name]


def test_no_stage_yet() -> None:
    document = metrics_of(Matrix(["a", "b"], [], [], [0.1, 0.2]))
    assert set(document["metrics"].values()) == {None}
    assert set(document["undefined"]) == set(DEFINITIONS)


# ------------------------------------------------------------------------------------------------------ missing cells


def test_only_seen_tasks_measured() -> None:
    document = metrics_of(Matrix(ABC, ABC, [[0.9, None, None], [0.5, 0.8, None], [0.2, 0.6, 0.7]]))
    found, undefined = document["metrics"], document["undefined"]
    assert found["ACC"] == pytest.approx(0.5)
    assert found["FM"] == pytest.approx(0.45)
    assert found["FM_incl_last"] == pytest.approx(0.45)
    for name in ("FM_chaudhry", "FWT", "MTIL_transfer", "MTIL_avg", "DR_FWT"):
        assert found[name] is None
        assert "after stage 'a': not measured" in undefined[name]
    assert undefined["intransigence"] == "needs scores of single-task models"


def test_a_hole_is_never_filled() -> None:
    document = metrics_of(Matrix(ABC, ABC, [[0.9, 0.0, 0.0], [None, 0.8, 0.0], [0.2, 0.6, 0.7]]))
    found, undefined = document["metrics"], document["undefined"]
    assert found["OP"] == [0.9, None, pytest.approx(0.5)]
    assert undefined["OP"] == undefined["MAA"] == "needs the score on 'a' after stage 'b': not measured"
    assert found["FM"] is None  # the peak may lie in the hole
    assert found["BWT"] == pytest.approx((-0.7 - 0.2) / 2)  # doesn't need it
    hole_at_the_end = metrics_of(Matrix(ABC, ABC, [[0.9, 0.0, 0.0], [0.5, 0.8, 0.0], [0.2, None, 0.7]]))
    assert hole_at_the_end["metrics"]["ACC"] is None
    assert "'b' after stage 'c'" in hole_at_the_end["undefined"]["ACC"]


def test_every_none_has_a_reason_and_every_metric_a_definition() -> None:
    for matrix in (
        Matrix(ABC, ABC, [[None] * 3] * 3),
        Matrix(ABC, ABC, [[0.1] * 3] * 3),
        Matrix(["a"], ["x"], [[0.1]]),
    ):
        document = metrics_of(matrix)
        assert document["metrics"].keys() == document["definitions"].keys() == DEFINITIONS.keys()
        missing = {name for name, value in document["metrics"].items() if value is None}
        assert missing <= document["undefined"].keys()
        json.dumps(document, allow_nan=False)


# ----------------------------------------------------------------------------------------------- baselines, by name


def test_fwt_names_its_baseline() -> None:
    matrix = Matrix(["a", "b"], ["a", "b"], [[0.5, 0.4], [0.5, 0.6]], row0=[0.0, 0.1])
    own = metrics_of(matrix)
    assert own["metrics"]["FWT"] == pytest.approx(0.3)
    assert own["definitions"]["FWT"].endswith("b = the zero-shot row")
    given_one = metrics_of(matrix, baseline={"b": 0.3})
    assert given_one["metrics"]["FWT"] == pytest.approx(0.1)
    assert given_one["definitions"]["FWT"].endswith("b = the given baseline scores")
    wrong = metrics_of(matrix, baseline={"a": 0.3})
    assert wrong["undefined"]["FWT"] == "needs a zero-shot row or baseline scores for 'b'"
    without = metrics_of(Matrix(["a", "b"], ["a", "b"], [[0.5, 0.4], [0.5, 0.6]]))
    assert without["undefined"]["FWT"] == "needs a zero-shot row or baseline scores"


@pytest.mark.parametrize(
    ("tasks", "stages", "expected"),
    [
        ("abc", "abc", {0: 0, 1: 1, 2: 2}),
        ("abc", "bca", {1: 0, 2: 1, 0: 2}),  # another order of the same columns
        ("abc", "ab", {0: 0, 1: 1}),  # a run that is not finished, or a probe
        ("ab", "xab", {0: 1, 1: 2}),  # a scored stage before the tasks
        ("ab", "aba", {0: 0, 1: 1}),  # a task comes back
        ("ab", "aa", {0: 0}),
        ("abc", "xyz", {0: 0, 1: 1, 2: 2}),  # other names: by position
        ("abc", "axc", {0: 0, 1: 1, 2: 2}),  # one name misspelt
        ("abc", "xab", {0: 1, 1: 2}),  # the names contradict the positions
        ("abc", "xy", {0: 0, 1: 1}),
        ("abc", "ax", {0: 0}),
        ("ab", "xyz", {0: 0, 1: 1}),
    ],
)
def test_which_stage_taught_which_task(tasks: str, stages: str, expected: dict[int, int]) -> None:
    matrix = Matrix(tuple(tasks), tuple(stages), [[0.5] * len(tasks)] * len(stages))
    assert learned_at(matrix) == expected
    notes = " ".join(continual.notes(matrix))
    by_name = all(tasks[task] == stages[row] for task, row in expected.items())
    assert ("taken to have taught" in notes) == (not by_name)
    assert ("leave them out" in notes) == (len(expected) < len(tasks))


def test_a_probe_is_left_out() -> None:
    matrix = Matrix(["a", "probe", "b"], ["a", "b"], [[0.8, 0.9, 0.0], [0.4, 0.1, 0.6]])
    document = metrics_of(matrix)
    assert document["metrics"]["ACC"] == pytest.approx(0.5)
    assert document["metrics"]["BWT"] == pytest.approx(-0.4)
    assert document["warnings"] == ["no stage taught these tasks, the metrics leave them out: probe"]


def test_percent_is_said() -> None:
    warnings = metrics_of(Matrix(["a", "b"], ["a", "b"], [[80.0, 1.0], [60.0, 75.0]]))["warnings"]
    assert len(warnings) == 1 and "outside [0, 1]" in warnings[0]
    mixed = metrics_of(Matrix(["a", "b"], ["a", "b"], [[80.0, None], [0.6, 75.0]]))["warnings"]
    assert len(mixed) == 2 and "percent mixed with fractions? 1 of 3 scores" in mixed[1] and "(0.6)" in mixed[1]


def test_functions_raise_undefined() -> None:
    with pytest.raises(Undefined, match="'a' after stage 'a'"):
        continual.acc(Matrix(["a"], ["a"], [[None]]))


# ---------------------------------------------------------------------------------------------------------- properties

SCORE = st.floats(0, 1)


@st.composite
def square(draw: st.DrawFn) -> Matrix:
    size = draw(st.integers(2, 5))
    tasks = [f"t{index}" for index in range(size)]
    rows = draw(st.lists(st.lists(SCORE, min_size=size, max_size=size), min_size=size, max_size=size))
    return Matrix(tasks, tasks, rows, draw(st.none() | st.lists(SCORE, min_size=size, max_size=size)))


@given(square())
def test_relations(matrix: Matrix) -> None:
    found = metrics_of(matrix)["metrics"]
    size, tiny = len(matrix.tasks), 1e-9
    assert found["BWT_T"] == pytest.approx((size - 1) / size * found["BWT"])
    assert found["ACC"] == pytest.approx(found["MFT"] + found["BWT_T"])
    assert found["ACC"] == found["OP"][-1] == found["MTIL_last"]
    assert found["FM"] >= -found["BWT"] - tiny  # the peak is at least the first score
    assert found["FM_chaudhry"] >= found["FM"] - tiny
    assert found["FM_incl_last"] >= max(0.0, found["FM"]) - tiny
    assert -1 <= found["FM"] <= 1
    assert sum(found["first_minus_last_per_task"].values()) / size == pytest.approx(-found["BWT_T"])


@given(square(), st.randoms(use_true_random=False))
def test_order_of_columns_changes_nothing(matrix: Matrix, rng: Any) -> None:
    order = list(range(len(matrix.tasks)))
    rng.shuffle(order)
    moved = Matrix(
        [matrix.tasks[index] for index in order],
        matrix.stages,
        [[row[index] for index in order] for row in matrix.values],
        None if matrix.row0 is None else [matrix.row0[index] for index in order],
    )
    assert metrics_of(moved)["metrics"] == metrics_of(matrix)["metrics"]


@given(square())
def test_a_model_that_never_changes_forgets_nothing(matrix: Matrix) -> None:
    constant = Matrix(matrix.tasks, matrix.stages, [matrix.values[0]] * len(matrix.stages))
    found = metrics_of(constant)["metrics"]
    assert found["FM"] == found["FM_chaudhry"] == found["FM_incl_last"] == found["BWT"] == found["BWT_T"] == 0


# ----------------------------------------------------------------------------------------------------------- documents


def test_document_of_files(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("stage,a,b\nzero-shot,0.1,0.2\na,0.9,0.4\nb,0.5,0.8\n")
    (tmp_path / "s.csv").write_text("task,score\na,1\nb,0.7\n")
    document = metrics_document([tmp_path / "m.csv"], single=tmp_path / "s.csv")
    assert document["FM"] == pytest.approx(0.4)
    assert document["FWT"] == pytest.approx(0.2)
    assert document["intransigence"] == pytest.approx(0.0)
    assert document["undefined"] == {} and document["warnings"] == []
    assert document["definitions"]["BWT"] == DEFINITIONS["BWT"]
    (tmp_path / "m.json").write_text('{"tasks": ["a"], "stages": ["a"], "matrix": [[0.5]], "row0": null}')
    assert metrics_document([tmp_path / "m.json"])["ACC"] == 0.5
