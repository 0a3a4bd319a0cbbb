"""Every trainable parameter moves, every frozen one stays bit-identical."""

from __future__ import annotations

import random

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mmcl.errors import UserError
from mmcl.model.features import IN_MEMORY
from mmcl.model.parts import select_parameters
from mmcl.progress import Progress
from mmcl.recipe.spec import TrainSpec
from mmcl.testing import tiny_assembly, tiny_tasks
from mmcl.training.loop import train_task
from mmcl.training.methods import Methods
from mmcl.training.objectives.answers import Answers


def train(model, **spec):
    task = tiny_tasks(train=16)[0]
    return train_task(
        model,
        Methods({}),
        task,
        TrainSpec(learning_rate=1e-2, **spec),
        Answers(),
        accelerator=Accelerator(),
        rng=random.Random(0),
        progress=Progress.silent(),
        label="test",
    )


@pytest.mark.parametrize(
    "parts",
    [
        ("projector",),
        ("language.lora",),
        ("projector", "language.lora"),
        ("encoder", "projector"),
        ("language",),
        ("language.*self_attn*lora_B*",),
    ],
    ids=str,
)
def test_what_trains_moves_and_the_rest_stays(parts) -> None:
    model = tiny_assembly()
    model.set_trainable(parts)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    expected = select_parameters(before, parts)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # Tokens that never occur have no gradient, and LoRA's A has none while B is zero: hence several epochs and steps.
    train(model, epochs=3, batch_size=4)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == expected
    assert expected
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_a_part_that_is_not_there() -> None:
    model = tiny_assembly()
    with pytest.raises(UserError, match="did you mean `projector`"):
        model.set_trainable(["projektor"])


def test_one_batch_can_be_learned_by_heart() -> None:
    model = tiny_assembly(projector="mlp")
    model.set_trainable(["projector", "language", "language.lora"])
    cost = train(model, epochs=60, batch_size=16, schedule="constant")
    assert cost.losses[-1] < 0.05
    task = tiny_tasks(train=16)[0]
    assert model.generate(task.train) == [sample.reply for sample in task.train]


class Normed(nn.Module):
    """A tiny encoder with what behaves differently in training mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.info, self.transform = inner, inner.info, inner.transform
        self.norm, self.drop = nn.BatchNorm1d(inner.info.width), nn.Dropout(0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.inner(pixels).transpose(1, 2)).transpose(1, 2))


def test_a_frozen_encoder_is_not_moved_by_training_mode() -> None:
    model = tiny_assembly()
    model.encoder = Normed(model.encoder).eval()
    model.features.spec = IN_MEMORY
    model.features._memory.limit_bytes = 0  # every step encodes anew
    model.set_trainable(("projector",))
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    assert before
    images = [sample.images[0] for sample in tiny_tasks(train=16)[0].train]
    features = [feature.clone() for feature in model.image_features(images)]
    train(model, epochs=2, batch_size=4)
    for name, buffer in model.named_buffers():
        if "running" in name:
            assert torch.equal(buffer, before[name]), name
    model.train()
    assert all(torch.equal(one, two) for one, two in zip(features, model.image_features(images), strict=True))


def test_batch_statistics_of_a_training_encoder_stay() -> None:
    model = tiny_assembly()
    model.encoder = Normed(model.encoder).eval()
    model.set_trainable(("encoder",))
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    train(model, batch_size=4)
    assert model.train().encoder.drop.training
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in dict(model.encoder.named_buffers())), name


def test_an_encoder_that_trained_is_another_encoder() -> None:
    model = tiny_assembly()
    before = model.fingerprint
    images = [tiny_tasks()[0].train[0].images[0]]
    (old,) = model.image_features(images)
    model.set_trainable(("encoder", "projector"))
    train(model, batch_size=4)
    model.set_trainable(("projector",))
    assert model.fingerprint != before
    (new,) = model.image_features(images)
    assert not torch.equal(old, new)
    model.set_trainable(("projector",))
    again = model.fingerprint
    train(model, batch_size=4)
    model.set_trainable(("projector",))
    assert model.fingerprint == again
