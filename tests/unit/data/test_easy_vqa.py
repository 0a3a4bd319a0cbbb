"""easy-VQA: what belongs to which task, sizes and seeds, captions, and that nothing leaks."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from mmcl.data.streams.easy_vqa import COLOURS, SHAPES, VOCABULARIES, EasyVQA
from mmcl.data.types import Sample, Task
from mmcl.errors import UserError

QUESTION_TYPES = ("shape", "color", "has_shape", "has_color")


def by_name(**options: object) -> dict[str, Task]:
    return {task.name: task for task in EasyVQA(**options).tasks()}


@pytest.fixture(scope="module")
def whole() -> dict[str, Task]:
    return by_name()


def words(sample: Sample) -> set[str]:
    return set(sample.question.rstrip("?").split())


def test_question_types_take_every_question_once(whole: dict[str, Task]) -> None:
    assert tuple(whole) == ("captions", *QUESTION_TYPES)
    assert {name: (len(task.train), len(task.test)) for name, task in whole.items() if name != "captions"} == {
        "shape": (5002, 1257),
        "color": (5166, 1280),
        "has_shape": (7749, 1935),
        "has_color": (20658, 5201),
    }
    assert sum(len(whole[name].train) for name in QUESTION_TYPES) == 38_575
    assert sum(len(whole[name].test) for name in QUESTION_TYPES) == 9_673


def test_answers_of_each_question_type(whole: dict[str, Task]) -> None:
    vocabulary = {"shape": set(SHAPES), "color": set(COLOURS), "has_shape": {"yes", "no"}, "has_color": {"yes", "no"}}
    for name, answers in vocabulary.items():
        assert {sample.reply for sample in whole[name].train} == answers
        assert {answer for sample in whole[name].test for answer in sample.answers} == answers
    for sample in whole["has_shape"].train:
        assert words(sample) & set(SHAPES) and not words(sample) & set(COLOURS)
    for sample in whole["has_color"].train:
        assert words(sample) & set(COLOURS)


def test_samples_have_their_provenance(whole: dict[str, Task]) -> None:
    for name, task in whole.items():
        for split in (task.train, task.test):
            assert len({sample.id for sample in split}) == len(split)
            assert all(sample.task == name and len(sample.images) == 1 for sample in split)
        assert all(sample.turns[0].text.startswith("<image>\n") and sample.reply for sample in task.train)
        assert all(sample.answers and not sample.reply for sample in task.test)
        assert task.metric == "exact"


def test_groups_tell_the_negated_questions(whole: dict[str, Task]) -> None:
    for name in ("has_shape", "has_color"):
        groups = {sample.group for sample in whole[name].train}
        assert groups == {f"{name}, plain", f"{name}, negated"}
        for sample in whole[name].train:
            assert sample.group.endswith("negated") == bool(words(sample) & {"not", "no"})
    with_a_hint = [sample for sample in whole["shape"].train if sample.group == "shape, with a hint"]
    assert len(with_a_hint) == 1225 and all(words(sample) & set(COLOURS) for sample in with_a_hint)


def test_no_test_image_is_in_training() -> None:
    tasks = by_name(train_size=300, test_size=300)
    train = {image.digest for task in tasks.values() for sample in task.train for image in sample.images}
    test = {image.digest for task in tasks.values() for sample in task.test for image in sample.images}
    assert len(train) > 300 and test and not train & test


def test_captions_say_what_the_questions_say(whole: dict[str, Task]) -> None:
    captions = whole["captions"]
    assert (captions.kind, len(captions.train), len(captions.test)) == ("align", 3542, 0)
    said = {sample.images[0].name: sample.reply for sample in captions.train}
    for name in ("shape", "color"):
        for sample in whole[name].train:
            if sample.images[0].name in said:
                assert sample.reply in said[sample.images[0].name].split()
    for sample in (*whole["has_shape"].train, *whole["has_color"].train):
        if sample.images[0].name in said:
            named = (words(sample) & {*SHAPES, *COLOURS}).pop()
            there = named in said[sample.images[0].name].split()
            assert (sample.reply == "yes") == (there != sample.group.endswith("negated"))


def test_caption_options() -> None:
    task = by_name(caption_size=7, caption_prompt="What is it?")["captions"]
    assert len(task.train) == 7
    assert {sample.turns[0].text for sample in task.train} == {"<image>\nWhat is it?"}
    assert "captions" not in by_name(captions=False)


# ----------------------------------------------------------------------------------------------------- the other splits


def test_answers_split_has_disjoint_vocabularies() -> None:
    tasks = by_name(split="answers", captions=False)
    assert tuple(tasks) == tuple(VOCABULARIES)
    assert sorted(word for task in VOCABULARIES.values() for word in task) == sorted({*SHAPES, *COLOURS, "yes", "no"})
    for name, task in tasks.items():
        assert {sample.reply for sample in task.train} == set(VOCABULARIES[name])
        assert {sample.answers[0] for sample in task.test} == set(VOCABULARIES[name])
    assert sum(len(task.train) for task in tasks.values()) == 38_575


@pytest.mark.parametrize("kind, names, question", [("shape", SHAPES, "shape"), ("color", COLOURS, "color")])
def test_image_property_split_has_disjoint_images(kind: str, names: tuple[str, ...], question: str) -> None:
    tasks = by_name(split="image_property", image_property=kind, captions=False)
    assert tuple(tasks) == names
    images = [{sample.images[0].name for sample in task.train} for task in tasks.values()]
    assert sum(map(len, images)) == len(set.union(*images))
    for name, task in tasks.items():
        types = {sample.group.split(",")[0] for sample in task.train}
        assert types == set(QUESTION_TYPES)
        assert {sample.reply for sample in task.train if sample.group.startswith(f"{question},")} == {name}


# --------------------------------------------------------------------------------------------------------- sizes, seeds


def test_sizes_take_whole_images(whole: dict[str, Task]) -> None:
    asked = {name: Counter(s.images[0].name for s in task.train) for name, task in whole.items()}
    small = by_name(train_size=101, test_size=13)
    for name in QUESTION_TYPES:
        assert (len(small[name].train), len(small[name].test)) == (101, 13)
        for image, count in Counter(sample.images[0].name for sample in small[name].train).items():
            assert count == asked[name][image]
        order = [sample.images[0].name for sample in small[name].train]
        assert len([1 for before, after in pairwise(order) if before != after]) == len(set(order)) - 1


def test_a_size_below_one_image_still_gives_a_sample() -> None:
    asked = Counter(sample.images[0].name for sample in by_name(images=10)["has_color"].train)
    assert min(asked.values()) > 1
    for task in EasyVQA(images=10, train_size=1, test_size=1, captions=False).tasks():
        assert len(task.train) == len(task.test) == 1


def test_yes_and_no_stay_balanced_in_small_samples() -> None:
    for seed in range(3):
        tasks = by_name(train_size=400, seed=seed)
        for name in ("has_shape", "has_color"):
            assert 0.4 < sum(sample.reply == "yes" for sample in tasks[name].train) / 400 < 0.6


def test_the_same_seed_gives_the_same_and_another_one_others() -> None:
    first, again, other = (by_name(train_size=50, test_size=20, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [s.id for s in first["shape"].train] != [s.id for s in other["shape"].train]
    assert [s.id for s in first["shape"].train[:4]] == ["train-26267", "train-30346", "train-7771", "train-36665"]


def test_tasks_share_images_and_image_objects() -> None:
    tasks = by_name(train_size=200)
    objects = {sample.images[0].name: sample.images[0] for sample in tasks["shape"].train}
    shared = [sample for sample in tasks["color"].train if sample.images[0].name in objects]
    assert len(shared) > 60
    assert all(sample.images[0] is objects[sample.images[0].name] for sample in shared)


def test_a_number_of_images() -> None:
    tasks = by_name(images=40)
    used = {sample.images[0].name for task in tasks.values() for sample in task.train}
    assert 35 <= len(used) <= 40
    assert {len(tasks[name].test) for name in QUESTION_TYPES} == {1257, 1280, 1935, 5201}


def test_order() -> None:
    assert tuple(by_name(order="reversed", captions=False, train_size=1)) == QUESTION_TYPES[::-1]
    assert tuple(by_name(order=["color", "shape"], train_size=1)) == ("captions", "color", "shape")


def test_a_suffix_follows_every_question() -> None:
    for task in EasyVQA(prompt_suffix="\nOne word.", captions=False, train_size=3, test_size=3).tasks():
        assert all(sample.turns[0].text.endswith("?\nOne word.") for sample in (*task.train, *task.test))


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "options, where, what",
    [
        ({"order": ["shape", "colour"]}, "stream.order", "no task `colour`"),
        ({"order": ["shape", "shape"]}, "stream.order", "`shape` stands there 2 times"),
        ({"order": []}, "stream.order", "no task is named"),
        ({"split": "answers", "order": ["color"]}, "stream.order", "no task `color`"),
        ({"train_size": 0}, "stream.train_size", "0 is not possible"),
        ({"images": -1}, "stream.images", "-1 is not possible"),
    ],
)
def test_wrong_options(options: dict[str, object], where: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        EasyVQA(**options)
    (problem,) = caught.value.problems
    assert problem.where == where and what in problem.message and problem.hint


def test_all_wrong_options_at_once() -> None:
    with pytest.raises(UserError) as caught:
        EasyVQA(train_size=0, test_size=0, images=0, caption_size=0, order=["x"])
    assert [problem.where for problem in caught.value.problems] == [
        "stream.order",
        "stream.train_size",
        "stream.test_size",
        "stream.images",
        "stream.caption_size",
    ]


def test_too_few_images_for_a_task() -> None:
    with pytest.raises(UserError) as caught:
        EasyVQA(images=1).tasks()
    assert all(
        problem.where == "stream.images" and "raise `images`" in problem.hint for problem in caught.value.problems
    )
    assert "shape" in str(caught.value) or "color" in str(caught.value)


def test_too_few_images_for_a_caption() -> None:
    options = {"images": 1, "order": ["has_color"]}  # the colour questions about that image all have the answer no
    assert [task.name for task in EasyVQA(captions=False, **options).tasks()] == ["has_color"]
    with pytest.raises(UserError, match="no caption can be made") as caught:
        EasyVQA(**options).tasks()
    assert "raise `images`" in caught.value.problems[0].hint


@pytest.mark.parametrize("found, hint", [(None, "pip install easy-vqa"), ("elsewhere", "install the package again")])
def test_missing_data(found: str | None, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from importlib.machinery import ModuleSpec

    spec = ModuleSpec("easy_vqa", None, origin=f"{tmp_path}/{found}/__init__.py") if found else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(UserError, match=hint):
        EasyVQA().tasks()
