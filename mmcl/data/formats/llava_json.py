"""The JSON files of LLaVA and its relatives: conversations to train on, and questions to ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcl.data.formats.json_rows import read_rows
from mmcl.data.formats.llava_row import Ids, ImageFolder, Mistake, Row, Split
from mmcl.data.formats.preference import unpaired
from mmcl.data.types import Sample, Turn
from mmcl.errors import Problem, UserError

SHOWN = 10
"""So many mistakes of one kind are listed one by one; the others are counted."""


class LlavaJSON:
    """JSON in the layout of LLaVA and its relatives, as an array of rows or as JSON lines.

    Conversations stand in `conversations` (`from`, `value`) or `messages` (`role`, `content`, where the content is text
    or a list of `{"type": "image"}` and `{"type": "text"}` parts, which are joined by line ends); `system` may hold a
    system turn. Images stand in `image` or `images` (a path or a list), or in the parts of a content. LLaVA, CoIN,
    LLaMA-Factory, ms-swift and Hugging Face `messages` are written so.

    Test questions stand in `text`, or in a conversation that ends with a user turn; the references are `answer` or
    `answers`: text, a number, a list of these (ten annotators), or objects that have an `answer`. `answer_bbox` is the
    reference where there is no other. A `text` without any `<image>` gets `<image>` and a line end in front for each
    image, as LLaVA's evaluation does it. A training row has to have its placeholders: a missing one is a mistake.

    Preference pairs have `chosen` and `rejected` answers beside the question (`mmcl.data.formats.preference`).

    All other keys are kept in the sample's metadata.

    Args:
        split: what the file holds; `auto` decides row by row. In a `test` file the last reply of a conversation is the
            reference.
        ids: `file` takes `id` (training) or `question_id` (test) and refuses duplicates; `row` numbers the rows and
            keeps what the file says in the metadata. A row without an id gets its number.
        group: key of the row whose value is the sample's group; empty for none.
        suffix: put after every user turn.
    """

    def __init__(self, *, split: Split = "auto", ids: Ids = "file", group: str = "", suffix: str = "") -> None:
        self.split = split
        self.ids = ids
        self.group = group
        self.suffix = suffix

    def sniff(self, path: Path) -> bool:
        """Whether the first 64 kB look like rows with conversations or questions."""
        try:
            with path.open("rb") as file:
                head = file.read(1 << 16).decode("utf-8-sig", errors="ignore").lstrip()
        except OSError:
            return False
        keys = ('"conversations"', '"messages"', '"question_id"')
        return path.suffix in (".json", ".jsonl") and head[:1] in ("[", "{") and any(key in head for key in keys)

    def read(self, path: Path, *, task: str, images: Path | None) -> list[Sample]:
        """The samples of a file.

        Args:
            path: the file.
            task: name of the task that the samples belong to.
            images: folder that image paths start from; None for the folder of the file.

        Raises:
            UserError: with every mistake in the file.
        """
        samples, problems = self._read(path, task, images)
        if problems:
            raise UserError(problems=problems)
        return samples

    def validate(self, path: Path, *, task: str, images: Path | None) -> list[Problem]:
        """Every mistake in the file; arguments as for `read`."""
        return self._read(path, task, images)[1]

    def _read(self, path: Path, task: str, images: Path | None) -> tuple[list[Sample], list[Problem]]:
        rows, problems = read_rows(path)
        folder = ImageFolder(path.parent if images is None else images)
        samples: list[Sample] = []
        first: dict[str, int] = {}  # id -> place
        mistakes: list[Mistake] = []
        for place, data in rows:
            data, rejected, wrong = unpaired(data)
            row = Row(data, place, self.split, folder)
            if wrong:
                row.wrong(*wrong, "a preference pair has a question, a `chosen` and a `rejected` answer")
            sample = row.sample(task, self.ids, self.group)
            if self.suffix:
                sample = sample.replace(turns=tuple(self._ended(turn) for turn in sample.turns))
            samples.append(sample.replace(rejected=rejected) if rejected else sample)
            if sample.id in first:
                row.wrong(
                    row.id_key,
                    f"the id {sample.id!r} is that of row {first[sample.id]}",
                    "make ids unique, or set `ids: row` to number the rows",
                )
            first.setdefault(sample.id, place)
            mistakes += row.mistakes
        return samples, [*problems, *listed(path, mistakes), *folder.problems(path)]

    def _ended(self, turn: Turn) -> Turn:
        return Turn("user", turn.text + self.suffix) if turn.role == "user" else turn


def listed(path: Path, mistakes: Sequence[Mistake]) -> list[Problem]:
    """Problems in the order of the rows; of each kind the first ones and how many more there are."""
    counts: dict[str, int] = {}
    problems = []
    for place, key, message, hint in mistakes:
        counts[hint] = counts.get(hint, 0) + 1
        if counts[hint] <= SHOWN:
            problems.append(Problem(f"{path}:{place}, {key}" if key else f"{path}:{place}", message, hint))
    for hint, count in counts.items():
        if count > SHOWN:
            last = next(mistake for mistake in reversed(mistakes) if mistake[3] == hint)
            more = f"{count - SHOWN} more mistakes of this kind; the last is in row {last[0]}: {last[2]}"
            problems.append(Problem(str(path), more, hint))
    return problems
