"""The stream of emoji: four shifts in three forms, from data that come with packages."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mmcl.data.streams.emoji import PERIODS, WHAT, Emoji
from mmcl.data.streams.emoji_glyphs import glyphs
from mmcl.errors import UserError
from mmcl.evaluation.knowledge import changes, changing
from mmcl.testing import check_stream

SHIFTS = ("temporal", "content", "language", "domain")


@pytest.mark.parametrize("form", ["caption", "vqa", "classification"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_it_keeps_the_promises_of_a_stream(shift: str, form: str) -> None:
    stream = Emoji(shift=shift, form=form, glyphs=3, views=2, test_views=1, captions=4)
    check_stream(stream, images=4)
    captions, *tasks = stream.tasks()
    assert (captions.name, captions.kind, len(captions.train)) == ("captions", "align", 4)
    assert captions.heldout
    for task in tasks:
        shown = {image.digest for sample in task.train for image in sample.images}
        asked = {image.digest for sample in task.test for image in sample.images}
        assert (len(shown), len(asked)) == (6, 3)
        assert not shown & asked
        pictures = {image.name.split("-")[0] for sample in task.train for image in sample.images}
        assert not pictures & {sample.images[0].name.split("-")[0] for sample in captions.train}


def test_no_emoji_comes_before_its_release() -> None:
    years = {f"{ord(glyph.character):X}": glyph.year for glyph in glyphs()}
    tasks = Emoji(glyphs=40, views=1, test_views=1).tasks()
    assert [task.name for task in tasks] == [task.time for task in tasks] == list(PERIODS)
    for task in tasks:
        first, last = PERIODS[task.name]
        for sample in (*task.train, *task.test):
            assert sample.time == task.name
            assert all(first <= years[image.name.split("-")[0]] <= last for image in sample.images)


def test_what_is_newest_changes_and_says_so() -> None:
    tasks = Emoji(glyphs=2, views=1, test_views=1).tasks()
    facts = [[sample for sample in task.test if not sample.images] for task in tasks]
    assert all(facts)
    assert {sample.metadata["knowledge"] for sample in facts[0]} == {"new"}
    assert {sample.metadata["knowledge"] for sample in facts[1]} <= {"updated", "invariant"}
    answers = [{sample.question: sample.answers[0] for sample in group} for group in facts]
    assert all(int(later[q]) >= int(earlier[q]) for earlier, later in pairwise(answers) for q in earlier)
    found = changes([task.__class__(task.name, (), [s.replace(metadata={}) for s in task.test]) for task in tasks])
    for tags, group in zip(found, facts, strict=True):  # the stream's own word is what would be found out without it
        assert {sample.id: sample.metadata["knowledge"] for sample in group} == {s.id: tags[s.id] for s in group}
    assert changing(tasks)


def test_languages_name_the_same_pictures() -> None:
    tasks = Emoji(shift="language", tasks=list(WHAT), glyphs=5, views=1, test_views=1).tasks()
    assert len(tasks) == 14
    pictures = [{image.digest for sample in task.train for image in sample.images} for task in tasks]
    assert all(each == pictures[0] for each in pictures)
    by_name = {task.name: [sample.reply for sample in task.train if sample.group == "name"] for task in tasks}
    assert all(len(names) == 5 for names in by_name.values())
    assert all(not name.isascii() for name in by_name["zh"] + by_name["ru"])
    assert all(sample.language == task.name for task in tasks for sample in task.test)


def test_domains_show_the_same_things_in_another_look() -> None:
    tasks = Emoji(shift="domain", glyphs=4, views=2, test_views=1).tasks()
    assert [task.name for task in tasks] == ["colour", "grey", "outline", "noisy", "low_resolution"]
    answers = [[sample.reply for sample in task.train] for task in tasks]
    assert all(each == answers[0] for each in answers)
    digests = [image.digest for task in tasks for sample in task.train[:1] for image in sample.images]
    assert len(set(digests)) == 5


def test_content_keeps_to_its_category_and_choices_are_the_names() -> None:
    by = {f"{ord(glyph.character):X}": glyph.category for glyph in glyphs()}
    tasks = Emoji(shift="content", form="classification", tasks=["food", "symbols"], glyphs=6, views=1).tasks()
    for task in tasks:
        assert {by[sample.images[0].name.split("-")[0]] for sample in task.train} == {task.name}
        assert set(task.choices) == {sample.reply for sample in task.train}


def test_the_seed_decides_which_emoji() -> None:
    def names(seed: int) -> list[str]:
        return [sample.reply for sample in Emoji(seed=seed, form="caption", glyphs=8, views=1).tasks()[0].train]

    assert names(0) == names(0) != names(1)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"tasks": ["2011"]}, "stream.tasks"),
        ({"shift": "language", "tasks": ["en", "en"]}, "stream.tasks"),
        ({"glyphs": 0}, "stream.glyphs"),
        ({"image_size": 4}, "stream"),
    ],
)
def test_wrong_options_are_named(options: dict, where: str) -> None:
    with pytest.raises(UserError) as error:
        Emoji(**options)
    assert [problem.where for problem in error.value.problems] == [where]
