"""Checks of a stream's data before anything is trained: mistakes, and what the data are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmcl.data.types import IMAGE_PLACEHOLDER, ImageSource, Sample, Samples, Task
from mmcl.errors import Problem, UserError

NAMED = 5
"""So many of the rows, images and answers concerned are named."""


def check_tasks(tasks: Sequence[Task]) -> tuple[list[Problem], dict[str, Any]]:
    """Every mistake in the data, and a report on them. Decodes every image once.

    Args:
        tasks: of one stream, in order.

    Returns:
        The mistakes, and a document for JSON. Its `tasks` is a list with, per task, `name`, `kind`, `metric`; the
        sizes of `train` and `test` (`rows`, distinct `images`, `text_only`, the share of rows without an image, and
        `words` of a row's texts: median, 95th percentile, most);
        `test_images_in_training`, the distinct test images whose content occurs in training rows of any task; and
        `answers_not_in_training`, the test questions none of whose references is an answer in the task's own training
        rows. Its `notes` are sentences on what deserves a look and is no mistake.
    """
    problems: list[Problem] = []
    documents: list[dict[str, Any]] = []
    images: dict[str, list[Mapping[str, str]]] = {"train": [], "test": []}  # per task: name of each distinct content
    faults: dict[str, str] = {}
    for task in tasks:
        if not task.train:
            hint = "add training rows, or leave the task out"
            problems.append(Problem(f"task {task.name}, train", "there are no training rows", hint))
        document: dict[str, Any] = {"name": task.name, "kind": task.kind, "metric": task.metric}
        for split, samples in (("train", task.train), ("test", task.test)):
            where = f"task {task.name}, {split}"
            problems += _rows(where, split, samples)
            problems += _outside(where, split, samples, task.choices)
            found, unreadable = _images(samples, faults)
            if unreadable:
                message = f"can't read {_some(unreadable, 'image', 'images')}"
                problems.append(Problem(where, message, "copy or download them again, or leave their rows out"))
            images[split].append(found)
            without = sum(not sample.images for sample in samples)
            share = round(without / len(samples), 4) if samples else 0.0
            words = _percentiles([sum(len(turn.text.split()) for turn in sample.turns) for sample in samples])
            document[split] = {"rows": len(samples), "images": len(found), "text_only": share, "words": words}
        documents.append(document)
    for index, (task, document) in enumerate(zip(tasks, documents, strict=True)):
        seen = {other.name: found for other, found in zip(tasks, images["train"], strict=True)}
        document["test_images_in_training"] = _leaks(images["test"][index], seen)
        document["answers_not_in_training"] = _new_answers(task)
    return problems, {"tasks": documents, "notes": _notes(documents)}


# ------------------------------------------------------------------------------------------------------------ mistakes


def _rows(where: str, split: str, samples: Samples) -> list[Problem]:
    """Mistakes that need no image to be opened."""

    def mismatch(sample: Sample) -> bool:
        return sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns) != len(sample.images)

    def unanswered(sample: Sample) -> bool:
        return not sample.reply.strip() if split == "train" else not any(map(str.strip, sample.answers))

    checks: tuple[tuple[Callable[[Sample], bool], str, str], ...] = (
        (
            mismatch,
            f"more or fewer `{IMAGE_PLACEHOLDER}` in the text than images in",
            f"write `{IMAGE_PLACEHOLDER}` once for each image, where it stands in the user's text",
        ),
        (
            unanswered,
            "no answer in",
            "end a training row with an assistant turn" if split == "train" else "give a test row its references",
        ),
    )
    problems = []
    for wrong, message, hint in checks:
        concerned = [sample.id for sample in samples if wrong(sample)]
        if concerned:
            problems.append(Problem(where, f"{message} {_some(concerned, 'row', 'rows')}", hint))
    repeated = [key for key, count in Counter(sample.id for sample in samples).items() if count > 1]
    if repeated:
        message = f"several rows have the same id: {_some(repeated, 'id', 'ids')}"
        problems.append(Problem(where, message, "make ids unique within the split"))
    return problems


def _outside(where: str, split: str, samples: Samples, choices: Sequence[str]) -> list[Problem]:
    """Labels that the task's closed vocabulary does not have."""
    if not choices:
        return []
    known = {choice.strip().casefold() for choice in choices}
    found = [
        f"{answer!r} in row {sample.id}"
        for sample in samples
        for answer in ((sample.reply,) if split == "train" else sample.answers)
        if answer.strip().casefold() not in known
    ]
    if not found:
        return []
    message = f"labels outside the task's choices: {_some(found, 'row', 'rows')}"
    return [Problem(where, message, f"add them to `choices`, which are {', '.join(choices[:NAMED])} ...")]


def _percentiles(counts: list[int]) -> dict[str, int]:
    """Median, 95th percentile and largest of the counts; nothing for none."""
    ranked = sorted(counts)
    last = len(ranked) - 1
    return {name: ranked[round(share * last)] for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)) if ranked}


def _images(samples: Samples, faults: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Distinct readable images and unreadable ones.

    Args:
        samples: of one split.
        faults: for each content that was decoded before, what is wrong with it (empty: nothing); is added to.

    Returns:
        The name of each distinct content, by digest; and names with what is wrong.
    """
    found: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for image in (image for sample in samples for image in sample.images):
        if image.name in unreadable:
            continue
        try:
            digest = image.digest
        except UserError as error:
            unreadable[image.name] = error.problems[0].message
            continue
        if digest not in faults:
            faults[digest] = _fault(image)
        if faults[digest]:
            unreadable[image.name] = faults[digest]
        else:
            found.setdefault(digest, image.name)
    return found, [f"{name} ({fault})" for name, fault in unreadable.items()]


def _fault(image: ImageSource) -> str:
    """What is wrong with an image; empty if nothing."""
    try:
        image.open()
    except UserError as error:
        return error.problems[0].message
    return ""


# --------------------------------------------------------------------------------------------------------------- notes


def _leaks(test: Mapping[str, str], training: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Test images that occur in training rows, by digest."""
    per_task = {name: len(test.keys() & found.keys()) for name, found in training.items()}
    shared = [name for digest, name in test.items() if any(digest in found for found in training.values())]
    return {
        "images": len(shared),
        "of": len(test),
        "examples": shared[:NAMED],
        "tasks": {name: count for name, count in per_task.items() if count},
    }


def _new_answers(task: Task) -> dict[str, Any]:
    """Test questions that training never answers so, whatever the case."""
    known = {turn.text.strip().casefold() for row in task.train for turn in row.turns if turn.role == "assistant"}
    new = [
        row.answers[0]
        for row in task.test
        if row.answers and not any(answer.strip().casefold() in known for answer in row.answers)
    ]
    return {"questions": len(new), "of": len(task.test), "examples": list(dict.fromkeys(new))[:NAMED]}


def _notes(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    for document in documents:
        if document["kind"] in ("instruct", "refine") and not document["test"]["rows"]:
            notes.append(f"task {document['name']}: it has no test rows, so no column shows what becomes of it")
        leaks, answers = document["test_images_in_training"], document["answers_not_in_training"]
        if leaks["images"]:
            places = ", ".join(leaks["tasks"])
            notes.append(
                f"task {document['name']}: {leaks['images']} of {leaks['of']} test images occur in the training rows "
                f"of {places}"
            )
        if answers["questions"]:
            notes.append(
                f"task {document['name']}: {answers['questions']} of {answers['of']} test questions have answers that "
                f"its training rows never give"
            )
    return notes


def _some(names: Sequence[str], one: str, many: str) -> str:
    """How many, and the first ones by name: `7 rows: a, b, c, d, e and 2 more`."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {one if len(names) == 1 else many}: {', '.join(names[:NAMED])}{more}"
