"""The matrix metrics against what reference implementations and hand formulas gave: `cl_matrices.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcl.evaluation.all_metrics import metrics_document, metrics_of
from mmcl.evaluation.matrix import Matrix

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "cl_matrices.json").read_text("utf-8"))["cases"]

NAMES = {
    "ACC_last": "ACC",
    "OP_per_stage": "OP",
    "MAA": "MAA",
    "MFT_learning_accuracy": "MFT",
    "BWT_gem": "BWT",
    "BWT_div_T": "BWT_T",
    "FM_chaudhry": "FM_chaudhry",
    "FM_chaudhry_from_learned": "FM",
    "FM_max_incl_last_lower": "FM_incl_last",
    "FWT_gem": "FWT",
    "DR_A": "DR_A",
    "DR_BWT": "DR_BWT",
    "DR_REM": "DR_REM",
    "DR_BWT_plus": "DR_BWT_plus",
    "DR_FWT": "DR_FWT",
    "MTIL_transfer": "MTIL_transfer",
    "MTIL_avg": "MTIL_avg",
    "MTIL_last": "MTIL_last",
    "intransigence_vs_single": "intransigence",
    # The same quantities as reference programs printed them.
    "mammoth_backward_transfer": "BWT",
    "mammoth_forward_transfer": "FWT",
    "pilot_forgetting": "FM_incl_last",
    "vqacl_avg_acc": "ACC",
    "vqacl_avg_forget": "FM",
    "vqacl_incre_avg_acc": "OP",
    "climb_relative_gain_percent": "climb_relative_gain_percent",
    "climb_forgetting_percent": "climb_forgetting_percent",
}
OTHERS = {
    "forgetting_per_task_diag_minus_last",  # tested below
    "vqacl_incre_avg_forget",  # tested below
    "mammoth_forgetting_full_matrix",  # peak over every row with the last, also before learning: no metric of ours
    "mammoth_forgetting_lower_triangular",  # missing cells padded with 0: no metric of ours
}


def matrix_of(case: dict[str, Any]) -> tuple[Matrix, dict[str, float], dict[str, float]]:
    tasks = [f"t{index}" for index in range(case["T"])]
    baseline, single = (dict(zip(tasks, case[key], strict=True)) for key in ("random_init_b", "single_task"))
    return Matrix(tasks, tasks, case["R"]), baseline, single


def same(ours: Any, theirs: Any) -> None:
    """Equal up to rounding, in any nesting of objects and lists."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict) and ours.keys() == theirs.keys()
        for key in theirs:
            same(ours[key], theirs[key])
    elif theirs is None:
        assert ours is None
    else:
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_number_of_cases() -> None:
    assert len(CASES) == 21
    known = set(NAMES) | OTHERS
    assert all(key in known or key.startswith("avalanche_") for case in CASES for key in case["scores"])


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_every_value(case: dict[str, Any]) -> None:
    document = metrics_of(*matrix_of(case))
    compared = 0
    for theirs, ours in NAMES.items():
        if theirs in case["scores"]:
            same(document["metrics"][ours], case["scores"][theirs])
            compared += 1
    assert compared >= 23
    assert case["score"] == pytest.approx(document["metrics"]["ACC"])
    assert document["undefined"] == {}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_per_task_and_per_stage(case: dict[str, Any]) -> None:
    matrix, baseline, single = matrix_of(case)
    scores = case["scores"]
    metrics = metrics_of(matrix, baseline, single)["metrics"]
    same(list(metrics["first_minus_last_per_task"].values()), scores["forgetting_per_task_diag_minus_last"])
    per_task = metrics["forgetting_per_task"]
    assert sum(per_task.values()) / len(per_task) == pytest.approx(metrics["FM"])

    # The metrics of the run as it was after each stage. Avalanche's "forgetting" is first minus last.
    for stage in range(1, case["T"]):
        rows = [row[: stage + 1] for row in case["R"][: stage + 1]]
        until = Matrix(matrix.tasks[: stage + 1], matrix.stages[: stage + 1], rows)
        partial = metrics_of(until, baseline, single)["metrics"]
        same(partial["BWT"], scores["avalanche_stream_bwt_per_stage"][stage])
        same(-partial["BWT"], scores["avalanche_stream_forgetting_per_stage"][stage])
        if "vqacl_incre_avg_forget" in scores:
            same(partial["FM"], scores["vqacl_incre_avg_forget"][stage])


def test_through_files(tmp_path: Path) -> None:
    case = CASES[0]
    matrix, baseline, single = matrix_of(case)
    matrix.write_csv(tmp_path / "m.csv")
    for name, scores in (("b", baseline), ("s", single)):
        (tmp_path / f"{name}.csv").write_text("stage,t0,t1,t2\nx," + ",".join(map(str, scores.values())) + "\n")
    document = metrics_document([tmp_path / "m.csv"], tmp_path / "b.csv", tmp_path / "s.csv")
    for theirs, ours in NAMES.items():
        if theirs in case["scores"]:
            same(document[ours], case["scores"][theirs])
