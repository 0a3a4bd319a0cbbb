"""VQACL's partition of VQAv2: question types, and groups of objects inside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcl.data.formats.official import BadRow, Official, Reading, Split


class VQACL(Official):
    """VQACL on VQAv2 (Zhang et al. 2023, 2303.09484): `Partition_Q/karpathy_train_q_TYPE.json` and its test file.

    Each question's object category comes from `ImgId_cate_map.json`; categories make groups, which are the samples'
    groups. For the test of novel compositions, one group is left out of a question type's training and asked at its
    test all the same.

    Args:
        split: what the file is used for.
        suffix: put after every question.
        categories: the map of images to categories, relative to the file's folder.
        groups: the categories of each group, by the group's name; without it a category is a group.
        leave_out: groups that are not read.
        image_name: how images are called; `folder` is `train2014` or `val2014`, `id` the image's id.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        suffix: str = "",
        categories: str = "../ImgId_cate_map.json",
        groups: dict[str, list[int]] | None = None,
        leave_out: list[str] | None = None,
        image_name: str = "{folder}/{id}.jpg",
    ) -> None:
        self.split, self.suffix, self.categories = split, suffix, categories
        self.groups = {str(number): name for name, numbers in (groups or {}).items() for number in numbers}
        self.leave_out, self.image_name = frozenset(leave_out or ()), image_name

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("img_id", "question_id", "label")

    def collect(self, reading: Reading) -> None:
        """One sample per question whose image has a category of a group."""
        path = reading.path.parent / self.categories
        content, table = reading.load(), reading.load(path)
        if content is None or table is None:
            return
        if not isinstance(table, dict):
            reading.fail(
                "this is no map of images to categories", 'it holds {"COCO_val2014_000000000074": 1, ...}', path
            )
            return
        for row in reading.rows(content, "the file"):
            try:
                image = reading.text(row, "img_id")
                category = table.get(image)
                group = self.groups.get(str(category), "" if self.groups else str(category))
                if category is None or not group or group in self.leave_out:
                    continue
                answers = self._answers(reading, row)
                if not answers:
                    continue  # none of the answers is frequent enough: VQACL passes these over as well
                folder = "train2014" if "train2014" in image else "val2014"
                name = self.image_name.replace("{folder}", folder).replace("{id}", image)
                question = reading.text(row, "sent" if "sent" in row else "question")
                reading.add(reading.text(row, "question_id"), question, answers, image=name, group=group)
            except BadRow:
                continue

    def _answers(self, reading: Reading, row: Any) -> list[str]:
        """The ten answers where the file has them, else the answers of `label`, the likeliest first."""
        if isinstance(row.get("answers"), list) and row["answers"]:
            return reading.texts(row, "answers", "answer")
        label = reading.get(row, "label", dict)
        scores = {str(answer): score for answer, score in label.items() if isinstance(score, (int, float))}
        return sorted(scores, key=lambda answer: -scores[answer])
