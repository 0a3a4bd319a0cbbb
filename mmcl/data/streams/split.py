"""A stream whose tasks are made of another one's samples: by period, language, group, class, or any key of the rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from mmcl.data.setting import own, parse_period
from mmcl.data.types import Sample, Samples, Task
from mmcl.errors import Problem, UserError
from mmcl.protocols import Stream

NAMED = 5
"""So many of the rows concerned are named."""

_LENGTHS = {"year": 4, "month": 7, "day": 10}


class Split:
    """The samples of another stream, told apart by something that the rows say.

    - `time`: one task per period, in order; no sample of a later period is used earlier.
    - `language`, `group`, or a key of the rows: one task per value.
    - `answer`: class-incremental; `per_task` classes make a task, which has them as its `choices`.

    Tasks that only train (captions for an alignment) stay as they are and come first.

    Args:
        stream: whose samples they are.
        by: `time`, `language`, `group`, `answer`, or a key of the rows' metadata.
        every: length of a period.
        values: which values make tasks, and in what order; rows with others are left out. Default: all, sorted.
        per_task: so many values make one task.
    """

    def __init__(
        self,
        *,
        stream: Stream,
        by: str,
        every: Literal["year", "month", "day"] = "year",
        values: list[str] | None = None,
        per_task: int = 1,
    ) -> None:
        if per_task < 1:
            raise UserError(f"{per_task} is too small", where="stream.per_task", hint="at least 1")
        self.stream = stream
        self.by = by
        self.every = every
        self.values = values
        self.per_task = per_task

    def tasks(self) -> Sequence[Task]:
        """The tasks in order.

        Raises:
            UserError: rows without the value, dates that can't be read, test rows of a class that is never trained.
        """
        given = list(self.stream.tasks())
        apart = [task for task in given if not task.test]
        mixed = [task for task in given if task.test]
        if not mixed:
            raise UserError("the stream has no tasks with test questions to split", where="stream.stream")
        value = self._reader()
        problems: list[Problem] = []
        parts: dict[str, dict[str, list[Sample]]] = {"train": {}, "test": {}}
        for split, found in parts.items():
            samples = [sample for task in mixed for sample in (task.train if split == "train" else task.test)]
            problems += self._sort(samples, split, value, found)
        values = list(self.values) if self.values is not None else sorted(parts["train"])
        wanted = set(values) if self.values is not None else set(parts["test"])
        unknown = sorted(wanted - set(parts["train"]))
        if unknown:
            message = f"no training row has {_some(unknown)} as its {self.by}"
            problems.append(Problem("stream.values" if self.values else "stream.stream, test", message, "leave it out"))
        if problems:
            raise UserError(problems=problems)
        groups = [values[start : start + self.per_task] for start in range(0, len(values), self.per_task)]
        return [*apart, *(self._task(place, group, parts, mixed[0]) for place, group in enumerate(groups))]

    def _reader(self) -> Callable[[Sample], str]:
        """What a sample is told apart by; empty where it says nothing."""
        if self.by == "time":
            return lambda sample: _period(sample.time, self.every)
        if self.by == "answer":
            return lambda sample: (sample.reply or next(iter(sample.answers), "")).strip()
        if self.by in ("language", "group"):
            return lambda sample: str(getattr(sample, self.by))
        return lambda sample: str(sample.metadata.get(self.by, ""))

    def _sort(
        self, samples: Samples, split: str, value: Callable[[Sample], str], found: dict[str, list[Sample]]
    ) -> list[Problem]:
        without = []
        for sample in samples:
            key = value(sample)
            if key:
                found.setdefault(key, []).append(sample)
            else:
                without.append(sample.id)
        if not without:
            return []
        if self.by == "time":
            message, hint = f"no date can be read in {_some(without)}", "write `2024`, `2024-03` or `2024-03-17`"
        else:
            message, hint = f"no `{self.by}` in {_some(without)}", "give every row one, or split by another key"
        return [Problem(f"stream.stream, {split}", message, hint)]

    def _task(self, place: int, values: Sequence[str], parts: dict[str, dict[str, list[Sample]]], like: Task) -> Task:
        first = place * self.per_task + 1
        if len(values) == 1:
            name = re.sub(r"[^\w -]", "_", values[0]).lstrip("_ -") or f"part-{first}"
        else:
            name = f"{'classes' if self.by == 'answer' else 'parts'} {first}-{first + len(values) - 1}"
        train, test = ([s for value in values for s in part.get(value, [])] for part in parts.values())
        return replace(
            like,
            name=name,
            train=own(train, name),
            test=own(test, name),
            time=values[0] if self.by == "time" else like.time,
            language=values[0] if self.by == "language" else like.language,
            domain=values[0] if self.by == "group" else like.domain,
            choices=tuple(values) if self.by == "answer" else like.choices,
        )


def _period(tag: str, every: str) -> str:
    """The period that a date lies in, `2024`, `2024-03` or `2024-03-17`; empty where there is no date."""
    day = parse_period(tag)
    return "" if day is None else day.isoformat()[: _LENGTHS[every]]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(repr(name) for name in names[:NAMED])}{more}"
