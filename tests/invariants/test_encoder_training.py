"""An encoder frozen, with adapters, or training as a whole: what was asked for moves, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mmcl.errors import UserError
from mmcl.model.assembly import Assembly
from mmcl.model.build import build_model
from mmcl.progress import Progress
from mmcl.recipe.spec import LanguageSpec, LoRASpec, ModelSpec, PluginSpec, TrainSpec
from mmcl.testing import tiny_tasks
from mmcl.training.loop import make_optimiser, train_task
from mmcl.training.methods import Methods
from mmcl.training.objectives.answers import Answers

ENCODERS = {
    "timm": PluginSpec("timm", {"model": "test_vit", "pretrained": False, "image_size": 64}),
    "convolutions": PluginSpec("timm", {"model": "test_efficientnet", "pretrained": False, "image_size": 64}),
    "open_clip": PluginSpec("open_clip", {"model": "tiny-vit", "pretrained": False}),
    "fused": PluginSpec(
        "fused",
        {"encoders": ({"name": "timm", "model": "test_vit", "pretrained": False, "image_size": 64}, {"name": "tiny"})},
    ),
    "tiny:qwen2_vl": None,
}


SMALL = LoRASpec(rank=2)


def build(name: str, lora: LoRASpec | None = SMALL, train: tuple[str, ...] = ("projector",)) -> Assembly:
    encoder = ENCODERS[name]
    if encoder is None:
        spec = ModelSpec(vlm=name, language=LanguageSpec(""), encoder_lora=lora, train=train)
    else:
        language = LanguageSpec("tiny:llama")
        spec = ModelSpec(
            encoder=encoder, projector=PluginSpec("linear"), language=language, encoder_lora=lora, train=train
        )
    return build_model(spec, folder=Path(), seed=0)


def tensors(model: Assembly) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def learn(model: Assembly) -> None:
    task = tiny_tasks(train=4)[0]
    train_task(
        model,
        Methods({}),
        task,
        TrainSpec(learning_rate=1e-2, epochs=3, batch_size=2),
        Answers(),
        accelerator=Accelerator(),
        rng=random.Random(0),
        progress=Progress.silent(),
        label="test",
    )


@pytest.mark.usefixtures("open_clip_models")
@pytest.mark.parametrize("parts", [("projector",), ("encoder.lora",), ("encoder",)], ids=["frozen", "lora", "full"])
@pytest.mark.parametrize("name", ENCODERS)
def test_what_was_asked_for_trains(name: str, parts: tuple[str, ...]) -> None:
    model = build(name, train=parts)
    before = tensors(model)
    wanted = set(model.trainable())
    adapters = {key for key in wanted if ".lora_" in key}
    assert adapters == (wanted if parts == ("encoder.lora",) else set()) and wanted
    learn(model)
    moved = {key for key, tensor in tensors(model).items() if not torch.equal(tensor, before[key])}
    assert moved <= wanted
    # What an encoder has beside its way to the features (a pooled vector's layers, say) gets no gradient.
    assert len(moved) > 0.8 * len(wanted)


@pytest.mark.usefixtures("open_clip_models")
@pytest.mark.parametrize("name", ENCODERS)
def test_an_adapter_starts_as_nothing_and_comes_back_from_a_checkpoint(name: str) -> None:
    images = [sample.images[0] for sample in tiny_tasks(train=4)[0].train]
    plain, adapted = build(name, lora=None), build(name, train=("encoder.lora",))
    for one, other in zip(plain.image_features(images), adapted.image_features(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    before = adapted.fingerprint
    learn(adapted)
    adapted.set_trainable(("projector",))
    assert adapted.fingerprint != before  # features of the untrained adapter are out of reach
    learned = adapted.image_features(images)
    assert not all(torch.equal(one, other) for one, other in zip(learned, plain.image_features(images), strict=True))
    again = build(name)
    again.load_state(adapted.state())
    assert again.fingerprint == adapted.fingerprint
    assert all(torch.equal(one, other) for one, other in zip(learned, again.image_features(images), strict=True))


def test_targets_by_name() -> None:
    model = build("timm", LoRASpec(rank=2, targets=("qkv",)), train=("encoder.lora",))
    assert model.trainable() and all(".attn.qkv.lora_" in name for name in model.trainable())
    with pytest.raises(UserError, match=r"called `q_proj`") as error:
        build("timm", LoRASpec(targets=("q_proj",)))
    assert "qkv" in str(error.value) and "model.encoder_lora.targets" in str(error.value)
    with pytest.raises(UserError, match=r"encoder_lora: \{rank: 8\}"):
        build("timm", None, train=("encoder.lora",))


def test_an_encoder_given_as_an_object_stays_as_it_is() -> None:
    mine = build("timm", None).encoder
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    spec = ModelSpec(
        projector=PluginSpec("linear"),
        language=LanguageSpec("tiny:llama"),
        encoder_lora=LoRASpec(),
        train=("encoder.lora",),
    )
    for _ in range(2):
        learn(build_model(spec, folder=Path(), seed=0, encoder=mine))
    after = mine.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_the_longest_key_gives_the_learning_rate() -> None:
    model = build("timm", train=("encoder", "encoder.lora", "projector"))
    block = "encoder.network.blocks.3"
    rates = {"encoder": 1e-5, "encoder.lora": 1e-4, block: 1e-6, "encoder.*norm*": 1e-7}
    optimiser = make_optimiser(model.trainable(), TrainSpec(learning_rate=1e-3, learning_rates=rates))
    of = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    found = {name: of[id(parameter)] for name, parameter in model.trainable().items()}
    assert len(found) == len(of)
    for name, rate in found.items():
        if name.startswith("projector."):
            assert rate == 1e-3
        elif name.startswith(f"{block}."):
            assert rate == 1e-6, name
        elif ".lora_" in name:
            assert rate == 1e-4, name
        else:
            assert rate == (1e-7 if "norm" in name else 1e-5), name
