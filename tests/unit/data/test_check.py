from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mmcl.data.check import NAMED, check_tasks
from mmcl.data.images import BytesImage, FileImage
from mmcl.data.types import ImageSource, Sample, Task, Turn
from mmcl.errors import Problem


def picture(shade: int, name: str = "") -> BytesImage:
    data = io.BytesIO()
    Image.new("L", (4, 4), shade).save(data, "PNG")
    return BytesImage(data.getvalue(), name or f"{shade}.png")


def row(identity: str, *images: ImageSource, reply: str = "yes", text: str | None = None) -> Sample:
    question = "<image>" * len(images) + "What?" if text is None else text
    return Sample(identity, "t", (Turn("user", question), Turn("assistant", reply)), images)


def ask(identity: str, *images: ImageSource, answers: tuple[str, ...] = ("yes",)) -> Sample:
    return Sample(identity, "t", (Turn("user", "<image>" * len(images) + "What?"),), images, answers)


def only(*tasks: Task) -> Problem:
    (problem,) = check_tasks(tasks)[0]
    assert problem.where and problem.message and problem.hint
    return problem


def test_report_on_good_data() -> None:
    train = [row("a", picture(1)), row("b", picture(1)), row("c", picture(2), picture(3)), row("d")]
    problems, report = check_tasks([Task("t", train, [ask("a", picture(9))], metric="contains", kind="domain")])
    assert problems == []
    assert json.loads(json.dumps(report)) == {
        "tasks": [
            {
                "name": "t",
                "kind": "domain",
                "metric": "contains",
                "train": {"rows": 4, "images": 3, "text_only": 0.25, "words": {"p50": 2, "p95": 2, "max": 2}},
                "test": {"rows": 1, "images": 1, "text_only": 0.0, "words": {"p50": 1, "p95": 1, "max": 1}},
                "test_images_in_training": {"images": 0, "of": 1, "examples": [], "tasks": {}},
                "answers_not_in_training": {"questions": 0, "of": 1, "examples": []},
            }
        ],
        "notes": [],
    }


def test_no_tasks() -> None:
    assert check_tasks([]) == ([], {"tasks": [], "notes": []})


def test_empty_training_split() -> None:
    problem = only(Task("t", [], [ask("a")]))
    assert problem.where == "task t, train"
    assert "no training rows" in problem.message and "add training rows" in problem.hint


@pytest.mark.parametrize("split", ["train", "test"])
def test_repeated_ids_within_a_split(split: str) -> None:
    rows = {"train": [row("a"), row("b")], "test": [ask("a"), ask("b")]}  # the splits may share ids
    assert check_tasks([Task("t", **rows), Task("u", **rows)])[0] == []
    rows[split] += [rows[split][0]] * 2
    problem = only(Task("t", **rows))
    assert problem.where == f"task t, {split}" and "1 id: a" in problem.message and "unique" in problem.hint


def test_placeholders() -> None:
    rows = [
        row("good", picture(1)),
        row("none", picture(1), text="What?"),
        row("two", picture(1), text="<image><image>"),
        row("lonely", text="<image>"),
    ]
    problem = only(Task("t", rows))
    assert problem.message.endswith("in 3 rows: none, two, lonely") and "once for each image" in problem.hint


def test_rows_without_an_answer() -> None:
    asked = Sample("c", "t", (Turn("user", "What?"),))
    problem = only(Task("t", [row("a"), row("b", reply=" \n"), asked]))
    assert problem.message == "no answer in 2 rows: b, c" and "assistant turn" in problem.hint
    problem = only(Task("t", [row("a")], [ask("a"), ask("b", answers=()), ask("c", answers=("", " "))]))
    assert (problem.where, problem.message) == ("task t, test", "no answer in 2 rows: b, c")
    assert "references" in problem.hint


def test_unreadable_images_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    whole = picture(1).read()
    (tmp_path / "cut.png").write_bytes(whole[:-20])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    names = ["cut.png", "empty.png", "text.png", *(f"none{index}.png" for index in range(NAMED))]
    rows = [row(name, FileImage(tmp_path, name)) for name in names]
    problem = only(Task("t", [*rows, row("again", FileImage(tmp_path, "cut.png")), row("good", picture(1))]))
    assert problem.where == "task t, train" and f"{NAMED + 3} images" in problem.message
    assert all(name in problem.message for name in names[:NAMED]) and names[NAMED] not in problem.message
    assert "0 bytes" in problem.message and problem.message.endswith("and 3 more") and "again" in problem.hint


def test_an_unreadable_image_is_told_in_every_split_and_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    decode = BytesImage.open

    def count(image: BytesImage) -> Image.Image:
        opened.append(image.name)
        return decode(image)

    monkeypatch.setattr(BytesImage, "open", count)
    broken = [BytesImage(b"no image", "x.png") for _ in range(2)]
    good = [picture(1, "good.png") for _ in range(3)]
    train = [row("a", broken[0]), row("b", good[0]), row("c", good[1])]
    problems, report = check_tasks([Task("t", train, [ask("a", broken[1]), ask("b", good[2])])])
    assert [problem.where for problem in problems] == ["task t, train", "task t, test"]
    assert sorted(opened) == ["good.png", "x.png"]
    assert report["tasks"][0]["train"]["images"] == 1


def test_test_images_in_training_are_noted_across_tasks() -> None:
    tasks = [
        Task("one", [row("a", picture(1)), row("b", picture(2))], [ask("a", picture(7), picture(3, "copy.png"))]),
        Task("two", [row("a", picture(3)), row("b", picture(1))], [ask("a", picture(1)), ask("b", picture(1))]),
    ]
    problems, report = check_tasks(tasks)
    one, two = (task["test_images_in_training"] for task in report["tasks"])
    assert problems == []
    assert one == {"images": 1, "of": 2, "examples": ["copy.png"], "tasks": {"two": 1}}
    assert two == {"images": 1, "of": 1, "examples": ["1.png"], "tasks": {"one": 1, "two": 1}}
    assert report["notes"] == [
        "task one: 1 of 2 test images occur in the training rows of two",
        "task two: 1 of 1 test images occur in the training rows of one, two",
    ]


def test_answers_that_training_never_gives_are_noted() -> None:
    train = [row("a", reply="Red "), row("b", reply="blue")]
    test = [ask("a", answers=("RED",)), ask("b", answers=("green", "blue")), ask("c", answers=("teal", "green"))]
    problems, report = check_tasks([Task("t", train, test)])
    assert problems == []
    assert report["tasks"][0]["answers_not_in_training"] == {"questions": 1, "of": 3, "examples": ["teal"]}
    assert report["notes"] == ["task t: 1 of 3 test questions have answers that its training rows never give"]


def test_labels_outside_the_vocabulary_are_named() -> None:
    def sample(key: str, answer: str, train: bool) -> Sample:
        asked = Turn("user", "which?")
        turns = (asked, Turn("assistant", answer)) if train else (asked,)
        return Sample(key, "t", turns, answers=() if train else (answer,))

    task = Task(
        "t", [sample("1", "Cat", True), sample("2", "cow", True)], [sample("3", "dog ", False)], choices=("cat", "dog")
    )
    problems, _ = check_tasks([task])
    assert [problem.where for problem in problems] == ["task t, train"]
    assert "'cow' in row 2" in problems[0].message


def test_tasks_without_test_rows_are_noted_and_lengths_told() -> None:
    turns = (Turn("user", "one two three"), Turn("assistant", "four"))
    _, report = check_tasks([Task("t", [Sample(str(k), "t", turns) for k in range(3)])])
    assert "no test rows" in report["notes"][0]
    assert report["tasks"][0]["train"]["words"] == {"p50": 4, "p95": 4, "max": 4}
    assert report["tasks"][0]["test"]["words"] == {}
