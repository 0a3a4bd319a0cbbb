"""Adapters beside the weights instead of in them, as peft reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

LowRank = Mapping[str, tuple[Tensor, Tensor, float]]


def write_adapter(whole: Any, layers: LowRank, place: Callable[[str], str], folder: Path) -> None:
    """Write a folder for `peft.PeftModel.from_pretrained(model, folder)`.

    Args:
        whole: the model without adapters; layers for them are put into it.
        layers: A, B and scale by layer of the language model (`mmcl.export.weights.low_rank`).
        place: from a parameter's name in the language model to its name in the whole.
        folder: is made.
    """
    at = {place(f"{name}.weight").removesuffix(".weight"): matrices for name, matrices in layers.items()}
    rank = max(down.shape[0] for down, _, _ in at.values())
    scale = next(iter(at.values()))[2]
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=sorted(at))  # type: ignore[arg-type]
    model: Any = get_peft_model(whole, config)
    with torch.no_grad():
        for name, (down, up, _) in at.items():
            layer = whole.get_submodule(name)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
    model.save_pretrained(folder)
