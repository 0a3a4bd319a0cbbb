"""From a recipe's model section to an Assembly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from torch import nn

from mmcl.model.assembly import Assembly
from mmcl.model.encoder_lora import adapt_encoder
from mmcl.model.language import load_language
from mmcl.model.probe import probe_encoder, probe_projector
from mmcl.model.prompt import Prompt
from mmcl.model.vlm.load import Ready, load_vlm, take_apart
from mmcl.model.vlm.parts import SwappedLayout
from mmcl.model.vlm.prompt import VLMPrompt
from mmcl.protocols import Encoder
from mmcl.recipe import registry
from mmcl.recipe.spec import ModelSpec, PluginSpec

DEFAULT_PROJECTOR = PluginSpec("mlp")


def build_model(
    spec: ModelSpec, *, folder: Path, seed: int, encoder: nn.Module | None = None, device: torch.device | None = None
) -> Assembly:
    """Build encoder, projector and language model, check their promises, and assemble them.

    Args:
        spec: the recipe's model section.
        folder: where relative paths and `./file.py:Class` start.
        seed: of the parts that start at random (projector, LoRA).
        encoder: used instead of the one that `spec` names.
        device: where to put the model; default: CPU.

    Raises:
        UserError: a part does not keep its promise, or its weights can't be had.
    """
    device = device or torch.device("cpu")
    if encoder is None and spec.encoder is not None:
        encoder = registry.build("encoders", spec.encoder, folder, seed=seed)
    if spec.vlm is not None:
        ready = load_vlm(spec.vlm, folder=folder, dtype=spec.language.dtype, seed=seed)
        return assemble_vlm(ready, spec, folder=folder, seed=seed, encoder=encoder).to(device)
    vision = _vision(cast(nn.Module, encoder).to(device), spec, seed)
    language, tokenizer = load_language(spec.language, folder=folder, seed=seed)
    projector = _projector(spec, vision, language, folder, seed)
    return Assembly(
        encoder=vision,
        projector=projector,
        language=language,
        tokenizer=tokenizer,
        lora=spec.language.lora,
        train=spec.train,
        prompt=Prompt(tokenizer, style=spec.prompt.style, system=spec.prompt.system),
        packing=spec.packing,
        kernels=spec.kernels,
        max_length=spec.max_length,
        features=spec.features,
    ).to(device)


def assemble_vlm(
    ready: Ready, spec: ModelSpec, *, folder: Path = Path(), seed: int = 0, encoder: nn.Module | None = None
) -> Assembly:
    """Take a ready model apart and assemble it, perhaps with another encoder or projector.

    Args:
        ready: of no use afterwards.
        spec: the recipe's model section.
        folder: see `build_model`.
        seed: see `build_model`.
        encoder: built, or None for the model's own.

    Raises:
        UserError: see `build_model`.
    """
    parts = take_apart(ready)
    vision = _vision(parts.encoder if encoder is None else encoder, spec, seed)
    torch.manual_seed(seed)  # of the adapters
    swapped = encoder is not None or spec.projector is not None
    projector = _projector(spec, vision, parts.language, folder, seed) if swapped else parts.projector
    tokenizer = parts.reader.processor.tokenizer
    prompt = VLMPrompt(
        parts.reader,
        image_id=parts.image_id,
        stop=parts.stop_ids,
        style=spec.prompt.style,
        system=spec.prompt.system,
    )
    return Assembly(
        encoder=vision,
        projector=projector,
        language=parts.language,
        tokenizer=tokenizer,
        lora=spec.language.lora,
        train=spec.train,
        prompt=prompt,
        packing=spec.packing,
        kernels=spec.kernels,
        max_length=spec.max_length,
        features=spec.features,
        layout=SwappedLayout(parts.reader, vision, projector) if swapped else parts.layout,
    )


def _vision(encoder: nn.Module, spec: ModelSpec, seed: int) -> nn.Module:
    """The encoder in evaluation mode, with its adapters; it keeps its promises."""
    if spec.encoder_lora is not None:
        encoder = copy.deepcopy(encoder)  # one that was given as an object stays as it is
        torch.manual_seed(seed)
        adapt_encoder(encoder, spec.encoder_lora)
    probe_encoder(encoder.eval())
    return encoder


def _projector(spec: ModelSpec, vision: nn.Module, language: nn.Module, folder: Path, seed: int) -> nn.Module:
    """A new projector between the two."""
    torch.manual_seed(seed)
    info = cast(Encoder, vision).info
    embedding = language.get_input_embeddings()  # type: ignore[operator]
    width = int(cast(nn.Embedding, embedding).weight.shape[1])
    chosen = spec.projector or DEFAULT_PROJECTOR
    projector: nn.Module = registry.build("projectors", chosen, folder, in_width=info.width, out_width=width)
    probe_projector(projector, info, width)
    return projector
