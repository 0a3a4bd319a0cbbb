"""The generated stream."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mmcl.data.streams.shapes import IMAGE_TASKS, Shapes
from mmcl.errors import UserError
from mmcl.testing import check_stream


def answers(task) -> dict[str, str]:
    """Word that the task gives for each true answer, read off its images."""
    return {sample.images[0].figures[0][0]: sample.reply for sample in task.train}


def test_contract() -> None:
    check_stream(Shapes(tasks=[*IMAGE_TASKS, "sum", "letter", "shape"], train_size=40, test_size=12, captions=10))


def test_sizes_and_sharing() -> None:
    task = Shapes(tasks=["count"], train_size=22, test_size=9, questions_per_image=4).tasks()[0]
    assert (len(task.train), len(task.test)) == (22, 9)
    assert len({sample.images[0].digest for sample in task.train}) == 6
    assert not {s.images[0].digest for s in task.train} & {s.images[0].digest for s in task.test}


@pytest.mark.parametrize(("similarity", "kept"), [(1.0, 4), (0.5, 2), (0.0, 0)])
def test_similarity_is_the_share_of_answers_that_stay(similarity: float, kept: int) -> None:
    first, second, third = Shapes(tasks=["shape"], length=3, train_size=100, similarity=similarity).tasks()
    assert [task.name for task in (first, second, third)] == ["shape", "shape-2", "shape-3"]
    for before, after in ((first, second), (second, third)):
        assert sum(answers(before)[key] == answers(after)[key] for key in answers(before)) == kept
        assert not {s.images[0].digest for s in before.train} & {s.images[0].digest for s in after.train}


def test_at_no_similarity_neighbours_share_no_word() -> None:
    tasks = Shapes(tasks=["shape"], length=200, train_size=20, test_size=1).tasks()
    words = [{sample.reply for sample in task.train} for task in tasks]
    assert not any(before & after for before, after in pairwise(words))


def test_text_only_tasks_have_no_image_and_right_answers() -> None:
    (task,) = Shapes(tasks=["sum"], train_size=30, test_size=5).tasks()
    assert all(sample.modality == "text" for sample in (*task.train, *task.test))
    for sample in task.train:
        numbers = [int(word.strip("?.")) for word in sample.question.split() if word.strip("?.").isdigit()]
        assert sample.reply == str(sum(numbers))


def test_answers_are_what_is_drawn() -> None:
    for task in Shapes(train_size=40).tasks():
        for sample in task.train:
            figures = sample.images[0].figures
            what, colour, corner = figures[0]
            words = ("one", "two", "three", "four")
            count = words[len(figures) - 1]
            truth = {"shape": what, "text": what, "colour": colour, "position": corner, "count": count}
            if task.name in truth:
                assert sample.reply == truth[task.name]
            else:
                asked = sample.question.rstrip("?").split()[-1]
                assert sample.reply == ("yes" if asked in (what, colour) else "no")


def test_fifty_tasks() -> None:
    tasks = Shapes(length=50, train_size=100, test_size=20).tasks()
    assert len({task.name for task in tasks}) == 50


def test_order_and_seed() -> None:
    given, back = Shapes(train_size=5).tasks(), Shapes(train_size=5, order="reversed").tasks()
    assert [task.name for task in given] == [task.name for task in back][::-1]
    assert given[0].train == Shapes(train_size=5).tasks()[0].train
    assert given[0].train != Shapes(train_size=5, seed=1).tasks()[0].train


def test_a_task_is_the_same_in_every_order() -> None:
    given = {task.name: task for task in Shapes(tasks=["shape", "colour"], length=4, train_size=5).tasks()}
    assert list(given) == ["shape", "colour", "shape-2", "colour-2"]
    order = ["shape-2", "colour", "shape"]
    chosen = Shapes(tasks=["shape", "colour"], length=4, train_size=5, order=order).tasks()
    assert [task.name for task in chosen] == order
    assert all(task == given[task.name] for task in chosen)


def test_text_only_tasks_by_number_and_by_name() -> None:
    options = {"tasks": ["shape"], "train_size": 6, "test_size": 2}
    assert [task.name for task in Shapes(text_only=3, **options).tasks()] == ["shape", "sum", "letter", "sum-2"]
    by_name = Shapes(text_only=["letter"], **options).tasks()
    assert [task.name for task in by_name] == ["shape", "letter"]
    assert [{bool(sample.images) for sample in (*task.train, *task.test)} for task in by_name] == [{True}, {False}]


def test_backgrounds_do_not_tell_the_task() -> None:
    """The task whose training image has the most similar background is the right one no more often than by chance."""
    tasks = Shapes(tasks=["shape"], length=4, train_size=400, test_size=200, similarity=1.0).tasks()

    def shades(samples) -> list[tuple[int, ...]]:
        return [image.open().getpixel((0, 0)) for image in dict.fromkeys(sample.images[0] for sample in samples)]

    known = [(shade, index) for index, task in enumerate(tasks) for shade in shades(task.train)]
    asked = [(shade, index) for index, task in enumerate(tasks) for shade in shades(task.test)]
    nearest = [
        min(known, key=lambda item: sum((a - b) ** 2 for a, b in zip(item[0], at, strict=True))) for at, _ in asked
    ]
    right = sum(found[1] == index for found, (_, index) in zip(nearest, asked, strict=True))
    assert right / len(asked) < 0.35


def test_no_two_images_are_equal() -> None:
    tasks = Shapes(train_size=60, test_size=20, questions_per_image=1, image_size=16, captions=50).tasks()
    images = [sample.images[0].digest for task in tasks for sample in (*task.train, *task.test)]
    assert len(images) == 6 * 80 + 50 == len(set(images))


@pytest.mark.parametrize(
    ("options", "where", "what"),
    [
        ({"text_only": ["shape"]}, "stream.text_only", "no tasks without images: shape"),
        ({"text_only": -1}, "stream.text_only", "-1"),
        ({"captions": -1}, "stream.captions", "-1"),
        ({"order": ["shape", "shape"]}, "stream.order", "twice"),
        ({"order": []}, "stream.order", "none"),
        ({"order": ["shape-2"]}, "stream.order", "no such tasks: shape-2"),
        ({"train_size": 0}, "stream.train_size", "0"),
        ({"test_size": 0}, "stream.test_size", "0"),
        ({"questions_per_image": 0}, "stream.questions_per_image", "0"),
        ({"image_size": 8}, "stream.image_size", "8"),
        ({"length": 0}, "stream.length", "0"),
        ({"tasks": []}, "stream.tasks", "no tasks"),
    ],
)
def test_each_mistake_says_where_and_how_to_mend_it(options: dict, where: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        Shapes(**options)
    (problem,) = caught.value.problems
    assert problem.where == where and what in problem.message and problem.hint


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"color.*\n.*colour"):
        Shapes(tasks=["color"])
    with pytest.raises(UserError, match=r"stream.similarity"):
        Shapes(similarity=1.5)
