"""Knowledge that changes over time: the same question with a new right answer is an update, not something forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from typing import Any, Literal

from mmcl.data.types import Sample, Task
from mmcl.evaluation.ability import Gap, fuar

Change = Literal["updated", "invariant", "new"]

TAG = "knowledge"
"""Metadata key by which a stream can say itself what a test question is; otherwise it is found out."""

_Key = tuple[tuple[str, ...], str]

Scores = Mapping[str, float]
"""Score of each question of a task, by the question's id."""


@dataclass(frozen=True, slots=True)
class Period:
    """What one task did to knowledge.

    Attributes:
        task: its name.
        counts: how many of its questions are updated, invariant, new.
        forgotten: score on earlier tasks' questions that the task did not change, before minus after.
        updated: score on its updated questions, after minus before.
        acquired: score on its new questions, after minus before.
        outdated: score on earlier tasks' questions whose answer it changed, after: answers that are wrong by now. They
            are in the matrix's older columns, where they look like forgetting.
    """

    task: str
    counts: Mapping[str, int]
    forgotten: Gap
    updated: Gap
    acquired: Gap
    outdated: Gap


def changes(columns: Sequence[Task]) -> list[dict[str, Change]]:
    """Of each task in order, what its test questions are, by their id, in view of the tasks before.

    Questions are the same where images and text are. Test and training rows of earlier tasks both count as known.
    """
    known: dict[_Key, frozenset[str]] = {}
    found: list[dict[str, Change]] = []
    for task in columns:
        tags: dict[str, Change] = {}
        for sample in task.test:
            said = sample.metadata.get(TAG)
            old = known.get(_key(sample))
            tag: Change = "new" if old is None else "invariant" if old & frozenset(_answers(sample)) else "updated"
            tags[sample.id] = said if said in ("updated", "invariant", "new") else tag
        known.update((_key(sample), frozenset(_answers(sample))) for sample in (*task.train, *task.test))
        found.append(tags)
    return found


def changing(columns: Sequence[Task]) -> bool:
    """Whether any answer changes over the stream."""
    return any("updated" in tags.values() for tags in changes(columns))


def period(columns: Sequence[Task], place: int, before: Mapping[str, Scores], after: Mapping[str, Scores]) -> Period:
    """What learning `columns[place]` did.

    Args:
        columns: tasks in the order in which they were learned.
        place: of the task.
        before: scores of the questions of each task asked before it, by task.
        after: the same after it.
    """
    task = columns[place]
    tags = changes(columns)[place]
    replaced = {_key(sample) for sample in task.test if tags[sample.id] == "updated"}
    replaced |= {_key(sample) for sample in task.train} & _conflicts(columns[:place], task)
    kept: list[tuple[str, str]] = []
    outdated: list[tuple[str, str]] = []
    for earlier in columns[:place]:
        for sample in earlier.test:
            (outdated if _key(sample) in replaced else kept).append((earlier.name, sample.id))
    own = {tag: [(task.name, key) for key, value in tags.items() if value == tag] for tag in ("updated", "new")}
    lost = _gap(kept, before, after)
    return Period(
        task=task.name,
        counts={tag: sum(value == tag for value in tags.values()) for tag in ("updated", "invariant", "new")},
        forgotten=None if lost is None else -lost,
        updated=_gap(own["updated"], before, after),
        acquired=_gap(own["new"], before, after),
        outdated=_mean([after[name][key] for name, key in outdated if key in after.get(name, {})]),
    )


def knowledge_document(periods: Sequence[Period]) -> dict[str, Any]:
    """The document of `knowledge.json`: the periods, and the ratio over all of them."""
    ratio = fuar(
        [each.forgotten for each in periods],
        [each.updated for each in periods],
        [each.acquired for each in periods],
    )
    return {"periods": [asdict(each) for each in periods], "FUAR": ratio}


def _conflicts(earlier: Sequence[Task], task: Task) -> set[_Key]:
    """Questions that the task trains with another answer than an earlier task asks for."""
    now = {_key(sample): frozenset(_answers(sample)) for sample in task.train}
    return {
        _key(sample)
        for each in earlier
        for sample in each.test
        if _key(sample) in now and not now[_key(sample)] & frozenset(_answers(sample))
    }


def _gap(rows: Sequence[tuple[str, str]], before: Mapping[str, Scores], after: Mapping[str, Scores]) -> Gap:
    """Mean of after minus before over the rows asked both times; None where there are none."""
    both = [
        after[name][key] - before[name][key]
        for name, key in rows
        if key in before.get(name, {}) and key in after.get(name, {})
    ]
    return _mean(both)


def _mean(values: Sequence[float]) -> Gap:
    return fsum(values) / len(values) if values else None


def _key(sample: Sample) -> _Key:
    return tuple(image.digest for image in sample.images), sample.question


def _answers(sample: Sample) -> tuple[str, ...]:
    return tuple(answer.strip().casefold() for answer in (sample.answers or (sample.reply,)))
