"""The performance matrix: the score on each task after each stage, in memory and on disk."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl.errors import Problem, UserError
from mmcl.files import read_text, write_atomically

ZERO_SHOT = "zero-shot"
"""Name of the row of scores before any stage."""

Cells = Sequence[float | None]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Scores on every task after every stage; it need not be square.

    Scores are meant to lie in [0, 1], but any finite number is kept as it is, so that published tables in percent and
    scores that can be negative are read too.

    Attributes:
        tasks: names of the columns, unique.
        stages: names of the rows, in the order in which they were trained.
        values: [stages][tasks]; None where not measured.
        row0: scores before any stage (zero-shot), None if there is no such row.

    Raises:
        ValueError: if the parts don't fit together.
    """

    tasks: Sequence[str]
    stages: Sequence[str]
    values: Sequence[Cells]
    row0: Cells | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "values", tuple(tuple(row) for row in self.values))
        if self.row0 is not None:
            object.__setattr__(self, "row0", tuple(self.row0))
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"the tasks are not unique: {list(self.tasks)}")
        if any(stage.casefold() == ZERO_SHOT for stage in self.stages):
            raise ValueError(f"a stage can't be named {ZERO_SHOT!r}; give that row as row0")
        if len(self.values) != len(self.stages):
            raise ValueError(f"{len(self.values)} rows for {len(self.stages)} stages")
        for row in (*self.values, *(() if self.row0 is None else (self.row0,))):
            if len(row) != len(self.tasks):
                raise ValueError(f"a row of {len(row)} cells for {len(self.tasks)} tasks")
            if not all(cell is None or math.isfinite(cell) for cell in row):
                raise ValueError("scores must be finite; None where not measured")

    def to_dict(self) -> dict[str, Any]:
        """The document of `matrix.json`."""
        return {
            "tasks": list(self.tasks),
            "stages": list(self.stages),
            "matrix": [list(row) for row in self.values],
            "row0": None if self.row0 is None else list(self.row0),
        }

    @classmethod
    def from_dict(cls, data: Any, *, where: str = "matrix") -> Matrix:
        """The reverse of `to_dict`.

        Args:
            data: the parsed JSON document.
            where: the file, for messages.

        Raises:
            UserError: if it is no such document.
        """
        hint = (
            'expected {"tasks": [...], "stages": [...], "matrix": [[number or null, ...], ...], "row0": [...] or null}'
        )
        if not isinstance(data, Mapping) or not {"tasks", "stages", "matrix"} <= data.keys():
            raise UserError("is not a matrix", where=where, hint=hint)
        names = [data["tasks"], data["stages"]]
        rows = data["matrix"]
        if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in names):
            raise UserError("tasks and stages must be lists of names", where=where, hint=hint)
        if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
            raise UserError("matrix must be a list of rows of numbers and nulls", where=where, hint=hint)
        row0 = data.get("row0")
        if row0 is not None and not _is_row(row0):
            raise UserError("row0 must be a list of numbers and nulls, or null", where=where, hint=hint)
        try:
            return cls(data["tasks"], data["stages"], rows, row0)
        except ValueError as error:
            raise UserError(str(error), where=where, hint=hint) from error

    @classmethod
    def read(cls, path: Path) -> Matrix:
        """Read `matrix.json` or, with any other suffix, a CSV file.

        Raises:
            UserError: naming the file, and for a CSV file every bad row of it at once.
        """
        if path.suffix.lower() == ".json":
            try:
                data = json.loads(read_text(path))
            except json.JSONDecodeError as error:
                raise UserError(f"is not JSON: {error.msg}", where=f"{path}:{error.lineno}:{error.colno}") from error
            return cls.from_dict(data, where=str(path))
        return _matrix_of_csv(path)

    def write_json(self, path: Path) -> None:
        """Write `matrix.json`, whole or not at all."""
        write_atomically(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def write_csv(self, path: Path) -> None:
        """Write `matrix.csv`, whole or not at all: a header, the zero-shot row if there is one, a row per stage."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("stage", *self.tasks))
        if self.row0 is not None:
            writer.writerow((ZERO_SHOT, *map(_cell_text, self.row0)))
        for stage, row in zip(self.stages, self.values, strict=True):
            writer.writerow((stage, *map(_cell_text, row)))
        write_atomically(path, text.getvalue())


def read_references(path: Path, tasks: Sequence[str]) -> dict[str, float]:
    """One reference score per task: at random initialisation (`--baseline`), or of single-task models (`--single`).

    The file is either like `matrix.csv` with one row of any name (its zero-shot row counts if there is one; with a row
    per task, such as one single-task model each, the score on the row's own task counts), or has the header
    `task,score` and a row per task. Tasks may be missing.

    Args:
        path: the CSV file.
        tasks: the tasks of the matrix.

    Raises:
        UserError: naming the file and row, also for a task that the matrix doesn't have.
    """
    header, *rows = _csv_rows(path)
    problems: list[Problem] = []
    found: dict[str, float | None] = {}
    if [cell.casefold() for cell in header[1]] == ["task", "score"]:
        for line, row in rows:
            where = f"{path}:{line}"
            if len(row) != 2:
                problems.append(Problem(where, f"{len(row)} columns where the header has 2"))
            elif row[0] in found:
                problems.append(Problem(where, f"task {row[0]!r} has a row already"))
            else:
                found[row[0]] = _number(row[1], where, row[0], problems)
        lines = {row[0]: line for line, row in rows if row}
    else:
        matrix = _matrix_of_csv(path)
        lines = dict.fromkeys(matrix.tasks, header[0])
        if matrix.row0 is not None:
            found = dict(zip(matrix.tasks, matrix.row0, strict=True))
        elif len(matrix.stages) == 1:
            found = dict(zip(matrix.tasks, matrix.values[0], strict=True))
        elif matrix.stages and set(matrix.stages) <= set(matrix.tasks):
            column = {task: index for index, task in enumerate(matrix.tasks)}
            found = {task: row[column[task]] for task, row in zip(matrix.stages, matrix.values, strict=True)}
        else:
            raise UserError(
                f"has {len(matrix.stages)} rows; which one holds the reference scores?",
                where=str(path),
                hint="keep one row, or one row per task named like the task",
            )
    for task in found:
        if task not in tasks:
            near = difflib.get_close_matches(task, tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the matrix has: {', '.join(tasks)}"
            problems.append(Problem(f"{path}:{lines[task]}", f"unknown task {task!r}", hint))
    if problems:
        raise UserError(problems=problems)
    return {task: score for task, score in found.items() if score is not None}


def _matrix_of_csv(path: Path) -> Matrix:
    (header_line, header), *rows = _csv_rows(path)
    tasks = header[1:]
    where = f"{path}:{header_line}"
    problems: list[Problem] = []
    if header[0].casefold() != "stage":
        problems.append(Problem(where, f"the header begins with {header[0]!r}", "it must be: stage,TASK1,TASK2,..."))
    if not tasks:
        problems.append(Problem(where, "the header names no task", "it must be: stage,TASK1,TASK2,..."))
    if not all(tasks):
        problems.append(Problem(where, "a task has no name"))
    problems.extend(
        Problem(where, f"task {task!r} stands in two columns")
        for task in dict.fromkeys(tasks)
        if task and tasks.count(task) > 1
    )

    stages: list[str] = []
    values: list[list[float | None]] = []
    row0: list[float | None] | None = None
    for index, (line, row) in enumerate(rows):
        where = f"{path}:{line}"
        if len(row) != len(header):
            hint = f"write one cell per task after the stage: {len(tasks)}; leave a cell empty where not measured"
            problems.append(Problem(where, f"{len(row)} columns where the header has {len(header)}", hint))
            continue
        cells = [_number(text, where, task, problems) for task, text in zip(tasks, row[1:], strict=True)]
        if not row[0]:
            problems.append(Problem(where, "the stage has no name"))
        elif row[0].casefold() != ZERO_SHOT:
            stages.append(row[0])
            values.append(cells)
        elif index == 0:
            row0 = cells
        else:
            problems.append(Problem(where, f"only the first row can be {ZERO_SHOT}", "move it below the header"))
    if problems:
        raise UserError(problems=problems)
    return Matrix(tasks, stages, values, row0)


def _csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of a CSV file with their line numbers, cells stripped, blank lines left out; at least the header."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend(_stripped(reader))
    except csv.Error as error:
        raise UserError(f"is not CSV: {error}", where=f"{path}:{reader.line_num}") from error
    if not rows:
        raise UserError("the file is empty", where=f"{path}:1", hint="the header must be: stage,TASK1,TASK2,...")
    return rows


def _stripped(reader: Any) -> Iterator[tuple[int, list[str]]]:
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, [cell.strip() for cell in row]


def _number(text: str, where: str, task: str, problems: list[Problem]) -> float | None:
    """The cell's value, None where it is empty or, after adding a problem, where it is not a finite number."""
    if not text:
        return None
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if math.isfinite(value):
        return value
    hint = "write a number such as 0.5, or leave the cell empty where not measured"
    problems.append(Problem(where, f"{text!r} (task {task!r}) is not a number", hint))
    return None


def _cell_text(cell: float | None) -> str:
    return "" if cell is None else repr(float(cell))


def _is_row(row: object) -> bool:
    return isinstance(row, list) and all(
        cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool)) for cell in row
    )
