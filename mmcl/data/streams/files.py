"""A stream of tasks from the user's own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from mmcl.data.formats.llava_json import LlavaJSON
from mmcl.data.formats.llava_row import missing_folder
from mmcl.data.types import Sample, Samples, StageKind, Task
from mmcl.errors import Problem, UserError
from mmcl.protocols import Format

FormatMaker = Callable[[Any, str], Format]
"""Makes a format from its name and options, and a place for messages."""


class TaskFiles(TypedDict):
    """One task of the stream; paths start at the stream's folder.

    Attributes:
        name: of the task.
        train: file (or folder) of the training rows, or several of which the first that exists is taken.
        test: the same of the test questions; without it the task only trains.
        heldout: the same of samples on which only the loss is measured.
        images: image folder, that image paths in the files start from; without it the stream's folder.
        format: of the files, by name or with options; default `llava_json`.
        train_options: options of the format for the training rows alone.
        test_options: options of the format for the test questions alone.
        metric: what scores the test questions; default `exact`.
        metric_options: options of the metric.
        kind: the stage kind that the task is meant for; default `instruct`.
        time: period tag of the task and its samples.
        domain: domain tag.
        language: language tag of the task and its samples.
        choices: the closed vocabulary of the answers.
        ids: `row` numbers the rows of `llava_json` files whose ids are not unique; default `file`.
        group: key of the rows of `llava_json` files that holds each sample's group.
    """

    name: str
    train: str | list[str]
    test: NotRequired[str | list[str]]
    heldout: NotRequired[str | list[str]]
    images: NotRequired[str]
    format: NotRequired[str | dict[str, Any]]
    train_options: NotRequired[dict[str, Any]]
    test_options: NotRequired[dict[str, Any]]
    metric: NotRequired[str]
    metric_options: NotRequired[dict[str, Any]]
    kind: NotRequired[StageKind]
    time: NotRequired[str]
    domain: NotRequired[str]
    language: NotRequired[str]
    choices: NotRequired[list[str]]
    ids: NotRequired[Literal["file", "row"]]
    group: NotRequired[str]


Part = Literal["train", "test", "heldout"]


class Files:
    """Tasks in files, in the order given: LLaVA's layout and its relatives, benchmarks' own, Hugging Face sets.

    `mmcl list formats` has the formats; the default reads LLaVA, CoIN, UCIT, MLLM-CL, LLaMA-Factory and ms-swift.

    Args:
        folder: where the paths of the tasks start; relative to the recipe's folder.
        tasks: the tasks in order, each with `name`, `train`, and as needed `test`, `heldout`, `images`, `format`,
            `train_options`, `test_options`, `metric`, `metric_options`, `kind`, `time`, `domain`, `language`,
            `choices`, `ids` and `group`.
        root: the recipe's folder.
        formats: makes formats by name.
    """

    def __init__(
        self, *, folder: str, tasks: list[TaskFiles], root: Path = Path(), formats: FormatMaker | None = None
    ) -> None:
        self.folder = root / Path(folder).expanduser()
        self.files = tasks
        self.formats = formats

    def tasks(self) -> Sequence[Task]:
        """The tasks in order.

        Raises:
            UserError: with every mistake in all files.
        """
        if not self.files:
            raise UserError(
                "there are no tasks", where="stream.tasks", hint="list at least one, with `name` and `train`"
            )
        if not self.folder.is_dir():
            raise UserError(
                f"the folder {self.folder} does not exist",
                where="stream.folder",
                hint="it starts at the recipe's folder; correct it, or put the data there",
            )
        problems: list[Problem] = []
        tasks = [self._task(files, f"stream.tasks.{index}", problems) for index, files in enumerate(self.files)]
        if problems:
            raise UserError(problems=list(dict.fromkeys(problems)))  # tasks may share a folder that is missing
        return tasks

    def _task(self, files: TaskFiles, where: str, problems: list[Problem]) -> Task:
        images = self.folder / Path(files.get("images", ".")).expanduser()
        if not images.is_dir():
            problems.append(missing_folder(images))

        def read(part: Part) -> Samples:
            return self._part(part, files, where, images, problems) if part in files else ()

        return Task(
            name=files["name"],
            train=read("train"),
            test=read("test"),
            heldout=read("heldout"),
            metric=files.get("metric", "exact"),
            metric_options=files.get("metric_options", {}),
            kind=files.get("kind", "instruct"),
            time=files.get("time", ""),
            domain=files.get("domain", ""),
            language=files.get("language", ""),
            choices=tuple(files.get("choices", ())),
        )

    def _part(
        self, part: Part, files: TaskFiles, where: str, images: Path, problems: list[Problem]
    ) -> Sequence[Sample]:
        place = f"{where}.{part}"
        try:
            reader, remote = self._reader(part, files, where)
        except UserError as error:
            problems += error.problems
            return []
        paths = [self.folder / Path(name).expanduser() for name in _listed(files[part])]
        path = next((path for path in paths if path.exists()), None)
        if path is None and not remote:
            named = " or ".join(map(str, paths))
            hint = f"correct the path, which starts at {self.folder}"
            problems.append(Problem(place, f"there is no file {named}", hint))
            return []
        try:
            found = path or self.folder
            own = found.is_dir() and "images" not in files  # a folder of images, or a set that holds its images
            samples = reader.read(found, task=files["name"], images=None if own else images)
        except UserError as error:
            problems += error.problems
            return []
        if not samples:
            hint = f"add rows, or leave out `{place}`" if part != "train" else "add rows, or leave the task out"
            problems.append(Problem(place, f"{path} holds no rows", hint))
        tags: Mapping[str, str] = {"time": files.get("time", ""), "language": files.get("language", "")}
        tags = {tag: value for tag, value in tags.items() if value}
        return [sample.replace(**tags) for sample in samples] if tags else samples

    def _reader(self, part: Part, files: TaskFiles, where: str) -> tuple[Format, bool]:
        """What reads the file, and whether it looks elsewhere than at a path."""
        split: Literal["train", "test"] = "test" if part == "test" else "train"
        named = files.get("format", "llava_json")
        options = files.get("test_options", {}) if part == "test" else files.get("train_options", {})
        data: dict[str, Any] = {**({"name": named} if isinstance(named, str) else named), "split": split, **options}
        if data.get("name") == "llava_json":
            data = {"ids": files.get("ids", "file"), "group": files.get("group", ""), **data}
        if self.formats is None:  # made in Python, without a recipe
            if data.pop("name", "") != "llava_json":
                hint = "leave it out, or name the stream in a recipe"
                raise UserError("only a recipe can name a format", where=f"{where}.format", hint=hint)
            return LlavaJSON(**data), False
        return self.formats(data, f"{where}.format"), bool(data.get("hub"))


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names
