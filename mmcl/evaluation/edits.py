"""Scores of model editing: does an edit hold, reach its rephrasings, leave the rest alone, and outlive later edits?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum

from mmcl.protocols import Prediction

EDIT, REPHRASE, LOCALITY = "edit", "rephrase", "locality"
"""Groups of an edit task's test questions; a question of any other group, or of none, counts as an edit."""

DEFINITIONS: Mapping[str, str] = {
    "success": "mean score on the edited questions right after the edit (reliability; MMEdit, 2310.08475)",
    "generality": "mean score on their rephrasings right after the edit",
    "locality": "share of the unrelated questions whose answer is, to the letter, the one given before the edit",
    "retention": "mean score on the edited questions of all earlier edits, after this one",
}

Scored = tuple[Prediction, float]


@dataclass(frozen=True, slots=True)
class EditScores:
    """Scores of one edit stage in [0, 1]; None where there are no such questions. See `DEFINITIONS`."""

    success: float | None
    generality: float | None
    locality: float | None
    retention: float | None

    def to_dict(self) -> dict[str, float | None]:
        """JSON types."""
        return asdict(self)


def edit_scores(
    before: Sequence[Scored], after: Sequence[Scored], earlier: Sequence[Sequence[Scored]] = ()
) -> EditScores:
    """The scores of one edit stage.

    Args:
        before: answers to the edit task's questions, with their scores, before the stage; empty where not asked.
        after: after the stage.
        earlier: answers to the questions of each earlier edit task, after this stage.
    """
    given = {row.id: row.text.strip() for row, _ in before}
    same = [float(row.text.strip() == given[row.id]) for row, _ in after if row.group == LOCALITY and row.id in given]
    return EditScores(
        success=_mean([score for row, score in after if _edited(row)]),
        generality=_mean([score for row, score in after if row.group == REPHRASE]),
        locality=_mean(same),
        retention=_mean([score for rows in earlier for row, score in rows if _edited(row)]),
    )


def _edited(row: Prediction) -> bool:
    return row.group not in (REPHRASE, LOCALITY)


def _mean(values: Sequence[float]) -> float | None:
    return fsum(values) / len(values) if values else None
