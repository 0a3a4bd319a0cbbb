"""The contract check for ready models of image and text: taken apart, they say what they said as one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcl.data.images import BytesImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Turn
from mmcl.model.assembly import Assembly
from mmcl.model.build import assemble_vlm
from mmcl.model.probe import probe_images
from mmcl.model.vlm.load import Ready
from mmcl.recipe.spec import LanguageSpec, LoRASpec, ModelSpec

ROUNDING = 1e-5  # relative to the largest logit, in float32
QUESTIONS = ("What is it?", "Is it round?", "Which colours?")
NEW_TOKENS = 8


def vlm_problems(model: Any, processor: Any) -> list[str]:
    """What `mmcl.testing.check_vlm` finds."""
    samples = _samples()
    prompts = [_prompt(processor, sample) for sample in samples]
    model = model.float().eval()
    before = [_reference(model, prompt) for prompt in prompts]
    spec = ModelSpec(vlm="given", language=LanguageSpec(lora=LoRASpec(rank=2)))
    assembly = assemble_vlm(Ready(model, processor, "given"), spec, folder=Path())
    assembly.max_new_tokens = NEW_TOKENS
    problems = []
    answers = assembly.generate(samples)
    for sample, prompt, (logits, tokens), answer in zip(samples, prompts, before, answers, strict=True):
        where = f"{sample.images[0].dimensions}, {sample.turns[0].text!r}"
        ids = _ids(assembly, sample)
        if ids != prompt["input_ids"][0].tolist():
            problems.append(f"{where}: the prompt has other tokens than the processor's ({len(ids)})")
            continue
        with torch.no_grad():
            [batch] = assembly.pack([sample], supervise=[[False]])
            own = assembly.forward(batch).logits[0]
        error = float((own - logits).abs().max() / logits.abs().max())
        if not error <= ROUNDING:
            problems.append(f"{where}: logits are off by {error:.1e} of the largest")
        expected = processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        if answer != expected:
            problems.append(f"{where}: the answer is {answer!r}, and `generate` gives {expected!r}")
    return problems


def _samples() -> list[Sample]:
    """Each question of each image, two images of different sizes."""
    images = []
    for number, image in enumerate(probe_images()):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        images.append(BytesImage(buffer.getvalue(), f"probe-{number}.png"))
    return [
        Sample(
            id=f"{image.name} {question}",
            task="probe",
            turns=(Turn("user", f"{IMAGE_PLACEHOLDER}\n{question}"),),
            images=(image,),
        )
        for image in images
        for question in QUESTIONS
    ]


def _prompt(processor: Any, sample: Sample) -> Any:
    """As the processor makes it of image and question."""
    question = sample.turns[0].text.removeprefix(f"{IMAGE_PLACEHOLDER}\n")
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    else:
        text = processor.image_token + question
    bos = processor.tokenizer.bos_token
    special = not (bos and text.startswith(bos))
    inputs = processor(
        images=[sample.images[0].open()], text=[text], return_tensors="pt", text_kwargs={"add_special_tokens": special}
    )
    inputs.pop("labels", None)  # PaliGemma's processor gives them unasked
    return inputs


def _reference(model: Any, prompt: Any) -> tuple[Tensor, list[int]]:
    """Logits of the next token, and greedy tokens."""
    with torch.no_grad():
        logits: Tensor = model(**prompt).logits[0, -1]
        out = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
    return logits, out[0, prompt["input_ids"].shape[1] :].tolist()


def _ids(assembly: Assembly, sample: Sample) -> list[int]:
    """Of the prompt, image tokens as the processor writes them."""
    [item] = assembly.items([sample], None, [[False]])
    image_id: int = assembly.prompt.image_id  # type: ignore[attr-defined]
    return [image_id if token < 0 else token for token in item.ids]
