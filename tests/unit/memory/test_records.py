from __future__ import annotations

import pytest
import torch

from mmcl.data.types import Sample, Turn
from mmcl.errors import UserError
from mmcl.memory.records import StoredFeatures, TopLogits, image_bytes, kept_images, make_record, store_features
from mmcl.memory.selection import random_key
from mmcl.methods.distillation import kl_divergence

from .helpers import picture, row

CONVERSATION = Sample(
    id="9",
    task="t",
    turns=(
        Turn("system", "Be brief."),
        Turn("user", "<image>\nWhat is it?"),
        Turn("assistant", "A cat."),
        Turn("user", "And its colour?"),
        Turn("assistant", "Grün."),
    ),
    images=(picture(1),),
    group="animal",
    time="2024",
    language="de",
)


def test_full_round_trip() -> None:
    record = make_record(CONVERSATION, "full", key=1, step=2)
    images = kept_images(CONVERSATION, "full")
    assert record.sample().replace(images=images, metadata={}) == CONVERSATION
    assert record.sample().metadata == {"replay": 1}


def test_question_keeps_no_answer() -> None:
    record = make_record(CONVERSATION, "question", key=1, step=2)
    assert record.answer is None
    assert record.question == CONVERSATION.turns[:2]
    assert record.modality == "image+text"
    assert kept_images(CONVERSATION, "question") == ()


def test_text_drops_image_and_placeholder() -> None:
    sample = make_record(CONVERSATION, "text", key=1, step=2).sample()
    assert sample.images == ()
    assert [turn.text for turn in sample.turns] == ["Be brief.", "What is it?", "A cat.", "And its colour?", "Grün."]
    assert make_record(row("t", 1, image=picture(1), question=""), "text", key=1, step=1).modality == "image"


def test_sizes_by_hand() -> None:
    image = picture(1)
    sample = Sample(
        id="42",
        task="t",
        turns=(Turn("user", "<image>é?"), Turn("assistant", "ja ß")),
        images=(image,),
        group="gr",
        language="de",
    )
    record = make_record(sample, "full", key=1, step=2)
    sizes = record.own_sizes(images=1)
    assert sizes == {
        "question": len("user") + len("<image>") + 2 + 1,
        "answer": 3 + 2,
        "logits": 0,
        "provenance": len("t" + "42" + "image+text" + "gr" + "de") + 32 + 4 * 8,
    }
    assert image_bytes(image) == ("image", len(image.read()) + len("1.png"))
    assert record.bytes == sum(sizes.values()) - 32  # no image here yet


def test_stored_features_sizes() -> None:
    features = torch.randn(3, 4)
    for dtype, width in (("fp32", 4), ("fp16", 2)):
        stored = store_features(picture(1), features, fingerprint="f" * 64, dtype=dtype)  # type: ignore[arg-type]
        assert image_bytes(stored) == ("features", 12 * width + 64 + 32 + 16 + len("1.png"))


def test_stored_features_refuse_pixels_and_other_encoders() -> None:
    stored = StoredFeatures(torch.ones(2, 3), fingerprint="a" * 64, digest="d" * 64, name="cat.png", dimensions=(8, 8))
    assert torch.equal(stored.stored_features("a" * 64), torch.ones(2, 3))
    with pytest.raises(UserError, match=r"cat\.png.*aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        stored.stored_features("b" * 64)
    for read in (stored.read, stored.open):
        with pytest.raises(UserError, match=r"cat\.png.*pixels were not kept"):
            read()


def test_fp16_error_is_as_stated_and_never_taken_for_exact() -> None:
    features = torch.randn(50, 40) * torch.logspace(-6, 4, 40)
    image = picture(1)
    exact = store_features(image, features, fingerprint="f", dtype="fp32")
    rounded = store_features(image, features, fingerprint="f", dtype="fp16")
    assert torch.equal(exact.stored_features("f"), features)
    error = (rounded.stored_features("f") - features).abs()
    assert (error <= torch.maximum(features.abs() * 2**-11, torch.tensor(2**-25))).all()
    assert error.max() > 0
    assert exact.digest == image.digest
    assert rounded.digest != image.digest
    assert rounded.stored_features("f").dtype == torch.float32
    with pytest.raises(UserError, match="do not fit fp16"):
        store_features(image, features * 100, fingerprint="f", dtype="fp16")


def test_stored_features_are_a_copy() -> None:
    features = torch.zeros(2, 2)
    stored = store_features(picture(1), features, fingerprint="f", dtype="fp32")
    features += 1
    assert stored.features.sum() == 0


def test_keys_depend_on_every_part() -> None:
    sample = row("t", 1, image=picture(1))
    others = [
        row("u", 1, image=picture(1)),
        row("t", 2, image=picture(1)),
        row("t", 1, image=picture(2)),
        row("t", 1, image=picture(1), question="why?"),
    ]
    keys = {random_key(sample, 0), random_key(sample, 1), *(random_key(other, 0) for other in others)}
    assert len(keys) == 6
    assert random_key(sample, 0) == random_key(row("t", 1, image=picture(1)), 0)


def test_top_logits() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 20), torch.randn(5, 20)
    for temperature in (1.0, 2.0):
        full = kl_divergence(student, teacher, temperature=temperature)
        almost = TopLogits.of(teacher, k=19, temperature=temperature)
        assert torch.allclose(almost.divergence(student, temperature=temperature), full, rtol=1e-5)
        few = TopLogits.of(teacher, k=4, temperature=temperature)
        assert 0 < few.divergence(student, temperature=temperature) < full  # merging buckets loses divergence
        assert few.divergence(teacher, temperature=temperature).abs() < 1e-5
        assert few.nbytes == TopLogits.size(5, 4)
        assert torch.allclose(few.top.exp().sum(-1) + few.rest.exp(), torch.ones(5))
    assert TopLogits.of(teacher, k=100, temperature=1.0).index.shape == (5, 19)
