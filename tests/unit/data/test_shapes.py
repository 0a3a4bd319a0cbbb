"""The generated stream."""

from __future__ import annotations

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
            truth = {"shape": what, "text": what, "colour": colour, "position": corner, "count": words[len(figures) - 1]}
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


def test_mistakes() -> None:
    with pytest.raises(UserError, match="color.*\n.*colour"):
        Shapes(tasks=["color"])
    with pytest.raises(UserError, match=r"stream.similarity"):
        Shapes(similarity=1.5)
