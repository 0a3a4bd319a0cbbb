from __future__ import annotations

import pytest
import torch

from mmcl.data.types import Sample, Turn
from mmcl.model import likelihood
from mmcl.protocols import BASE, Route
from mmcl.testing import tiny_assembly, tiny_tasks

CHOICES = ("red", "green", "bottom left", "r", "yes", "bottom right")


def model(family: str = "llama"):
    """An expert that is not the base, and a LoRA that acts."""
    assembly = tiny_assembly(family=family, projector="linear")
    generator = torch.Generator().manual_seed(1)
    expert = type(assembly.projector)(
        in_width=assembly.encoder_info.width, out_width=assembly._embedding.weight.shape[1]
    )
    assembly.add_expert("one", expert)
    assembly.add_adapter("one")
    for name, parameter in assembly.named_parameters():
        if ".lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return assembly


def questions() -> list[Sample]:
    first, second = tiny_tasks(test=10)
    text = Sample(id="text", task="text", turns=(Turn("user", "2 + 2?"),))
    return [*first.test, text, *second.test, first.test[0]]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("chunk", [3, 10_000])
def test_packed_choices_score_as_in_a_padded_row_of_their_own(monkeypatch, family: str, chunk: int) -> None:
    monkeypatch.setattr(likelihood, "CHUNK_TOKENS", chunk)
    assembly, samples = model(family), questions()
    one = Route((("one", 1.0),), ("one",))
    routes = [one if place % 3 else BASE for place in range(len(samples))]
    assert assembly.packed
    packed = likelihood.log_likelihoods(assembly, samples, routes, CHOICES, row_tokens=200)
    assembly.packed = False
    rows = [
        likelihood.log_likelihoods(assembly, [sample], [route], [choice])
        for sample, route in zip(samples, routes, strict=True)
        for choice in CHOICES
    ]
    alone = torch.cat(rows).view(len(samples), len(CHOICES))
    assert packed.shape == alone.shape and packed.max() < 0
    assert alone.std() > 0.1
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_it_is_the_loss_of_the_answer() -> None:
    assembly = tiny_assembly()
    task = tiny_tasks()[0]
    (sample,) = task.train[:1]
    (batch,) = assembly.pack([sample])
    loss = torch.nn.functional.cross_entropy(assembly.forward(batch).logits, batch.targets, reduction="sum")
    scores = likelihood.log_likelihoods(assembly, [sample], None, [sample.reply, "blue"])
    torch.testing.assert_close(scores[0, 0], -loss.detach(), rtol=1e-5, atol=1e-5)
    best = likelihood.most_likely(assembly, [sample], None, [sample.reply, "blue"])
    assert best == [int(scores[0].argmax())]


def test_no_questions() -> None:
    assert likelihood.most_likely(tiny_assembly(), [], None, ["a"]) == []
