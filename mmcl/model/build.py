"""From a recipe's model section to an Assembly."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from mmcl.model.assembly import Assembly
from mmcl.model.language import load_language
from mmcl.model.probe import probe_encoder, probe_projector
from mmcl.model.prompt import Prompt
from mmcl.protocols import Encoder
from mmcl.recipe import registry
from mmcl.recipe.spec import ModelSpec


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
    vision = encoder if encoder is not None else registry.build("encoders", spec.encoder, folder, seed=seed)
    vision = vision.to(device or torch.device("cpu")).eval()
    probe_encoder(vision)
    language, tokenizer = load_language(spec.language, folder=folder, seed=seed)
    torch.manual_seed(seed)
    info = cast(Encoder, vision).info
    width = int(cast(nn.Embedding, language.get_input_embeddings()).weight.shape[1])
    projector = registry.build("projectors", spec.projector, folder, in_width=info.width, out_width=width)
    probe_projector(projector, info, width)
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
    ).to(device or torch.device("cpu"))
