"""The closed vocabulary of a task, for answers that are chosen by likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmcl.data.types import Task
from mmcl.errors import UserError

MOST = 256
"""Above so many different answers in the training set, a vocabulary is not closed."""

STREAM, TRAINING, SEEN = "the stream", "the answers of the training set", "all tasks seen so far"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the answer to each question of a task is chosen from.

    Attributes:
        answers: the choices, in a fixed order; the first wins a tie.
        source: who says so: `the stream`, `the answers of the training set`, or `all tasks seen so far`.
    """

    answers: tuple[str, ...]
    source: str


def choices_of(task: Task, others: Sequence[Task] = ()) -> Choices:
    """The task's own choices, else the different answers of its training samples, sorted; and those of other tasks.

    Args:
        task: that is asked.
        others: whose answers are choices too, in order (class-incremental evaluation).

    Raises:
        UserError: there are none, or too many to be a closed vocabulary.
    """
    if others:
        found = [answer for each in [*others, task] for answer in choices_of(each).answers]
        return Choices(tuple(dict.fromkeys(found)), SEEN)
    where, hint = f"task {task.name}", "let the stream give the task `choices`, or write `evaluate: {answers: greedy}`"
    if task.choices:
        return Choices(tuple(dict.fromkeys(task.choices)), STREAM)
    replies = sorted({sample.reply for sample in task.train if sample.reply})
    if not replies:
        raise UserError("answers by likelihood need choices, and the task has none", where=where, hint=hint)
    if len(replies) > MOST:
        raise UserError(
            f"{len(replies)} different answers in the training set are no closed vocabulary (at most {MOST})",
            where=where,
            hint=hint,
        )
    return Choices(tuple(replies), TRAINING)
