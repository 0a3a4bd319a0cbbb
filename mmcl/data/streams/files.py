"""A stream of tasks from the user's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from mmcl.data.formats.llava_json import LlavaJSON
from mmcl.data.formats.llava_row import missing_folder
from mmcl.data.types import Sample, StageKind, Task
from mmcl.errors import Problem, UserError


class TaskFiles(TypedDict):
    """One task of the stream; paths start at the stream's folder.

    Attributes:
        name: of the task.
        train: file of the training rows.
        test: file of the test questions; without it the task only trains.
        images: image folder, that image paths in the files start from; without it the stream's folder.
        metric: what scores the test questions; default `exact`.
        metric_options: options of the metric.
        kind: the stage kind that the task is meant for; default `instruct`.
        time: period tag of the task and its samples.
        domain: domain tag.
        language: language tag of the task and its samples.
        ids: `row` numbers the rows, for files whose ids are not unique; default `file`.
        group: key of the rows that holds each sample's group.
    """

    name: str
    train: str
    test: NotRequired[str]
    images: NotRequired[str]
    metric: NotRequired[str]
    metric_options: NotRequired[dict[str, Any]]
    kind: NotRequired[StageKind]
    time: NotRequired[str]
    domain: NotRequired[str]
    language: NotRequired[str]
    ids: NotRequired[Literal["file", "row"]]
    group: NotRequired[str]


class Files:
    """Tasks in files of the LLaVA layout (LLaVA, CoIN, UCIT, MLLM-CL, LLaMA-Factory, ms-swift), in the order given.

    Args:
        folder: where the paths of the tasks start; relative to the recipe's folder.
        tasks: the tasks in order, each with `name`, `train`, and as needed `test`, `images`, `metric`,
            `metric_options`, `kind`, `time`, `domain`, `language`, `ids` and `group`.
        root: the recipe's folder.
    """

    def __init__(self, *, folder: str, tasks: list[TaskFiles], root: Path = Path()) -> None:
        self.folder = root / Path(folder).expanduser()
        self.files = tasks

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
        return Task(
            name=files["name"],
            train=self._split("train", files, where, images, problems),
            test=self._split("test", files, where, images, problems) if "test" in files else (),
            metric=files.get("metric", "exact"),
            metric_options=files.get("metric_options", {}),
            kind=files.get("kind", "instruct"),
            time=files.get("time", ""),
            domain=files.get("domain", ""),
            language=files.get("language", ""),
        )

    def _split(
        self,
        split: Literal["train", "test"],
        files: TaskFiles,
        where: str,
        images: Path,
        problems: list[Problem],
    ) -> list[Sample]:
        path = self.folder / Path(files[split]).expanduser()
        if not path.is_file():
            hint = f"correct the path, which starts at {self.folder}"
            problems.append(Problem(f"{where}.{split}", f"there is no file {path}", hint))
            return []
        reader = LlavaJSON(split=split, ids=files.get("ids", "file"), group=files.get("group", ""))
        try:
            samples = reader.read(path, task=files["name"], images=images)
        except UserError as error:
            problems += error.problems
            return []
        if not samples:
            hint = "add rows, or leave the task out" if split == "train" else f"add rows, or leave out `{where}.test`"
            problems.append(Problem(f"{where}.{split}", f"{path} holds no rows", hint))
        tags: Mapping[str, str] = {"time": files.get("time", ""), "language": files.get("language", "")}
        return [sample.replace(**tags) for sample in samples] if any(tags.values()) else samples
