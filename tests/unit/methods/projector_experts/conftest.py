"""A real, tiny model and tasks whose images (colours) and questions are chosen by the test."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmcl.data.types import ImageSource, Sample, Samples, Task, Turn
from mmcl.methods.projector_experts import ProjectorExperts
from mmcl.model.assembly import Assembly
from mmcl.model.tiny import tiny_model, tiny_tokenizer
from mmcl.protocols import EncoderInfo, Route
from mmcl.recipe.spec import LoRASpec

PATCH = 12


class Pixels(ImageSource):
    """An image of 4 x 4 pixels in memory."""

    def __init__(self, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        self._data = buffer.getvalue()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._data).hexdigest()

    @property
    def name(self) -> str:
        return self.digest[:8]

    def read(self) -> bytes:
        return self._data

    def open(self) -> Image.Image:
        return Image.open(io.BytesIO(self._data)).convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class Patches(nn.Module):
    """Four patches of 2 x 2 pixels, each flattened, times a scale that can train."""

    def __init__(self) -> None:
        super().__init__()
        self.info = EncoderInfo(tokens=4, width=PATCH, image_size=4, source="test:patches")
        self.scale = nn.Parameter(torch.ones(PATCH))

    def transform(self) -> Callable[[Image.Image], Tensor]:
        return to_tensor

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.unfold(pixels, 2, stride=2).transpose(1, 2) * self.scale


class Bridge(nn.Module):
    """A projector of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(PATCH, 8), nn.Linear(8, 64)

    def tokens(self, tokens_in: int) -> int:
        return tokens_in

    def forward(self, features: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(features)))


def image(colour: Sequence[float], rng: np.random.Generator) -> Pixels:
    """A noisy image of one colour in [0, 1]."""
    values = np.asarray(colour)[None, None] + rng.normal(0, 0.06, (4, 4, 3))
    return Pixels((values.clip(0, 1) * 255).astype(np.uint8))


def sample(number: int, task: str, images: Sequence[ImageSource], question: str, answer: str = "yes") -> Sample:
    text = "<image>" * len(images) + question
    return Sample(f"{task}-{number}", task, (Turn("user", text), Turn("assistant", answer)), tuple(images))


def task(
    name: str,
    colour: Sequence[float] | None,
    questions: Sequence[str],
    *,
    count: int = 60,
    tests: int = 40,
    seed: int = 0,
    answer: str = "yes",
) -> Task:
    """Images of one colour (None: no images), questions at random; test samples are unseen images."""
    rng, choose = np.random.default_rng(seed), random.Random(seed)
    rows = [
        sample(k, name, [] if colour is None else [image(colour, rng)], choose.choice(list(questions)), answer)
        for k in range(count + tests)
    ]
    return Task(name, rows[:count], rows[count:])


def build(*, train: Sequence[str] = ("projector", "language.lora")) -> Assembly:
    torch.manual_seed(0)
    return Assembly(
        encoder=Patches(),
        projector=Bridge(),
        language=tiny_model(),
        tokenizer=tiny_tokenizer(),
        lora=LoRASpec(rank=2),
        train=train,
    )


def learn(model: Assembly, method: ProjectorExperts, *tasks: Task, steps: int = 0, rows: int = 6) -> None:
    """Take the method through tasks, with a few optimiser steps on the first rows of each."""
    for item in tasks:
        method.begin_task(model, item, ())
        optimiser = torch.optim.SGD(model.trainable().values(), lr=0.5)
        for _ in range(steps):
            loss(model, item.train[:rows], method.assign(model, item.train[:rows])).backward()
            optimiser.step()
            optimiser.zero_grad()
        method.end_task(model, item)


def loss(model: Assembly, samples: Samples, routes: Sequence[Route]) -> Tensor:
    total = []
    for batch in model.pack(samples, routes):
        out = model.forward(batch)
        total.append(nn.functional.cross_entropy(out.logits, batch.targets, reduction="sum"))
    return torch.stack(total).sum() / len(samples)


def hidden(samples: Samples) -> list[Sample]:
    """What a method may see at test time."""
    return [item.hidden() for item in samples]


@pytest.fixture
def world() -> Any:
    """The helpers above, and colours and questions that go with them."""
    return SimpleNamespace(
        Bridge=Bridge,
        Patches=Patches,
        build=build,
        hidden=hidden,
        image=image,
        learn=learn,
        loss=loss,
        sample=sample,
        task=task,
        red=(0.9, 0.1, 0.1),
        green=(0.1, 0.9, 0.1),
        blue=(0.1, 0.1, 0.9),
        gray=(0.5, 0.5, 0.5),
        shape=("what shape is in the image?", "what is the red shape?", "what shape is present?"),
        color=("what color is the circle?", "what is the color of the triangle?", "what color is the shape?"),
        poem=("Write a POEM on winter.", "TELL me 7 jokes!"),
    )
