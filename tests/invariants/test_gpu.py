"""On an accelerator: the same numbers as on the CPU, and no waiting for it within a step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmcl.data.types import Sample
from mmcl.model.assembly import Assembly
from mmcl.model.build import build_model
from mmcl.recipe.spec import LanguageSpec, LoRASpec, ModelSpec, PluginSpec, TrainSpec
from mmcl.testing import tiny_tasks
from mmcl.training.loop import backward, make_optimiser, prepare
from mmcl.training.methods import Methods
from mmcl.training.objectives.answers import Answers

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")


def device() -> torch.device:
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


def assembled(where: torch.device, kernels: str = "lean", packing: str = "auto", dtype: str = "fp32") -> Assembly:
    """A tiny model whose adapters are at work; its weights are the same everywhere."""
    spec = ModelSpec(
        encoder=PluginSpec("tiny"),
        projector=PluginSpec("mlp"),
        language=LanguageSpec("tiny:llama", lora=LoRASpec(rank=2), dtype=dtype),  # type: ignore[arg-type]
        kernels=kernels,  # type: ignore[arg-type]
        packing=packing,  # type: ignore[arg-type]
    )
    model = build_model(spec, folder=Path(), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model.to(where)


def samples() -> list[Sample]:
    mixed = [sample for task in tiny_tasks() for sample in task.train[:6]]
    random.Random(0).shuffle(mixed)
    return mixed


def step(model: Assembly) -> tuple[float, Tensor]:
    """Loss and gradient of one step over all samples."""
    methods = Methods({})
    batches = prepare(model, methods, Answers(), samples(), TrainSpec())
    loss = backward(model, methods, Answers(), batches, Accelerator())
    gradients = [p.grad.flatten().float().cpu() for p in model.trainable().values() if p.grad is not None]
    return float(loss), torch.cat(gradients)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, an operation for which the CPU waits for the device is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("kernels", ["lean", "stock", "compiled"])
def test_a_step_is_that_of_the_cpu(kernels: str, packing: str) -> None:
    loss, gradient = step(assembled(device(), kernels, packing))
    expected, reference = step(assembled(CPU, "stock", "padded"))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert float((gradient - reference).norm() / reference.norm()) < 1e-3


def test_bfloat16_is_no_further_from_float32_than_stock() -> None:
    expected, reference = step(assembled(CPU, "stock"))
    off = {}
    for kernels in ("lean", "stock"):
        loss, gradient = step(assembled(device(), kernels, dtype="bf16"))
        assert loss == pytest.approx(expected, rel=1e-2)
        off[kernels] = float((gradient - reference).norm())
    assert off["lean"] < 1.5 * off["stock"]


def test_answers_are_those_of_the_cpu() -> None:
    there, here = assembled(device()), assembled(CPU)
    assert there.generate(samples()) == here.generate(samples())
    assert there.generate(samples()) == [there.generate([sample])[0] for sample in samples()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA tells when it is waited for")
def test_a_step_does_not_wait_for_the_device() -> None:
    model = assembled(device())
    methods, spec = Methods({}), TrainSpec()
    optimiser = make_optimiser(model.trainable(), spec)
    accelerator = Accelerator()
    step(model)  # features are encoded once, kernels are chosen
    for _ in range(2):
        with no_waiting():
            batches = prepare(model, methods, Answers(), samples(), spec)
            backward(model, methods, Answers(), batches, accelerator)
            nn.utils.clip_grad_norm_(model.trainable().values(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
