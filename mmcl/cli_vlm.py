"""What a ready VLM consists of, from its configuration and processor alone: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from mmcl.cli_output import print_table
from mmcl.model.capability import context_length, why_not_packed
from mmcl.model.quiet import quiet
from mmcl.model.vlm.load import load_config
from mmcl.model.vlm.parts import VLMLanguage
from mmcl.model.vlm.reading import Reader

if TYPE_CHECKING:
    from rich.console import Console

SIZES = ((336, 336), (640, 480), (1024, 768))
"""Widths and heights of images whose tokens are told."""

LOOKS = {
    "causal": "causal",
    "images": "causal, but the tokens of an image see each other both ways",
    "prefix": "all before the answer sees itself both ways, so that questions of an image share no prefix",
}


@dataclass(frozen=True, slots=True)
class Description:
    """For people and for `--json`.

    Attributes:
        content: plain values.
    """

    content: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return self.content

    def show(self, console: Console) -> None:
        """For people."""
        about = self.content
        console.print(f"{about['name']} (ready model)", style="bold", markup=False)
        console.print(f"{about['class']}, {about['parameters'] / 1e6:,.1f} M parameters\n", markup=False)
        rows = [{**part, "parameters": f"{part['parameters'] / 1e6:,.2f} M"} for part in about["parts"]]
        print_table(console, ("part", "module", "class", "parameters"), rows)
        for size, tokens in about["image_tokens"].items():
            console.print(f"an image of {size} pixels: {tokens} visual tokens", markup=False)
        for key in ("language", "prompts", "attention", "rows"):
            console.print(f"{key}: {about[key]}", markup=False)
        console.print(
            "\nmethods, projector experts, feature store, evaluation and training by parts: as of any model",
            markup=False,
        )
        console.print(
            f"\nIn a recipe:\n  model:\n    vlm: {about['name']}\n    language: {{lora: {{rank: 16}}}}", markup=False
        )


def describe_vlm(weights: str, folder: Path) -> Description:
    """Look at a VLM.

    Args:
        weights: as `model.vlm` of a recipe.
        folder: paths are relative to it.

    Raises:
        UserError: see `mmcl.model.vlm.load.load_vlm`.
    """
    found = load_config(weights, folder)
    auto: Any = AutoModelForImageTextToText
    with quiet(), torch.device("meta"):
        model = auto.from_config(found.config)
    inner, family, processor = model.model, found.family, found.processor
    projector = family.take_projector(inner)
    tower = getattr(inner, family.tower)
    decoder = getattr(inner, family.language)
    path = f"model.{family.tower}.{family.projector}" if family.projector_inside else f"model.{family.projector}"
    parts = [
        _part("encoder", f"model.{family.tower}", tower),
        _part("projector", path, projector),
        _part("language", f"model.{family.language}", decoder),
        _part("language", "lm_head", model.lm_head, tied=model.lm_head.weight is decoder.get_input_embeddings().weight),
    ]
    reader = Reader(processor, family, processor.tokenizer.convert_ids_to_tokens(int(found.config.image_token_id)))
    language = VLMLanguage(decoder, model.lm_head, model.generation_config)
    text: Any = found.config.get_text_config()
    reason = why_not_packed(language)
    template = bool(getattr(processor, "chat_template", None))
    return Description(
        {
            "name": weights,
            "kind": "vlm",
            "class": type(model).__name__,
            "family": found.config.model_type,
            "parameters": sum(part["parameters"] for part in parts),
            "parts": parts,
            "image_tokens": {f"{w} x {h}": sum(reader.plan((w, h)).picture.runs) for w, h in SIZES},
            "language": (
                f"{text.num_hidden_layers} layers of width {text.hidden_size}, {text.vocab_size:,} tokens, "
                f"rows of up to {context_length(language):,}"
            ),
            "prompts": "the processor's chat template" if template else "plain: it has no chat template",
            "attention": LOOKS[family.look] + (", positions in time, height and width" * family.deep_positions),
            "rows": f"padded: {reason}" if reason else "packed",
        }
    )


def _part(name: str, module: str, part: nn.Module, *, tied: bool = False) -> dict[str, Any]:
    count = 0 if tied else sum(parameter.numel() for parameter in part.parameters())
    kind = type(part).__name__ + (" (tied to the embeddings)" if tied else "")
    return {"part": name, "module": module, "class": kind, "parameters": count}
