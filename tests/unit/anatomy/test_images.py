"""Questions with other pictures keep everything else, and never their own picture."""

from __future__ import annotations

import pytest
import torch

from mmcl.anatomy.images import blank, disordered, foreign, partners
from mmcl.anatomy.relearn import Doubling
from mmcl.anatomy.states import image_states, text_states
from mmcl.data.streams.shapes import Shapes
from mmcl.data.types import Samples
from mmcl.protocols import BASE
from mmcl.recipe.spec import EvaluateSpec
from mmcl.testing import tiny_assembly, tiny_tasks


def digests(samples: Samples) -> list[list[str]]:
    return [[image.digest for image in sample.images] for sample in samples]


def test_only_the_images_change() -> None:
    colour, place = tiny_tasks(test=8)
    model = tiny_assembly()
    model.set_trainable(())
    for changed in (
        blank(colour.test),
        foreign(colour.test, place.test),
        partners(colour.test, colour.test),
        disordered(model, colour.test),
    ):
        assert [sample.replace(images=()) for sample in changed] == [s.replace(images=()) for s in colour.test]
        assert all(set(a).isdisjoint(b) for a, b in zip(digests(changed), digests(colour.test), strict=True))
        assert [len(sample.images) for sample in changed] == [1] * 8


def test_a_blank_image_has_one_colour_and_the_same_size() -> None:
    (sample, *_) = Shapes(tasks=["colour"], image_size=48).tasks()[0].test
    (image,) = blank([sample])[0].images
    assert image.dimensions == (48, 48)
    assert len(image.open().getcolors() or []) == 1


def test_a_partner_has_another_answer() -> None:
    test = sorted(tiny_tasks(test=40)[0].test, key=lambda sample: sample.answers)  # the next one has the same answer
    for sample, other in zip(test, partners(test, test), strict=True):
        (image,) = other.images
        assert sample.answers[0] not in image.name


def test_without_another_image_it_is_blank() -> None:
    sample = tiny_tasks()[0].test[0]
    for changed in (partners([sample], [sample]), foreign([sample], [sample]), foreign([sample], [])):
        assert "blank" in changed[0].images[0].name


def test_tokens_in_disorder_are_the_same_tokens() -> None:
    model = tiny_assembly()
    model.set_trainable(())
    samples = list(tiny_tasks()[0].test)
    first, again = disordered(model, samples), disordered(model, samples)
    own = model.image_features([sample.images[0] for sample in samples])
    moved = model.image_features([sample.images[0] for sample in first])
    assert digests(first) == digests(again)
    for one, other, repeated in zip(
        own, moved, model.image_features([sample.images[0] for sample in again]), strict=True
    ):
        assert torch.equal(other, repeated)
        assert torch.equal(one.sort(0).values, other.sort(0).values)
    assert any(not torch.equal(one, other) for one, other in zip(own, moved, strict=True))
    assert model.views(first[0].images[0]) == 1


def test_steps_of_relearning_double() -> None:
    curve = Doubling([], [], EvaluateSpec())
    assert [sorted(curve.steps(total)) for total in (1, 5, 8)] == [[0, 1], [0, 1, 2, 4, 5], [0, 1, 2, 4, 8]]


def test_states_do_not_depend_on_what_is_beside_them() -> None:
    model = tiny_assembly()
    samples = list(tiny_tasks(test=12)[0].test)
    routes = [BASE] * len(samples)
    for states in (image_states, text_states):
        together = states(model, samples, routes)
        for sample in samples:
            for key, vector in states(model, [sample], [BASE]).items():
                assert vector == pytest.approx(together[key].numpy(), abs=1e-5)
    assert len(image_states(model, samples, routes)) == 6  # two questions of each image
    assert len(text_states(model, samples, routes)) == 2  # two wordings
