"""What several runs say together: means over seeds and orders with intervals, and tests between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mmcl.evaluation.bootstrap import METRICS, Draws
from mmcl.evaluation.uncertainty import Estimate, difference, estimate, holm, pooled

DEFINITIONS = {
    "value": "mean over the runs; orders of one seed are averaged first",
    "interval": "95 % interval. Of one run: a bootstrap of the images that the test questions are about. Of several "
    "seeds: Student's t over the seeds and that bootstrap together. Of several orders of one seed: Student's t over "
    "the orders",
    "difference": "of runs with the same seed and order on the same questions, image by image",
    "p": "two-sided, of no difference",
    "p_holm": "p adjusted for all pairs compared in this metric (Holm 1979): those below 0.05 hold together with 95 %",
}


@dataclass(frozen=True, slots=True)
class RunDraws:
    """One run of a group.

    Attributes:
        name: of the run.
        seed: None where it was the only one.
        order: of the tasks; None where it was the only one.
        draws: of its matrix.
    """

    name: str
    seed: int | None
    order: str | None
    draws: Draws


def summarise(groups: Mapping[str, Sequence[RunDraws]]) -> dict[str, Any]:
    """Means with intervals of each group of runs, and differences between each two groups with p-values.

    Returns:
        `{"groups": {name: {"runs", "seeds", "orders", "metrics": {metric: {"value", "interval", "runs", "over"}}}},
        "differences": [{"one", "other", "metric", "value", "interval", "runs", "over", "p", "p_holm"}],
        "definitions": {...}}`; a difference is `one` minus `other`.
    """
    described = {
        name: {
            "runs": [run.name for run in runs],
            "seeds": _distinct([run.seed for run in runs]),
            "orders": _distinct([run.order for run in runs]),
            "metrics": {
                metric: found.to_dict() for metric in METRICS if (found := estimate(_by_seed(runs), metric)) is not None
            },
        }
        for name, runs in groups.items()
    }
    differences = [row for metric in METRICS for row in _differences(groups, metric)]
    return {"groups": described, "differences": differences, "definitions": DEFINITIONS}


def _differences(groups: Mapping[str, Sequence[RunDraws]], metric: str) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], Estimate] = {}
    for one, other in combinations(groups, 2):
        mine = {(run.seed, run.order): run for run in groups[one]}
        theirs = {(run.seed, run.order): run for run in groups[other]}
        shared = [key for key in mine if key in theirs]
        pair = difference(_by_seed([mine[key] for key in shared]), _by_seed([theirs[key] for key in shared]), metric)
        if pair is not None:
            found[one, other] = pair
    tests = {f"{one}\0{other}": pair.p for (one, other), pair in found.items() if pair.p is not None}
    adjusted = holm(tests)
    return [
        {
            "one": one,
            "other": other,
            "metric": metric,
            **pair.to_dict(),
            **({"p_holm": adjusted[f"{one}\0{other}"]} if pair.p is not None else {}),
        }
        for (one, other), pair in found.items()
    ]


def _by_seed(runs: Sequence[RunDraws]) -> list[Draws]:
    """A run per seed, the mean over its orders: orders are chosen, seeds are drawn. Of one seed, a run per order."""
    seeds: dict[int | None, list[Draws]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run.draws)
    if len(seeds) == 1:
        return [run.draws for run in runs]
    return [pooled(draws) for draws in seeds.values()]


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for value in dict.fromkeys(values) if value is not None]
