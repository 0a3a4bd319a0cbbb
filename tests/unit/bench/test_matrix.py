from __future__ import annotations

from mmcl.bench.matrix import matrix_reuse


def test_reuse_asks_less_and_answers_the_same() -> None:
    row = matrix_reuse(tasks=4, questions=8, repetitions=1)
    assert row["answers_equal"]
    assert row["asked"] == {"reuse": 4 * 8, "every cell": 10 * 8}
    assert row["ratio"] == row["ours"] / row["theirs"] < 1
    assert {"work", "ours", "theirs", "unit", "ratio", "peer"} <= row.keys()
