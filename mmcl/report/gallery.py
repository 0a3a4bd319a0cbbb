"""What was forgotten: questions answered well after their task was learned, and worse at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmcl.report.pictures import Picture, thumbnail
from mmcl.report.run import Answer, Variant

PER_TASK = 8
"""Questions shown of each task."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """One question with the answer after its task was learned and the answer at the end."""

    question: str
    references: tuple[str, ...]
    before: Answer
    after: Answer
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What one task lost.

    Attributes:
        task: its name.
        learned: label of the stage that learned it.
        last: label of the last stage.
        asked: questions asked at both times.
        fell: questions whose score fell.
        answers: the most frequent answers to those now, with their counts.
        shown: a choice of them.
    """

    task: str
    learned: str
    last: str
    asked: int
    fell: int
    answers: tuple[tuple[str, int], ...]
    shown: tuple[Forgotten, ...]


def forgotten(variant: Variant, folder: Path, *, limit: int = PER_TASK) -> list[Forgetting]:
    """For each task that a later stage followed, the questions whose score fell, `limit` of them for showing."""
    result = []
    for task in variant.tasks:
        learned = variant.learned(task)
        if learned is None or learned == len(variant.rows) - 1:
            continue
        last = variant.row_stages[-1]
        before = {row.id: row for row in variant.row_stages[learned].answers(task)}
        pairs = [(before[row.id], row) for row in last.answers(task) if row.id in before]
        fell = [(old, new) for old, new in pairs if new.score < old.score]
        if fell:
            now = Counter(new.text.strip() for _, new in fell).most_common(4)
            shown = tuple(_forgotten(old, new, folder) for old, new in _choice(fell, folder / "gallery", limit))
            label = variant.rows[learned]
            result.append(Forgetting(task, label, last.label, len(pairs), len(fell), tuple(now), shown))
    return result


def _choice(pairs: list[tuple[Answer, Answer]], gallery: Path, limit: int) -> list[tuple[Answer, Answer]]:
    """Questions whose images can be shown come first: a run keeps thumbnails of some of its images only."""
    kept: list[tuple[Answer, Answer]] = []
    rest: list[tuple[Answer, Answer]] = []
    for pair in pairs:
        seen = all((gallery / f"{digest}.png").is_file() for _, digest in pair[1].images)
        (kept if seen else rest).append(pair)
    chosen = diverse(kept, limit)
    return chosen + diverse(rest, limit - len(chosen))


def diverse(pairs: list[tuple[Answer, Answer]], limit: int) -> list[tuple[Answer, Answer]]:
    """Choose pairs that differ: the next one has the answer, reference, group and image that were shown least so far.

    Among equals the larger fall comes first, then the order of the file, so the choice is the same every time.
    """
    left = list(pairs)
    chosen: list[tuple[Answer, Answer]] = []
    shown: Counter[tuple[str, object]] = Counter()

    def traits(new: Answer) -> tuple[tuple[str, object], ...]:
        text = new.text.strip()
        return ("answer", text), ("reference", new.references[:1]), ("group", new.group), ("image", new.images)

    while left and len(chosen) < limit:
        best = min(left, key=lambda pair: (*(shown[trait] for trait in traits(pair[1])), pair[1].score - pair[0].score))
        left.remove(best)
        chosen.append(best)
        shown.update(traits(best[1]))
    return chosen


def _forgotten(old: Answer, new: Answer, folder: Path) -> Forgotten:
    pictures = tuple(Picture(name, thumbnail(folder / "gallery", digest)) for name, digest in new.images)
    question = new.prompt.replace("<image>", "").strip()
    return Forgotten(question, tuple(dict.fromkeys(new.references)), old, new, pictures)
