"""Any set that Hugging Face `datasets` can open, by naming its columns; images stay on disk until they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcl.data.formats.json_rows import kind
from mmcl.data.formats.llava_json import listed
from mmcl.data.formats.llava_row import ImageFolder, Mistake, Row
from mmcl.data.formats.official import Split
from mmcl.data.images import BytesImage, EncodedImage, FileImage
from mmcl.data.types import IMAGE_PLACEHOLDER, ImageSource, Sample, Turn
from mmcl.errors import Problem, UserError

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS: Mapping[str, str] = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".arrow": "arrow",
}

GUESSES: Mapping[str, Sequence[str]] = {
    "question": ("question", "query", "prompt", "instruction"),
    "answer": ("answer", "answers", "label", "caption", "text", "response"),
    "image": ("image", "images", "jpg", "png"),
    "messages": ("messages", "conversations"),
    "id": ("id", "question_id"),
}
"""Columns that are taken where the recipe names none."""


class TableImage(EncodedImage):
    """An image in a column of a table on disk, read when it is needed.

    Args:
        table: a map-style set whose image columns are not decoded.
        row: from 0.
        column: its name.
        place: which image of a list; None where the column holds one.
        folder: that paths may not leave.
    """

    def __init__(self, table: Dataset, row: int, column: str, place: int | None, folder: Path) -> None:
        self._table, self._row, self._column, self._place, self._folder = table, row, column, place, folder

    @property
    def name(self) -> str:
        """Column and row."""
        return f"{self._column}-{self._row}" + ("" if self._place is None else f"-{self._place}")

    @property
    def where(self) -> str:
        """The set and the row, from 1."""
        return f"{self._folder}, row {self._row + 1}, {self._column}"

    def read(self) -> bytes:
        """The bytes.

        Raises:
            UserError: there are none, or the path leaves the folder.
        """
        value = self._table[self._row][self._column]
        if self._place is not None:
            value = value[self._place]
        return image_of(value, self.name, self._folder, self.where).read()


def image_of(value: Any, name: str, folder: Path, where: str) -> ImageSource:
    """An undecoded image: bytes, or a path below the folder.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return BytesImage(value["bytes"], name)
    if isinstance(value, bytes):
        return BytesImage(value, name)
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(path, str):
        try:
            inside = Path(path).relative_to(folder.resolve()) if Path(path).is_absolute() else Path(path)
        except ValueError as error:
            raise UserError("the image's path leaves the set's folder", where=where, hint=str(folder)) from error
        return FileImage(folder, str(inside))
    raise UserError(f"the image is {kind(value)}", where=where, hint="name the column of images by `image`")


class HFDataset:
    """A set of Hugging Face `datasets`: a folder, a Parquet, JSON, CSV or Arrow file, or one on the hub.

    Nothing of it is run: sets that need code of their own are refused by `datasets`. Texts are read into memory, images
    only when they are needed. Columns that are not named are looked for under their usual names.

    Args:
        split: what the set is used for: training samples end with the answer.
        suffix: put after every question.
        hub: id of a set on the hub, which needs network; the path is then not looked at.
        config: of the set.
        part: its split, such as `train` or `validation`; by default the only one, or that of the name of `split`.
        question: column of the question; empty where `prompt` is asked of every image.
        answer: column of the answer, or of a list of answers (annotators); class labels become their names.
        image: column of the image or of a list of images; `none` for text only.
        messages: column of conversations, in place of question and answer.
        id: column of ids; `none`, or a set without one, numbers the rows.
        group: column of the sample's group.
        time: column of its period tag.
        prompt: what is asked where there is no column of questions.
        streaming: read rows one after another without downloading the rest; needs `limit`, and keeps those in memory.
        limit: read so many rows; None for all.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        suffix: str = "",
        hub: str = "",
        config: str | None = None,
        part: str = "",
        question: str = "",
        answer: str = "",
        image: str = "",
        messages: str = "",
        id: str = "",
        group: str = "",
        time: str = "",
        prompt: str = "Describe the image.",
        streaming: bool = False,
        limit: int | None = None,
    ) -> None:
        if streaming and limit is None:
            hint = "say how many rows are read: they are kept in memory"
            raise UserError("streaming needs a limit", where="hf_dataset.limit", hint=hint)
        self.split, self.suffix, self.hub, self.config, self.part = split, suffix, hub, config, part
        self.columns = {"question": question, "answer": answer, "image": image, "messages": messages, "id": id}
        self.group, self.time, self.prompt = group, time, prompt
        self.streaming, self.limit = streaming, limit

    def sniff(self, path: Path) -> bool:
        """Whether it is a file or folder that `datasets` opens without being told how."""
        if path.is_dir():
            return (path / "dataset_info.json").exists() or any(path.glob("*.parquet"))
        return path.suffix in (".parquet", ".arrow", ".csv")

    def read(self, path: Path, *, task: str, images: Path | None) -> Sequence[Sample]:
        """The samples of a set.

        Args:
            path: file or folder; not looked at with `hub`.
            task: name of the task that the samples belong to.
            images: folder that image paths start from, where the set holds paths; None for the set's own.

        Raises:
            UserError: with every mistake in the set.
        """
        samples, problems = self._read(path, task, images)
        if problems:
            raise UserError(problems=problems)
        return samples

    def validate(self, path: Path, *, task: str, images: Path | None) -> list[Problem]:
        """Every mistake in the set; arguments as for `read`."""
        try:
            return self._read(path, task, images)[1]
        except UserError as error:
            return list(error.problems)

    def _read(self, path: Path, task: str, images: Path | None) -> tuple[list[Sample], list[Problem]]:
        where = Path(self.hub) if self.hub else path
        folder = images or (path if path.is_dir() else path.parent)
        table = self._open(path)
        found = self._found(table, str(where))
        if self.streaming:
            table = _kept(table, self.limit or 0)
        elif self.limit is not None:
            table = table.select(range(min(self.limit, len(table))))
        reader = _Reader(self, table, found, task, folder)
        samples = reader.samples()
        return samples, listed(where, reader.mistakes)

    def _open(self, path: Path) -> Any:
        import datasets

        how: dict[str, Any] = {"streaming": self.streaming}
        try:
            if self.hub:
                table = datasets.load_dataset(self.hub, self.config, **how)
            elif path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
                table = datasets.load_from_disk(str(path))
            elif path.is_dir():
                table = datasets.load_dataset(str(path), self.config, **how)
            elif path.suffix in BUILDERS:
                table = datasets.load_dataset(BUILDERS[path.suffix], data_files=str(path), **how)
            else:
                hint = f"give a folder, or a file that ends in {', '.join(BUILDERS)}"
                raise UserError("`datasets` can't tell what this file is", where=str(path), hint=hint)
        except Exception as error:
            if isinstance(error, UserError):
                raise
            text = str(error).strip().partition("\n")[0]
            raise UserError(f"`datasets` can't open it: {text}", where=self.hub or str(path)) from error
        if not hasattr(table, "keys"):
            return table
        names = list(table)
        wanted = self.part or (names[0] if len(names) == 1 else self.split)
        if wanted not in names:
            raise UserError(
                f"there is no split `{wanted}`", where=str(path), hint=f"name one by `part`: {', '.join(names)}"
            )
        return table[wanted]

    def _found(self, table: Any, where: str) -> dict[str, str]:
        """Which column is what; empty for what the set does not have."""
        names = list(table.column_names or [])
        found = {}
        problems = []
        wanted = {**self.columns, "group": self.group, "time": self.time}
        for role, name in wanted.items():
            if name and name not in names and name != "none":
                problems.append(
                    Problem(f"{where}, {role}", f"there is no column `{name}`", f"it has {', '.join(names)}")
                )
            usual = next((guess for guess in GUESSES.get(role, ()) if guess in names), "")
            found[role] = "" if name == "none" else name or usual
        if not found["messages"] and not found["answer"] and not problems:
            hint = f"name it by `answer`; the set has {', '.join(names)}"
            problems.append(Problem(where, "no column of answers is named like one", hint))
        if problems:
            raise UserError(problems=problems)
        return found


def _kept(table: Any, limit: int) -> Any:
    """The first rows of a set that is read one after another."""
    import datasets

    features = _undecoded(table).features
    return datasets.Dataset.from_list(list(_undecoded(table).take(limit)), features=features)


def _undecoded(table: Any) -> Any:
    """The set with images as bytes or paths."""
    import datasets

    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, type(feature)(datasets.Image(decode=False)))
    return table


class _Reader:
    """Rows of one set as samples, and what is wrong with them."""

    def __init__(self, how: HFDataset, table: Any, found: Mapping[str, str], task: str, folder: Path) -> None:
        self.how, self.found, self.task, self.folder = how, found, task, folder
        self.table = _undecoded(table)
        self.mistakes: list[Mistake] = []
        self.ids: dict[str, int] = {}

    def samples(self) -> list[Sample]:
        """Text columns are gone through in blocks; images are only counted."""
        import datasets

        image = self.found["image"]
        feature = self.table.features.get(image) if image else None
        several = feature is not None and not isinstance(feature, datasets.Image) and hasattr(feature, "feature")
        texts = self.table.remove_columns([image]) if image and len(self.table.column_names) > 1 else self.table
        counts = self._counts(image) if several else None
        made = []
        for number, row in enumerate(texts):
            count = 0 if not image else 1 if counts is None else counts[number]
            pictures = tuple(
                TableImage(self.table, number, image, place if several else None, self.folder) for place in range(count)
            )
            sample = self._sample(number, row, pictures)
            if sample is not None:
                made.append(sample)
        return made

    def _counts(self, image: str) -> list[int]:
        import pyarrow.compute as pc

        lengths = pc.list_value_length(self.table.with_format("arrow")[:][image]).to_pylist()
        return [length or 0 for length in lengths]

    def _sample(self, number: int, row: Mapping[str, Any], pictures: tuple[TableImage, ...]) -> Sample | None:
        place, found = number + 1, self.found
        key = row.get(found["id"]) if found["id"] else None
        group, time = (str(row.get(name) or "") if name else "" for name in (self.how.group, self.how.time))
        answers: tuple[str, ...] = ()
        if found["messages"]:
            parser = Row({"messages": row[found["messages"]]}, place, "train", ImageFolder(self.folder))
            turns = tuple(parser.turns([]))
            self.mistakes += parser.mistakes
            if not turns or parser.mistakes:
                return None
            if self.how.split == "test" and turns[-1].role == "assistant":
                turns, answers = turns[:-1], (turns[-1].text,)
        else:
            answers = tuple(self._answers(row[found["answer"]], place))
            question = row.get(found["question"]) if found["question"] else self.how.prompt
            if not isinstance(question, str) or not question.strip() or not answers:
                what = f"`{found['question'] or 'prompt'}` is {kind(question)}" if answers else "the row has no answer"
                self.mistakes.append(
                    (place, found["question"], what, "every row has a question and an answer, as text")
                )
                return None
            asked = Turn("user", question + self.how.suffix)
            turns = (asked, Turn("assistant", answers[0])) if self.how.split == "train" else (asked,)
        if self.how.split == "train":
            answers = ()
        shown = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
        if not shown and pictures:
            first = next(index for index, turn in enumerate(turns) if turn.role == "user")
            filled = Turn("user", f"{IMAGE_PLACEHOLDER}\n" * len(pictures) + turns[first].text)
            turns = (*turns[:first], filled, *turns[first + 1 :])
        elif shown != len(pictures):
            message = f"{shown} `{IMAGE_PLACEHOLDER}` in the text, {len(pictures)} images"
            self.mistakes.append((place, found["image"], message, "write it once for each image"))
            return None
        identity = str(key) if key is not None else str(place)
        if self.ids.setdefault(identity, place) != place:
            message = f"the id {identity!r} is that of row {self.ids[identity]}"
            self.mistakes.append(
                (place, found["id"], message, "name a column of unique ids by `id`, or `none` to number rows")
            )
            return None
        return Sample(identity, self.task, turns, pictures, answers, group=group, time=time)

    def _answers(self, value: Any, place: int) -> list[str]:
        import datasets

        feature = self.table.features.get(self.found["answer"])
        if isinstance(feature, datasets.ClassLabel) and isinstance(value, int) and value >= 0:
            return [str(feature.int2str(value)).replace("_", " ")]
        items = value if isinstance(value, list) else [value]
        items = [item.get("answer") if isinstance(item, dict) else item for item in items]
        return [str(item) for item in items if item is not None and str(item).strip()]
