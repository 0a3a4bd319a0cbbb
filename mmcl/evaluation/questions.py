"""Answers put beside the questions that they answer: what is missing, repeated, or to no question at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmcl.data.types import Samples
from mmcl.errors import Problem, UserError
from mmcl.protocols import Format, Prediction
from mmcl.recipe import registry

NAMED = 5
"""So many ids are named in a message."""


@dataclass(frozen=True, slots=True)
class Matched:
    """The answers in the order of the questions.

    Attributes:
        rows: one per question; an empty answer where there was none, which every metric counts as wrong.
        missing: ids of questions without an answer.
        repeated: ids that have several equal answers, of which one counts.
        unknown: ids of answers to none of the questions, which don't count.
    """

    rows: list[Prediction]
    missing: list[str]
    repeated: list[str]
    unknown: list[str]

    def warnings(self) -> list[str]:
        """What a reader of the score has to know."""
        total = len(self.rows)
        texts = {
            f"{len(self.missing)} of {total} questions have no answer and count as wrong": self.missing,
            "these questions have several equal answers, one counts": self.repeated,
            "these answers are to no question of the file and don't count": self.unknown,
        }
        return [f"{text}: {named(ids)}" for text, ids in texts.items() if ids]


def read_questions(path: Path, *, form: str, images: Path | None, folder: Path) -> Samples:
    """The questions of a file.

    Args:
        path: the file.
        form: how it is read, as in a recipe: a format's name, or `{name: NAME, option: value}` as YAML.
        images: folder that image paths start from; None for the folder of the file.
        folder: where a format's `./file.py:Class` is looked for.

    Raises:
        UserError: naming every mistake, also a file without a question that has references.
    """
    try:
        data: Any = yaml.safe_load(form)
    except yaml.YAMLError as error:
        hint = "write a name from `mmcl list formats`, or '{name: NAME, option: value}'"
        raise UserError(f"{form!r} is no format", where="--format", hint=hint) from error
    if isinstance(data, str):
        data = {"name": data}
    if isinstance(data, dict) and "split" in {option.name for option in _options(data, folder)}:
        data = {"split": "test", **data}
    spec, problems = registry.read("formats", data, folder, "--format")
    if spec is None:
        raise UserError(problems=problems)
    reader: Format = registry.build("formats", spec, folder)
    if not path.exists():
        raise UserError("there is no such file", where=str(path))
    samples = [sample for sample in reader.read(path, task="", images=images) if sample.answers]
    if not samples:
        raise UserError("holds no question with references", where=str(path))
    return samples


def match(rows: Sequence[Prediction], questions: Samples, *, answers: Path, asked: Path) -> Matched:
    """Answers beside their questions, by id; references, groups and further keys are those of the questions.

    Args:
        rows: the answers.
        questions: with references.
        answers: the file of the answers, for messages.
        asked: the file of the questions.

    Raises:
        UserError: a question has two different answers, or no answer is to any of the questions.
    """
    given: dict[str, list[str]] = {}
    for row in rows:
        given.setdefault(row.id, []).append(row.text)
    ids = {question.id for question in questions}
    if not ids & given.keys():
        few = f"the questions are {named(list(dict.fromkeys(q.id for q in questions)))}, the answers {named([*given])}"
        hint = "give the file that these questions were taken from; ids are compared as texts"
        raise UserError(f"no answer is to a question of {asked}: {few}", where=str(answers), hint=hint)
    problems = [
        Problem(f"{answers} (question {key})", f"has {len(set(texts))} different answers", "keep one of them")
        for key, texts in given.items()
        if key in ids and len(set(texts)) > 1
    ]
    if problems:
        raise UserError(problems=problems)
    routes = {row.id: row.route for row in rows}
    empty = Prediction("", "", "", "", ())
    matched = [
        dataclasses.replace(
            empty,
            id=question.id,
            prompt=question.question,
            text=given.get(question.id, [""])[0],
            answers=question.answers,
            route=routes.get(question.id, "base"),
            group=question.group,
            metadata=question.metadata,
        )
        for question in questions
    ]
    return Matched(
        rows=matched,
        missing=[question.id for question in questions if question.id not in given],
        repeated=[key for key, texts in given.items() if key in ids and len(texts) > 1],
        unknown=[key for key in given if key not in ids],
    )


def named(ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    shown = ", ".join(ids[:NAMED])
    return shown if len(ids) <= NAMED else f"{shown} and {len(ids) - NAMED} more"


def _options(data: dict[str, Any], folder: Path) -> list[registry.Option]:
    name = data.get("name")
    return registry.signature("formats", name, folder) if isinstance(name, str) else []
