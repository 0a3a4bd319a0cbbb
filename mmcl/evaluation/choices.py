"""The closed vocabulary of a task, for answers that are chosen by likelihood."""

from __future__ import annotations

from dataclasses import dataclass

from mmcl.data.types import Task
from mmcl.errors import UserError

MOST = 256
"""Above so many different answers in the training set, a vocabulary is not closed."""

STREAM, TRAINING = "the stream", "the answers of the training set"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the answer to each question of a task is chosen from.

    Attributes:
        answers: the choices, in a fixed order; the first wins a tie.
        source: who says so: `the stream`, or `the answers of the training set`.
    """

    answers: tuple[str, ...]
    source: str


def choices_of(task: Task) -> Choices:
    """The task's own choices, else the different answers of its training samples, sorted.

    Raises:
        UserError: there are none, or too many to be a closed vocabulary.
    """
    where, hint = f"task {task.name}", "let the stream give the task `choices`, or write `evaluate: {answers: greedy}`"
    if task.choices:
        return Choices(tuple(dict.fromkeys(task.choices)), STREAM)
    found = sorted({sample.reply for sample in task.train if sample.reply})
    if not found:
        raise UserError("answers by likelihood need choices, and the task has none", where=where, hint=hint)
    if len(found) > MOST:
        raise UserError(
            f"{len(found)} different answers in the training set are no closed vocabulary (at most {MOST})",
            where=where,
            hint=hint,
        )
    return Choices(tuple(found), TRAINING)
