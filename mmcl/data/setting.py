"""The setting of a stream: in which order its tasks come, whether they return, and how sharply one ends.

All of it is done to the data: methods get tasks as ever. Samples that train in another task's place are its own from
then on (`Sample.task`); where they came from stays in their metadata (`ORIGIN`).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Literal

from mmcl.data.types import Sample, Samples, Task
from mmcl.errors import Problem, UserError

Order = Literal["given", "reversed", "random", "time"]
Boundaries = Literal["clear", "blurry", "none"]

ORIGIN = "origin"
"""Metadata key: the task that a sample was made for, where it trains in another one's place."""

_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2})(?:[T ].*)?)?)?", re.ASCII)


def arrange(
    tasks: Sequence[Task], *, order: Order, cycles: int, boundaries: Boundaries, leak: float, seed: int
) -> list[Task]:
    """The tasks as the setting wants them.

    Tasks of each kind are arranged among themselves, in the kinds' places. Those of an alignment stay as they are.

    Args:
        tasks: of a stream.
        order: `time` sorts by the tasks' period tags, equal ones as given.
        cycles: how often the tasks come; from the second time on their names end in `-2`, `-3` ...
        boundaries: `blurry` lets the share `leak` of each task's training samples train with the tasks beside it, half
            with each (at the ends, all with the one). `none` has no boundary: around the middle between two tasks, a
            sample may train on either side, the likelier the nearer.
        leak: share of a task's samples, in [0, 1].
        seed: of the random order and of which samples leak.

    Raises:
        UserError: a period tag can't be read.
    """
    kinds = list(dict.fromkeys(task.kind for task in tasks))
    result: list[Task] = []
    for kind in kinds:
        group = [task for task in tasks if task.kind == kind]
        if kind == "align":
            result += group
            continue
        group = _ordered(group, order, seed)
        group = [returned(task, time) for time in range(1, cycles + 1) for task in group]
        if boundaries == "blurry":
            group = _blurred(group, leak, seed)
        elif boundaries == "none":
            group = _smooth(group, seed)
        result += group
    return result


def returned(task: Task, time: int) -> Task:
    """The task when it comes for the `time`-th time: a version with a name and a column of its own."""
    if time == 1:
        return task
    name = f"{task.name}-{time}"
    train, test = (
        [sample.replace(task=name, metadata={**sample.metadata, ORIGIN: task.name}) for sample in samples]
        for samples in (task.train, task.test)
    )
    return replace(task, name=name, train=train, test=test)


def together(tasks: Sequence[Task]) -> tuple[Task, tuple[Task, ...]]:
    """Several tasks as one: what a stage trains, and its columns.

    Samples of all belong to the one task, whose name joins the names by `+`; each column keeps its name and its metric.
    """
    if len(tasks) == 1:
        return tasks[0], (tasks[0],) if tasks[0].test else ()
    name = "+".join(task.name for task in tasks)
    columns = tuple(replace(task, test=own(task.test, name)) for task in tasks if task.test)
    train = [sample for task in tasks for sample in own(task.train, name)]
    heldout = [sample for task in tasks for sample in own(task.heldout, name)]
    return replace(tasks[0], name=name, train=train, test=(), heldout=heldout, choices=()), columns


def parse_period(tag: str) -> date | None:
    """The first day of a period such as `2024`, `2024-03` or `2024-03-17`; None where it is none."""
    found = _DATE.fullmatch(tag.strip())
    if not found:
        return None
    year, month, day = (int(part) if part else 1 for part in found.groups())
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _ordered(tasks: list[Task], order: Order, seed: int) -> list[Task]:
    if order == "reversed":
        return tasks[::-1]
    if order == "random":
        random.Random(f"order {seed}").shuffle(tasks)
    if order == "time":
        periods = {task.name: parse_period(task.time) for task in tasks}
        hint = "tag every task with its period: `2024`, `2024-03` or `2024-03-17`"
        problems = [
            Problem(f"stream, task {task.name}, time", f"`{task.time}` is no date" if task.time else "no period", hint)
            for task in tasks
            if periods[task.name] is None
        ]
        if problems and len(tasks) > 1:
            raise UserError(problems=problems)
        return sorted(tasks, key=lambda task: periods[task.name] or date.min)
    return tasks


def own(samples: Samples, name: str) -> list[Sample]:
    """The samples as rows of the task `name`."""
    return [sample if sample.task == name else _moved(sample, name) for sample in samples]


def _moved(sample: Sample, name: str) -> Sample:
    origin = sample.metadata.get(ORIGIN, sample.task)
    metadata: Mapping[str, object] = {**sample.metadata, ORIGIN: origin}
    return sample.replace(id=f"{sample.task}/{sample.id}", task=name, metadata=metadata)


def _ranked(samples: Samples, seed: int) -> list[Sample]:
    """In an order that is random and the same on every machine."""
    key = f"leak {seed}"
    return sorted(samples, key=lambda s: hashlib.sha256(f"{key}/{s.task}/{s.id}".encode()).digest())


def _blurred(tasks: list[Task], leak: float, seed: int) -> list[Task]:
    if len(tasks) < 2 or not leak:
        return tasks
    trains: list[list[Sample]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        ranked = _ranked(task.train, seed)
        leaving = ranked[: round(leak * len(ranked))]
        gone = {id(sample) for sample in leaving}
        trains[index] += [sample for sample in task.train if id(sample) not in gone]
        beside = [place for place in (index - 1, index + 1) if 0 <= place < len(tasks)]
        for number, sample in enumerate(leaving):
            place = beside[number % len(beside)]
            trains[place] += own([sample], tasks[place].name)
    return [replace(task, train=train) for task, train in zip(tasks, trains, strict=True)]


def _smooth(tasks: list[Task], seed: int) -> list[Task]:
    """One sequence without steps, cut into as many pieces as there are tasks, each named after the task in its middle.

    A sample of the task k stands at k + u + v, u uniform in [0, 1), v uniform in [-1/2, 1/2): the share of a task in
    the sequence rises and falls in straight lines over a task's length.
    """
    trains: list[list[Sample]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        rng = random.Random(f"smooth {seed} {task.name}")
        for sample in _ranked(task.train, seed):
            place = min(max(int(index + rng.random() + rng.random() - 0.5), 0), len(tasks) - 1)
            trains[place] += own([sample], tasks[place].name)
    return [replace(task, train=train) for task, train in zip(tasks, trains, strict=True)]
