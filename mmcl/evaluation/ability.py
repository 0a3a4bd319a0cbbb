"""What a model loses and gains beside the tasks it is trained on: general ability, and knowledge that changes."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

DELTA = (
    "X-Delta_t = (1/M) sum_i (R_t,i - R_0,i) over the M probes, R_0 before the first stage that is no alignment: "
    "vertical forgetting where it is negative (TRACE, 2310.06762)"
)

FUAR = (
    "sum_t max(0, Gap_F) / sum_t (max(0, Gap_U) + max(0, Gap_A)): invariant knowledge lost for each point of knowledge "
    "updated or acquired; below 1 more is gained than lost, undefined where nothing is gained (Jang et al. 2022, "
    "2110.03215)"
)

Gap = float | None


def x_delta(now: Sequence[float], before: Sequence[float]) -> float:
    """Mean change of the probes' scores.

    Args:
        now: score of each probe.
        before: of the same probes, before training.

    Raises:
        ValueError: there are no probes, or not the same number.
    """
    if not now:
        raise ValueError("no probes")
    return fsum(new - old for new, old in zip(now, before, strict=True)) / len(now)


def fuar(forgotten: Sequence[Gap], updated: Sequence[Gap], acquired: Sequence[Gap]) -> float | None:
    """Forgotten / (updated + acquired) ratio over the stages; see `FUAR`.

    Args:
        forgotten: per stage, the score on invariant knowledge before minus after; None where there is none.
        updated: per stage, the score on knowledge that the stage changed, after minus before.
        acquired: per stage, the score on knowledge that was new, after minus before.

    Returns:
        None where nothing was gained.
    """

    def total(gaps: Sequence[Gap]) -> float:
        return fsum(max(0.0, gap) for gap in gaps if gap is not None)

    gained = total(updated) + total(acquired)
    return total(forgotten) / gained if gained else None
