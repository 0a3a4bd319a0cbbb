"""What is known of each cell of the matrix beside its score: how it was measured, when, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcl.report import units
from mmcl.report.files import expect, need, read_object, score


@dataclass(frozen=True, slots=True)
class CellInfo:
    """One cell.

    Attributes:
        task: its name; file names may differ.
        answers: path of the answer file.
        metric: name of the metric, with `mode`, `definition` and what it `follows`.
        n: questions asked; None where the file does not say.
        questions: how many the task has.
        seconds: that measuring the cell took.
        reused: how many answers were taken over from earlier stages.
        origins: for each stage's folder name, how many.
        interval: 95 % interval, where only some of the questions were asked.
        interval_definition: what the interval means, or why there is none.
        how: `greedy` or `likelihood`.
        choices: how many answers a likelihood was compared of, and who says which (`count`, `source`).
    """

    task: str
    answers: Path
    metric: str = ""
    mode: str = ""
    definition: str = ""
    follows: str = ""
    n: int | None = None
    questions: int | None = None
    seconds: float | None = None
    reused: int = 0
    origins: Mapping[str, int] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    interval_definition: str = ""
    how: str = "greedy"
    choices: Mapping[str, Any] | None = None

    @property
    def sampled(self) -> bool:
        """Whether only some of the task's questions were asked."""
        return self.n is not None and self.questions is not None and self.n < self.questions

    @property
    def taken_over(self) -> bool:
        """Whether no question of the cell was asked."""
        return self.n is not None and 0 < self.n <= self.reused

    def notes(self, stages: Mapping[str, str]) -> list[str]:
        """What to say about the cell, in plain language.

        Args:
            stages: what the stage of a folder name is called.
        """
        found = []
        if self.interval is not None:
            ends = " to ".join(units.percent(end) for end in self.interval)
            found.append(f"95 % interval {ends}, from {self.n} of {self.questions} questions")
        elif self.sampled:
            found.append(f"{self.n} of {self.questions} questions")
        if self.reused:
            origins = ", ".join(stages.get(folder, folder) for folder in self.origins)
            amount = "" if self.taken_over else f"{self.reused} of {self.n} answers "
            found.append(f"{amount}taken over from {origins}: same weights, route and prompt")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for the run's document."""
        ends = None if self.interval is None else list(self.interval)
        return {"n": self.n, "questions": self.questions, "reused": self.reused, "interval": ends}


def read_cells(folder: Path) -> dict[str, CellInfo]:
    """The cells of a stage, by task.

    Raises:
        UserError: a file is broken; it is named.
    """
    found = {}
    for path in sorted((folder / "predictions").glob("*.jsonl")):
        about = path.with_suffix(".json")
        info = _cell(read_object(about), path, str(about)) if about.is_file() else CellInfo(path.stem, path)
        found[info.task] = info
    return found


def _cell(row: dict[str, Any], path: Path, where: str) -> CellInfo:
    def number(key: str) -> int | None:
        return None if row.get(key) is None else expect(row[key], int, where, key)

    origins = expect(row.get("from", {}), dict, where, "from")
    ends = row.get("interval")
    interval = (
        None if ends is None else [score(end, where, "interval") for end in expect(ends, list, where, "interval")]
    )
    low, high = interval if interval is not None and len(interval) == 2 else (None, None)
    choices = row.get("choices")
    return CellInfo(
        task=need(row, "task", str, where),
        answers=path,
        metric=str(row.get("metric") or ""),
        mode=str(row.get("mode") or ""),
        definition=str(row.get("definition") or ""),
        follows=str(row.get("follows") or ""),
        n=number("n"),
        questions=number("questions"),
        seconds=None if row.get("seconds") is None else expect(row["seconds"], float, where, "seconds"),
        reused=number("reused") or 0,
        origins={stage: expect(count, int, where, "from") for stage, count in origins.items()},
        interval=None if low is None or high is None else (low, high),
        interval_definition=str(row.get("interval_definition") or ""),
        how=str(row.get("answers") or "greedy"),
        choices=None if choices is None else expect(choices, dict, where, "choices"),
    )
