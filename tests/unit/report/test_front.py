"""The Pareto front of variants: accuracy, learning and forgetting together."""

from __future__ import annotations

from pathlib import Path

from mmcl.report.run import Run, Variant
from mmcl.report.summary import front


def run(**metrics: tuple[float, float, float]) -> Run:
    variants = tuple(
        Variant(name, ("a",), metrics=dict(zip(("ACC", "MFT", "FM"), values, strict=True)))
        for name, values in metrics.items()
    )
    return Run("r", Path(), "", "", variants, {}, {})


def test_a_variant_that_another_beats_everywhere_is_not_on_the_front() -> None:
    found = front(run(forgets=(0.3, 0.9, 0.6), keeps=(0.8, 0.8, 0.1), worse=(0.7, 0.8, 0.2), same=(0.8, 0.8, 0.1)))
    assert found == ["forgets", "keeps", "same"]


def test_one_variant_has_no_front() -> None:
    assert front(run(alone=(0.3, 0.9, 0.6))) == []
