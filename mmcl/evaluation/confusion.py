"""Answers of one task given to the questions of another: which task's answer set an answer comes from."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from mmcl.data.types import Task

NONE = "no task's"
"""Where an answer belongs that is in no task's set."""

DEFINITION = (
    "Of the answers to a task's questions, the share that stands in each task's answer set (the references of its test "
    "questions, the answers of its training samples, and its choices, compared without case, surplus white space and "
    "trailing periods). An answer of the task's own set counts as its own, one of several others' as that of the one "
    "learned last."
)


class AnswerSets:
    """The answers of each task.

    Args:
        tasks: in the order in which they were learned.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.names = [task.name for task in tasks]
        self._sets = {task.name: _answers(task) for task in tasks}

    def owner(self, answer: str, asked: str) -> str:
        """The task whose answer this is: the one that was asked where it may be, else the one learned last, or `NONE`.

        Args:
            answer: as given.
            asked: name of the task whose question it answers.
        """
        text = plain(answer)
        if text in self._sets.get(asked, ()):
            return asked
        return next((name for name in reversed(self.names) if text in self._sets[name]), NONE)

    def foreign(self, answer: str, asked: str) -> bool:
        """Whether an answer is another task's, and not one of the task that was asked."""
        return self.owner(answer, asked) not in (asked, NONE)


def confusion(sets: AnswerSets, answers: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """How many answers come from where.

    Args:
        sets: of the tasks.
        answers: to each task's questions; those of tasks that are not among the sets are left out.

    Returns:
        [tasks that were asked, in the order of `sets`; the same tasks, then `NONE`].
    """
    columns = [*sets.names, NONE]
    counts = {name: Counter(sets.owner(text, name) for text in answers.get(name, ())) for name in sets.names}
    return [[counts[name][column] for column in columns] for name in sets.names]


def plain(answer: str) -> str:
    """An answer for comparison: composed (NFC), without case, surplus white space and trailing periods."""
    return " ".join(unicodedata.normalize("NFC", answer).casefold().split()).rstrip(".").rstrip()


def _answers(task: Task) -> frozenset[str]:
    references = (answer for sample in task.test for answer in sample.answers)
    replies = (sample.reply for sample in task.train if sample.reply)
    return frozenset(map(plain, (*references, *replies, *task.choices)))
