"""Questions about images, from the benchmarks' own files: VQAv2, GQA, TextVQA, OCR-VQA, VizWiz, DocVQA, ChartQA."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from mmcl.data.formats.official import BadRow, Listed, Official, Reading, Split
from mmcl.errors import UserError


class VQAv2(Official):
    """VQAv2 (Goyal et al. 2017, 1612.00837): questions and annotations in two files.

    Training takes `multiple_choice_answer`, test the answers of all ten annotators.

    Args:
        split: what the file is used for.
        suffix: put after every question.
        annotations: the file with the answers, relative to the questions' folder; by default the official name there
            (`v2_OpenEnded_mscoco_train2014_questions.json` has `v2_mscoco_train2014_annotations.json`).
        image_name: how images are called; `subset` is the questions' `data_subtype`, `id` the image's number.
        group: key of the annotations that is the sample's group; empty for none.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        suffix: str = "",
        annotations: str = "",
        image_name: str = "COCO_{subset}_{id:012d}.jpg",
        group: Literal["question_type", "answer_type", ""] = "",
    ) -> None:
        try:
            image_name.format(subset="train2014", id=1)
        except (KeyError, ValueError, IndexError) as error:
            hint = "use {subset} and {id}, as in COCO_{subset}_{id:012d}.jpg"
            raise UserError(f"`{image_name}` is no pattern", where="vqav2.image_name", hint=hint) from error
        self.split, self.suffix = split, suffix
        self.annotations, self.image_name, self.group = annotations, image_name, group

    def signs(self) -> Sequence[str]:
        """Of the questions."""
        return ("questions", "data_subtype")

    def collect(self, reading: Reading) -> None:
        """One sample per question that is annotated."""
        name = re.sub(r"OpenEnded_(.*)_questions(\.json)?$", r"\1_annotations\2", reading.path.name)
        answers = reading.path.parent / (self.annotations or name)
        content = reading.load()
        if content is None:
            return
        if not isinstance(content, dict) or not answers.is_file() or answers == reading.path:
            hint = "give the questions' file as `path`, and `annotations: FILE` if it is not called as officially"
            reading.fail(f"there is no file of annotations {answers.name} beside it", hint)
            return
        table = reading.load(answers)
        subset = str(content.get("data_subtype") or "")
        annotated: dict[str, Any] = {}
        for row in reading.rows(table.get("annotations") if isinstance(table, dict) else table, "`annotations`"):
            annotated[str(row.get("question_id"))] = row
        for row in reading.rows(content.get("questions"), "`questions`"):
            try:
                identity, number = reading.text(row, "question_id"), reading.get(row, "image_id", int)
                answer = annotated.get(identity)
                if answer is None:
                    raise reading.wrong(
                        "question_id", f"question {identity} is not annotated", "give both files of a split"
                    )
                reading.add(
                    identity,
                    reading.text(row, "question"),
                    reading.texts(answer, "answers", "answer"),
                    image=self.image_name.format(subset=subset, id=number),
                    reply=reading.text(answer, "multiple_choice_answer"),
                    group=reading.text(answer, self.group) if self.group else "",
                    question_type=answer.get("question_type"),
                    answer_type=answer.get("answer_type"),
                )
            except BadRow:
                continue


class GQA(Official):
    """GQA (Hudson and Manning 2019, 1902.09506): `train_balanced_questions.json` and the like.

    Args:
        split: what the file is used for.
        suffix: put after every question.
        group: which of the question's `types` is the sample's group; empty for none.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        suffix: str = "",
        group: Literal["structural", "semantic", "detailed", ""] = "",
    ) -> None:
        self.split, self.suffix, self.group = split, suffix, group

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("imageId", "fullAnswer")

    def collect(self, reading: Reading) -> None:
        """One sample per question."""
        content = reading.load()
        for key, row in reading.items(content, "the file") if content is not None else ():
            try:
                types = row.get("types")
                group = str(types.get(self.group) or "") if self.group and isinstance(types, dict) else ""
                image = f"{reading.text(row, 'imageId')}.jpg"
                reading.add(key, reading.text(row, "question"), [reading.text(row, "answer")], image=image, group=group)
            except BadRow:
                continue


class TextVQA(Listed):
    """TextVQA (Singh et al. 2019, 1904.08920): `TextVQA_0.5.1_train.json`. Training takes the most frequent answer."""

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("data", "question_id", "image_id")

    def table(self, content: Any) -> Any:
        """Under `data`."""
        return _data(content)

    def row(self, reading: Reading, row: Mapping[str, Any]) -> None:
        """One sample per question."""
        image, answers = f"{reading.text(row, 'image_id')}.jpg", reading.texts(row, "answers")
        reading.add(reading.text(row, "question_id"), reading.text(row, "question"), answers, image=image)


class OCRVQA(Official):
    """OCR-VQA (Mishra et al. 2019): `dataset.json`, book covers with several questions each.

    Args:
        split: what is read: `train` is the file's split 1, `test` its split 3.
        suffix: put after every question.
        part: read this split of the file instead (2 is validation).
    """

    def __init__(self, *, split: Split = "train", suffix: str = "", part: Literal[1, 2, 3] | None = None) -> None:
        self.split, self.suffix = split, suffix
        self.part = part or (1 if split == "train" else 3)

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("imageURL", "questions")

    def collect(self, reading: Reading) -> None:
        """One sample per question."""
        content = reading.load()
        for key, row in reading.items(content, "the file") if content is not None else ():
            try:
                if reading.get(row, "split", int) != self.part:
                    continue
                questions, answers = reading.texts(row, "questions"), reading.texts(row, "answers")
                if len(questions) != len(answers):
                    message = f"{len(questions)} questions, {len(answers)} answers"
                    raise reading.wrong("answers", message, "there is one answer per question")
                image = key + PurePosixPath(reading.text(row, "imageURL")).suffix
                for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
                    reading.add(f"{key}-{place}", question, [answer], image=image, group=str(row.get("genre") or ""))
            except BadRow:
                continue


class VizWiz(Listed):
    """VizWiz (Gurari et al. 2018, 1802.08218): `train.json`, `val.json`; training takes the most frequent answer."""

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("answerable", "answers", "image")

    def row(self, reading: Reading, row: Mapping[str, Any]) -> None:
        """One sample per question; the image's name is its id."""
        image, group = reading.text(row, "image"), str(row.get("answer_type") or "")
        answers = reading.texts(row, "answers", "answer")
        reading.add(image, reading.text(row, "question"), answers, image=image, group=group)


class DocVQA(Listed):
    """DocVQA (Mathew et al. 2021, 2007.00398), InfographicVQA (2104.12756): `train_v1.0_withQT.json` and the like."""

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("data", "questionId", "question")

    def table(self, content: Any) -> Any:
        """Under `data`."""
        return _data(content)

    def row(self, reading: Reading, row: Mapping[str, Any]) -> None:
        """One sample per question; the image is looked for as the file says, then by its name alone."""
        image = reading.text(row, "image_local_name" if "image_local_name" in row else "image")
        if not os.path.isfile(reading.folder.path / image.replace("\0", "")):  # Path.is_file raises for long names
            image = PurePosixPath(image).name
        answers = reading.texts(row, "answers")
        identity, question = reading.text(row, "questionId"), reading.text(row, "question")
        reading.add(identity, question, answers, image=image, reply=answers[0])


class ChartQA(Listed):
    """ChartQA (Masry et al. 2022, 2203.10244): `train_human.json`, `train_augmented.json`; images in `png`."""

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("imgname", "query", "label")

    def row(self, reading: Reading, row: Mapping[str, Any]) -> None:
        """One sample per question; they have no ids, so their numbers are."""
        image, question = reading.text(row, "imgname"), reading.text(row, "query")
        reading.add(reading.number, question, [reading.text(row, "label")], image=image)


def _data(content: Any) -> Any:
    return content.get("data") if isinstance(content, dict) else content
