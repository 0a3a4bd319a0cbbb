"""Every family of ready models: taken apart, it says what it said as one, and learns by every way of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmcl.data.types import Sample, Turn
from mmcl.methods.projector_experts import ProjectorExperts
from mmcl.methods.replay import Replay
from mmcl.model.assembly import Assembly
from mmcl.model.build import build_model
from mmcl.model.vlm.families import FAMILIES
from mmcl.model.vlm.tiny import TINY_VLMS, tiny_vlm
from mmcl.recipe.spec import LanguageSpec, LoRASpec, ModelSpec
from mmcl.testing import ContractError, TinyImage, check_encoder, check_method, check_vlm
from mmcl.training.objectives.answers import Answers


def assembled(family: str, **more: Any) -> Assembly:
    """A tiny model whose adapters are at work."""
    more.setdefault("language", LanguageSpec(lora=LoRASpec(rank=2)))
    model = build_model(ModelSpec(vlm=f"tiny:{family}", **more), folder=Path(), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def samples() -> list[Sample]:
    """Several questions of an image, two images in one, several turns, text alone."""
    one, two = TinyImage("red", "top left"), TinyImage("blue", "top right")
    answered = [
        Sample(
            id=f"{picture.name} {number}",
            task="a",
            turns=(Turn("user", f"<image>\nWhat is{' really' * number} there?"), Turn("assistant", f"a {number}")),
            images=(picture,),
        )
        for picture in (one, two)
        for number in range(3)
    ]
    turns = (Turn("user", "<image>First?"), Turn("assistant", "yes"), Turn("user", "And?"), Turn("assistant", "no"))
    both = (Turn("user", "<image><image>Which is red?"), Turn("assistant", "one"))
    text = (Turn("user", "2 + 2?"), Turn("assistant", "4"))
    return [
        *answered,
        Sample(id="turns", task="a", turns=turns, images=(one,)),
        Sample(id="both", task="a", turns=both, images=(one, two)),
        Sample(id="text", task="a", turns=text),
    ]


def loss_and_gradient(model: Assembly) -> tuple[float, dict[str, torch.Tensor]]:
    model.train()
    total = 0.0
    for batch in model.pack(samples(), row_tokens=400):
        loss = Answers().loss(model, batch, model.forward(batch))["tokens"].total
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.trainable().items() if p.grad is not None}


def test_every_family_has_a_tiny_model() -> None:
    assert set(FAMILIES) <= set(TINY_VLMS)


@pytest.mark.parametrize("family", TINY_VLMS)
def test_taken_apart_it_is_the_same(family: str) -> None:
    check_vlm(*tiny_vlm(family))


@pytest.mark.parametrize("family", TINY_VLMS)
def test_packed_is_padded(family: str) -> None:
    packed, padded = assembled(family), assembled(family, packing="padded")
    assert packed.packed and not padded.packed
    loss, gradient = loss_and_gradient(packed)
    loss_, gradient_ = loss_and_gradient(padded)
    assert loss == pytest.approx(loss_, rel=1e-5)
    assert gradient.keys() == gradient_.keys()
    for name, value in gradient.items():
        assert (value - gradient_[name]).norm() <= 1e-4 * gradient_[name].norm() + 1e-7, name
    questions = [s.replace(turns=s.turns[:-1]) for s in samples()]
    assert packed.generate(questions) == padded.generate(questions) == [packed.generate([q])[0] for q in questions]


@pytest.mark.parametrize("family", TINY_VLMS)
def test_the_tower_is_an_encoder(family: str) -> None:
    check_encoder(assembled(family).encoder)


@pytest.mark.parametrize("family", TINY_VLMS)
@pytest.mark.parametrize("part", ["encoder", "projector", "language.lora", "language"])
def test_parts_train_alone(family: str, part: str) -> None:
    model = assembled(family, train=(part,))
    before = model.snapshot(dict(model.named_parameters()))
    _, gradient = loss_and_gradient(model)
    assert gradient and all(torch.isfinite(value).all() for value in gradient.values())
    assert any(value.any() for value in gradient.values())
    torch.optim.SGD(model.trainable().values(), lr=0.1).step()
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (name in gradient and bool(gradient[name].any())), name


@pytest.mark.parametrize("family", TINY_VLMS)
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(lambda: Replay(budget="1MB", seed=0), id="replay"),
        pytest.param(lambda: Replay(budget="1MB", store="features", seed=0), id="features"),
        pytest.param(lambda: ProjectorExperts(router="prototype"), id="experts"),
    ],
)
def test_methods(family: str, method: Any) -> None:
    check_method(method, lambda: assembled(family))


@pytest.mark.parametrize(
    ("family", "name", "value", "message"),
    [
        ("paligemma", "look", "causal", "logits are off"),
        ("paligemma", "bos_after_images", False, "other tokens"),
        ("gemma3", "look", "causal", "logits are off"),
        ("qwen2_vl", "deep_positions", False, "logits are off"),
        ("llava_next", "arrange", lambda self, tokens, size, newline: tokens.flatten(0, 1), "logits are off"),
    ],
)
def test_a_family_that_is_described_wrongly_is_found(
    monkeypatch: pytest.MonkeyPatch, family: str, name: str, value: Any, message: str
) -> None:
    monkeypatch.setattr(FAMILIES[family], name, value)
    with pytest.raises(ContractError, match=message):
        check_vlm(*tiny_vlm(family))
