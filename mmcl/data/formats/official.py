"""What readers of benchmarks' own files share: JSON with its mistakes collected, samples with images and a suffix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmcl.data.formats.json_rows import kind, read_value
from mmcl.data.formats.llava_json import listed
from mmcl.data.formats.llava_row import ImageFolder, Mistake
from mmcl.data.images import FileImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Turn
from mmcl.errors import Problem, UserError

Split = Literal["train", "test"]
T = TypeVar("T")

Place = int | str
"""Number of a row, from 1, or its key in the file."""


class BadRow(Exception):
    """A row that can't be read; what is wrong with it has been noted."""


class Reading:
    """One file being read: its samples so far and its mistakes.

    Args:
        path: the file.
        task: that the samples belong to.
        images: the image folder; None for the file's own.
        split: whether samples end with the answer.
        suffix: put after every question.
    """

    def __init__(self, path: Path, task: str, images: Path | None, split: Split, suffix: str) -> None:
        self.path = path
        self.task = task
        self.folder = ImageFolder(path.parent if images is None else images)
        self.split = split
        self.suffix = suffix
        self.samples: list[Sample] = []
        self.problems: list[Problem] = []
        self.mistakes: list[Mistake] = []
        self.ids: dict[str, int] = {}
        self.number = 0

    def load(self, path: Path | None = None) -> Any:
        """A JSON file's content; None, with the problem noted, where it can't be read."""
        value, problem = read_value(path or self.path)
        if problem:
            self.problems.append(problem)
        return value

    def fail(self, message: str, hint: str, path: Path | None = None) -> None:
        """Note what is wrong with a whole file."""
        self.problems.append(Problem(str(path or self.path), message, hint))

    def wrong(self, key: str, message: str, hint: str) -> BadRow:
        """Note what is wrong with the current row; to be raised where nothing can be made of it."""
        self.mistakes.append((self.number, key, message, hint))
        return BadRow(message)

    def rows(self, value: Any, what: str) -> Iterator[Mapping[str, Any]]:
        """The objects of a list, counted from 1; a mistake for whatever else is in it."""
        if not isinstance(value, list):
            self.fail(f"{what} is {kind(value)}, not a list", "give the benchmark's own file")
            return
        for self.number, row in enumerate(value, start=1):
            if isinstance(row, dict):
                yield row
            else:
                self.wrong("", f"the row is {kind(row)}", "every row is a JSON object")

    def items(self, value: Any, what: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Keys and objects of an object, counted from 1."""
        if not isinstance(value, dict):
            self.fail(f"{what} is {kind(value)}, not an object", "give the benchmark's own file")
            return
        for self.number, (key, row) in enumerate(value.items(), start=1):
            if isinstance(row, dict):
                yield key, row
            else:
                self.wrong(key, f"it is {kind(row)}", "every entry is a JSON object")

    def get(self, row: Mapping[str, Any], key: str, *kinds: type[T]) -> T:
        """A value of the row.

        Raises:
            BadRow: it is missing, or of another kind.
        """
        value = row.get(key)
        if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
            return value
        found = (
            f"`{key}` is {kind(value)}" if key in row else f"the row has no `{key}`; its keys: {', '.join(row)[:200]}"
        )
        raise self.wrong(key, found, f"`{key}` is {' or '.join(_NAMES.get(each, each.__name__) for each in kinds)}")

    def text(self, row: Mapping[str, Any], key: str) -> str:
        """A text that is not empty, or a number as text."""
        value = str(self.get(row, key, str, int))
        if not value.strip():
            raise self.wrong(key, f"`{key}` is empty", "write its text, or leave the row out")
        return value

    def texts(self, row: Mapping[str, Any], key: str, inner: str = "") -> list[str]:
        """A list of texts, or of objects that have one under `inner`; not empty."""
        found = []
        for value in self.get(row, key, list):
            value = value.get(inner) if inner and isinstance(value, dict) else value
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                raise self.wrong(key, f"an entry of `{key}` is {kind(value)}", f"`{key}` is a list of texts")
            found.append(str(value))
        if not any(value.strip() for value in found):
            raise self.wrong(key, f"`{key}` has no text in it", f"`{key}` is a list of texts")
        return found

    def add(
        self,
        identity: Place,
        question: str,
        answers: Sequence[str],
        *,
        image: str | Sequence[str] = (),
        reply: str | None = None,
        group: str = "",
        **metadata: Any,
    ) -> None:
        """A sample: a question about images, with its references.

        Args:
            identity: unique in the file.
            question: without placeholder and suffix.
            answers: the references.
            image: path(s) below the image folder.
            reply: what is trained; None for the most frequent of the answers, the first of equally frequent ones.
            group: of the sample.
            **metadata: kept.

        Raises:
            BadRow: a path can't be one.
        """
        names = [image] if isinstance(image, str) else list(image)
        pictures = self.pictures(names)
        text = f"{IMAGE_PLACEHOLDER}\n" * len(names) + question.replace(IMAGE_PLACEHOLDER, "").strip() + self.suffix
        told = Counter(answer for answer in answers if answer.strip()).most_common(1)
        said = reply if reply is not None else told[0][0] if told else ""
        if not said.strip():
            raise self.wrong("", "no answer", "a question has an answer that is not empty")
        if not text.strip():
            raise self.wrong("", "no question", "a row without an image has a question")
        asked = Turn("user", text)
        train = self.split == "train"
        self.keep(
            Sample(
                id=str(identity),
                task=self.task,
                turns=(asked, Turn("assistant", said)) if train else (asked,),
                images=pictures,
                answers=() if train else tuple(answers),
                group=group,
                metadata=metadata,
            )
        )

    def pictures(self, names: Sequence[str]) -> tuple[FileImage, ...]:
        """Images by their paths below the image folder.

        Raises:
            BadRow: a path can't be one.
        """
        try:
            return tuple(self.folder.image(name, self.number) for name in names)
        except UserError as error:
            hint = f"image paths are relative to the image folder {self.folder.path}, without `..` and links out of it"
            raise self.wrong("image", error.problems[0].message, hint) from error

    def keep(self, sample: Sample) -> None:
        """Add a sample that is complete.

        Raises:
            BadRow: its id is another one's, or a text can't be tokenised.
        """
        if sample.id in self.ids:
            raise self.wrong("id", f"the id {sample.id!r} is that of row {self.ids[sample.id]}", "make ids unique")
        # Half of a character in a JSON escape would stop every tokenizer.
        for part in (*(turn.text for turn in sample.turns), *sample.answers):
            if not part.isascii() and any("\ud800" <= letter <= "\udfff" for letter in part):
                raise self.wrong("", "a text holds half of a character (a lone surrogate)", "mend the \\ud... escape")
        self.ids[sample.id] = self.number
        self.samples.append(sample)

    def all_problems(self) -> list[Problem]:
        """Every mistake, in order."""
        return [*self.problems, *listed(self.path, self.mistakes), *self.folder.problems(self.path)]


_NAMES: Mapping[Any, str] = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


class Official(ABC):
    """A benchmark's own file. A format says how it is read; what is wrong with it is collected here."""

    split: Split = "train"
    suffix: str = ""

    @abstractmethod
    def collect(self, reading: Reading) -> None:
        """Add the file's samples."""

    def sniff(self, path: Path) -> bool:
        """Whether the first 64 kB hold the words that such files begin with."""
        try:
            with path.open("rb") as file:
                head = file.read(1 << 16).decode("utf-8-sig", errors="ignore")
        except OSError:
            return False
        return path.suffix == ".json" and bool(self.signs()) and all(f'"{sign}"' in head for sign in self.signs())

    def signs(self) -> Sequence[str]:
        """Keys that such a file has near its beginning; none where it can't be told."""
        return ()

    def read(self, path: Path, *, task: str, images: Path | None) -> Sequence[Sample]:
        """The samples of a file.

        Args:
            path: the file.
            task: name of the task that the samples belong to.
            images: folder that image paths start from; None for the folder of the file.

        Raises:
            UserError: with every mistake in the file.
        """
        reading = self._reading(path, task, images)
        problems = reading.all_problems()
        if problems:
            raise UserError(problems=problems)
        return reading.samples

    def validate(self, path: Path, *, task: str, images: Path | None) -> list[Problem]:
        """Every mistake in the file; arguments as for `read`."""
        return self._reading(path, task, images).all_problems()

    def _reading(self, path: Path, task: str, images: Path | None) -> Reading:
        reading = Reading(path, task, images, self.split, self.suffix)
        self.collect(reading)
        return reading


class Listed(Official):
    """A file whose rows are samples, in a list."""

    def __init__(self, *, split: Split = "train", suffix: str = "") -> None:
        """A reader.

        Args:
            split: what the file is used for: training samples end with the answer.
            suffix: put after every question.
        """
        self.split, self.suffix = split, suffix

    def table(self, content: Any) -> Any:
        """The list in the file."""
        return content

    @abstractmethod
    def row(self, reading: Reading, row: Mapping[str, Any]) -> None:
        """Add the samples of a row.

        Raises:
            BadRow: it has a mistake, which is noted.
        """

    def collect(self, reading: Reading) -> None:
        """Row by row."""
        content = reading.load()
        for row in reading.rows(self.table(content), "the list of rows") if content is not None else ():
            try:
                self.row(reading, row)
            except BadRow:
                continue
