"""Packed rows give the loss, the gradients and the answers of one row per sample."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmcl.data.streams.easy_vqa import EasyVQA
from mmcl.data.types import Sample, Turn
from mmcl.fetch import find
from mmcl.methods.replay import Replay
from mmcl.model.assembly import Assembly
from mmcl.model.build import build_model
from mmcl.model.capability import why_not_packed
from mmcl.model.tiny import FAMILIES
from mmcl.protocols import BASE, Method
from mmcl.recipe.spec import LanguageSpec, LoRASpec, ModelSpec, PluginSpec, PromptSpec
from mmcl.testing import TinyImage, tiny_language, tiny_tasks
from mmcl.training.objectives.all_text import AllText
from mmcl.training.objectives.answers import Answers

PACKING_FAMILIES = [family for family in FAMILIES if not why_not_packed(tiny_language(family)[0])]


def world(family: str, packing: str, style: str = "chat") -> Assembly:
    """A tiny model whose adapters are not at their no-op start, so that every gradient counts."""
    spec = ModelSpec(
        encoder=PluginSpec("tiny"),
        projector=PluginSpec("mlp"),
        language=LanguageSpec(f"tiny:{family}", lora=LoRASpec(rank=2)),
        packing=packing,  # type: ignore[arg-type]
        prompt=PromptSpec(style=style),  # type: ignore[arg-type]
    )
    model = build_model(spec, folder=Path(), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def mixed_samples() -> list[Sample]:
    """Several questions of an image, several images in a question, several turns, text alone, an image alone."""
    pictures = [TinyImage("red", "top left"), TinyImage("blue", "top right"), TinyImage("green", "bottom left")]
    samples = [
        Sample(
            id=f"{place}-{q}",
            task="a",
            turns=(Turn("user", f"<image>\nWhat is{' really' * q} there?"), Turn("assistant", f"thing {q}{place}")),
            images=(picture,),
        )
        for place, picture in enumerate(pictures)
        for q in range(3)
    ]
    return [
        *samples,
        Sample(id="text", task="a", turns=(Turn("user", "Hello?"), Turn("assistant", "Good day"))),
        Sample(id="image", task="a", turns=(Turn("user", "<image>"), Turn("assistant", "red")), images=(pictures[0],)),
        Sample(
            id="two",
            task="a",
            turns=(
                Turn("user", "<image><image>Same?"),
                Turn("assistant", "no"),
                Turn("user", "Sure?"),
                Turn("assistant", "yes"),
            ),
            images=(pictures[0], pictures[0]),
        ),
    ]


def loss_and_gradient(
    model: Assembly, samples: list[Sample], objective: Answers | AllText
) -> tuple[float, int, torch.Tensor]:
    batches = model.pack(samples, row_tokens=200, supervise=[objective.supervise(sample) for sample in samples])
    total, count = 0.0, 0.0
    for batch in batches:
        part = objective.loss(model, batch, model.forward(batch))["tokens"]
        part.total.backward()
        total, count = total + part.total.item(), count + part.count
    gradient = torch.cat([p.grad.flatten() for p in model.trainable().values() if p.grad is not None])
    return total, int(count), gradient


def test_most_families_pack() -> None:
    assert len(PACKING_FAMILIES) >= 6


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("objective", [Answers(), AllText()], ids=["answers", "all text"])
@pytest.mark.parametrize("family", PACKING_FAMILIES)
def test_packed_is_padded(family: str, objective: Answers | AllText, style: str) -> None:
    samples = mixed_samples()
    packed, padded = world(family, "packed", style), world(family, "padded", style)
    loss, count, gradient = loss_and_gradient(packed, samples, objective)
    loss_, count_, gradient_ = loss_and_gradient(padded, samples, objective)
    assert count == count_
    assert loss == pytest.approx(loss_, rel=1e-5)
    assert (gradient - gradient_).norm() < 1e-5 * gradient_.norm()
    assert gradient_.norm() > 0


def test_packing_shares_the_image() -> None:
    samples = mixed_samples()[:3]
    model = world("llama", "packed")
    (batch,) = model.pack(samples, row_tokens=1000)
    assert int(batch.is_image.sum()) == model.visual_tokens
    padded = world("llama", "padded").pack(samples, row_tokens=1000)
    assert sum(int((~b.is_padding).sum()) for b in padded) > int((~batch.is_padding).sum())


def test_branches_do_not_see_each_other() -> None:
    model = world("llama", "packed")
    (batch,) = model.pack(mixed_samples()[:3], row_tokens=1000)
    owner, visible = batch.owner[0], batch.visible[0]
    assert set(owner.tolist()) == {-1, 0, 1, 2}
    for one in range(3):
        for other in {0, 1, 2} - {one}:
            assert not visible[owner == one][:, owner == other].any()
        assert visible[owner == one][:, owner == -1].all()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_company(family: str) -> None:
    model = world(family, "auto")
    samples = mixed_samples()
    together = model.generate(samples)
    assert together == [model.generate([sample])[0] for sample in samples]
    assert together[::-1] == model.generate(samples[::-1])
    assert len(set(together)) > 1


@pytest.mark.parametrize("family", PACKING_FAMILIES)
def test_answers_are_those_of_transformers(family: str) -> None:
    packed, padded = world(family, "packed"), world(family, "padded")  # padded decodes with transformers' generate
    samples = mixed_samples()
    assert packed.generate(samples) == padded.generate(samples)


def method_gradient(packing: str, method: Method) -> tuple[dict[str, float], torch.Tensor]:
    """Loss parts and gradient of a step on replayed and new samples, by a student that has left its teacher."""
    model = world("llama", packing)
    old, new = tiny_tasks(train=8)
    for task, seen in ((old, ()), (new, (old,))):
        method.begin_task(model, task, seen)
        samples = method.training_samples(model, task, task.train, random.Random(0))
        if task is old:
            method.end_task(model, task)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    assert {sample.task for sample in samples} == {"colour", "place"}
    batches = model.pack(samples, [BASE] * len(samples), row_tokens=200)
    counts: dict[str, float] = {}
    for batch in batches:
        for part, count in method.loss_counts(batch).items():
            counts[part] = counts.get(part, 0.0) + count
    values = dict.fromkeys(counts, 0.0)
    for batch in batches:
        parts = method.loss(model, batch, model.forward(batch, hidden=method.needs_hidden()))
        for part, value in parts.items():
            values[part] += value.total.item() / counts[part]
        if parts:
            torch.stack([value.total / counts[part] for part, value in parts.items()]).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.trainable().values() if p.grad is not None])
    return values, gradient


@pytest.mark.parametrize(
    "options",
    [
        {"distill_logits": 1.0},
        {"distill_features": 1.0},
        {"distill_features": 1.0, "balance": "equal"},
        {"store": "question"},
        {"store": "text"},
        {"store": "features", "distill_logits": 1.0},
        {"teacher": "stored"},
    ],
    ids=str,
)
def test_the_losses_of_replay_are_the_same_packed_and_padded(options: dict[str, Any]) -> None:
    packed, gradient = method_gradient("packed", Replay(rows=6, **options))
    padded, gradient_ = method_gradient("padded", Replay(rows=6, **options))
    assert packed
    assert packed == pytest.approx(padded, rel=1e-4, abs=1e-6)  # a small divergence is a difference of large numbers
    assert min(packed.values()) > 0
    assert (gradient - gradient_).norm() < 1e-3 * gradient_.norm()


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.skipif(find("smollm2-135m-instruct") is None, reason="run `mmcl fetch smollm2-135m-instruct` first")
def test_packed_is_padded_on_real_weights() -> None:
    tasks = EasyVQA(captions=False).tasks()
    picture = tasks[0].train[0].images[0]
    samples = [sample for task in tasks for sample in task.train if sample.images[0] is picture]
    samples += [tasks[1].train[50], tasks[2].train[90]]
    found = []
    for packing in ("packed", "padded"):
        spec = ModelSpec(
            encoder=PluginSpec("lite0", {"image_size": 64}),
            projector=PluginSpec("mlp"),
            language=LanguageSpec("smollm2-135m-instruct", lora=LoRASpec(rank=4)),
            packing=packing,  # type: ignore[arg-type]
        )
        model = build_model(spec, folder=Path(), seed=0)
        model.calibrate(samples)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
        found.append(loss_and_gradient(model, samples, Answers()))
    (loss, count, gradient), (loss_, count_, gradient_) = found
    assert count == count_ > 10
    assert loss == pytest.approx(loss_, rel=1e-4)
    assert (gradient - gradient_).norm() < 1e-4 * gradient_.norm()
