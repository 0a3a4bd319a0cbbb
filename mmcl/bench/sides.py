"""The two sides: mmcl's Assembly, and the same weights as the model that others train.

Shapes: B rows, L positions, T visual tokens of an image, D width of the language model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmcl.bench.options import Cell
from mmcl.data.types import ImageSource, Samples
from mmcl.model.assembly import Assembly
from mmcl.model.build import build_model
from mmcl.model.packing import Item
from mmcl.protocols import Encoder, Objective
from mmcl.recipe import registry
from mmcl.recipe.spec import FeaturesSpec, LanguageSpec, LoRASpec, ModelSpec, PluginSpec, PromptSpec, TrainSpec

IGNORED = -100
"""The label of a position that is not supervised, in the trainers of others."""


def model_spec(cell: Cell) -> ModelSpec:
    """The model of a cell, as a recipe would name it. Prompts are plain: a chat template's system message would
    lengthen the prefix that packed rows share.
    """
    dtype = cast(Any, cell.dtype)
    if cell.model == "tiny":
        encoder = PluginSpec("tiny", {"tokens": cell.image_tokens, "width": 32, "image_size": cell.image_size})
        language = LanguageSpec("tiny:llama", lora=LoRASpec(rank=8), dtype=dtype)
    else:
        grid = math.isqrt(cell.image_tokens)
        encoder = PluginSpec("lite0", {"image_size": cell.image_size, "grid": grid})
        language = LanguageSpec("smollm2-135m-instruct", lora=LoRASpec(rank=16), dtype=dtype)
    return ModelSpec(
        encoder=encoder,
        projector=PluginSpec("mlp"),
        language=language,
        prompt=PromptSpec(style="plain"),
        features=FeaturesSpec(store=False),  # what an earlier bench encoded must not count
    )


def ask_for_stock_modules(spec: ModelSpec) -> ModelSpec:
    """The same model with the modules of transformers and peft as they come: what the other side is made of."""
    return dataclasses.replace(spec, kernels="stock")


def train_spec(cell: Cell) -> TrainSpec:
    """How both sides train: AdamW as mmcl makes it, constant rate, gradients clipped."""
    more: dict[str, Any] = {} if cell.row_tokens is None else {"row_tokens": cell.row_tokens}
    return TrainSpec(
        batch_size=cell.batch_size,
        max_steps=cell.steps,
        learning_rate=3e-4,
        learning_rates={"projector": 1e-3},
        weight_decay=0.0,
        warmup=0.0,
        schedule="constant",
        clip=1.0,
        **more,
    )


def objective_of_answers() -> Objective:
    """Cross-entropy on the answers."""
    made: Objective = registry.build("objectives", PluginSpec("answers"), Path())
    return made


def build_ours(cell: Cell, samples: Samples) -> Assembly:
    """The Assembly, its projector calibrated; adapters are not at their no-op start, so that all of them count."""
    model = build_model(model_spec(cell), folder=Path(), seed=cell.seed, device=torch.device(cell.device))
    model.calibrate(samples)
    model.max_new_tokens = cell.max_new_tokens
    generator = torch.Generator().manual_seed(cell.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.trainable().items()):
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(0.02))
    return model


def build_stock(cell: Cell) -> Assembly:
    """The same model from the same loader, of stock modules."""
    spec = ask_for_stock_modules(model_spec(cell))
    return build_model(spec, folder=Path(), seed=cell.seed, device=torch.device(cell.device))


def build_theirs(cell: Cell, state: dict[str, Tensor]) -> LlavaPeer:
    """The other side: stock modules with the same values of all that trains."""
    model = build_stock(cell)
    model.load_state(state)
    return as_peer(model)


def as_peer(model: Assembly) -> LlavaPeer:
    """The parts of an Assembly of stock modules, put together as others do."""
    return LlavaPeer(model.encoder, model.projector, cast(Any, model.language), model.tokenizer)


@dataclass
class PeerOutput(dict[str, Any]):
    """Loss and logits [B, L, V] by name, as trainers expect them, or the last hidden state [B, L, D]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({key: value for key, value in vars(self).items() if value is not None})


class LlavaPeer(nn.Module):
    """A model of the shape of `LlavaForConditionalGeneration`: every row brings its image's pixels, the encoder runs
    in every forward pass, all positions go through the head.

    Args:
        encoder: frozen.
        projector: maps the encoder's tokens to D.
        language: a causal language model with peft's LoRA layers.
        tokenizer: of the language model.
    """

    accepts_loss_kwargs = True  # the Trainer then hands over the number of targets of the whole optimiser step

    def __init__(self, encoder: nn.Module, projector: nn.Module, language: Any, tokenizer: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.language = language
        self.tokenizer = tokenizer
        self.config = language.config
        self.generation_config = language.generation_config

    @property
    def device(self) -> torch.device:
        """Where the language model lives."""
        return cast(torch.device, next(self.language.parameters()).device)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that train, by full name: the names of the Assembly."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def get_input_embeddings(self) -> nn.Module:
        """Of the language model."""
        return cast(nn.Module, self.language.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return cast(nn.Module, self.language.get_output_embeddings())

    def add_model_tags(self, tags: Any) -> None:
        """TRL marks models for the hub; this one never goes there."""

    def embed(self, input_ids: Tensor, image_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """Input embeddings [B, L, D] with the images in their places.

        Args:
            input_ids: [B, L]; any token at image slots.
            image_mask: bool [B, L]; True at the T image slots of each row.
            pixel_values: [B, 3, H, W].
        """
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        visual = self.projector(self.encoder(pixel_values).float()).to(embeds.dtype)
        return embeds.masked_scatter(image_mask[..., None], visual)

    @property
    def base_model(self) -> Any:
        """What comes before the head, as TRL calls it."""
        return self._backbone

    def _backbone(
        self, input_ids: Tensor, attention_mask: Tensor, image_mask: Tensor, pixel_values: Tensor, **_: Any
    ) -> PeerOutput:
        embeds = self.embed(input_ids, image_mask, pixel_values)
        out = self.language.base_model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False)
        return PeerOutput(last_hidden_state=out.last_hidden_state)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_mask: Tensor,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        **_: Any,
    ) -> PeerOutput:
        """Loss over the labels that are not -100, and logits at all positions."""
        embeds = self.embed(input_ids, image_mask, pixel_values)
        out = self.language(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False)
        if labels is None:
            return PeerOutput(logits=out.logits)
        loss = self.language.loss_function(
            out.logits, labels, vocab_size=out.logits.shape[-1], num_items_in_batch=num_items_in_batch
        )
        return PeerOutput(loss=loss, logits=out.logits)


class Rows:
    """Padded rows, one per question: tokenised once, images opened and transformed whenever they are needed.

    Args:
        items: of the Assembly, images counted out.
        peer: whose encoder transforms the images.
    """

    def __init__(self, items: list[Item], peer: LlavaPeer) -> None:
        self.items = items
        self.pad = int(peer.tokenizer.pad_token_id)
        self.transform = cast(Encoder, peer.encoder).transform()

    def collate(self, indices: list[int], side: str = "right") -> dict[str, Tensor]:
        """Rows of these items, padded on a side.

        Returns:
            input_ids, attention_mask, image_mask, labels [B, L]; pixel_values [B, 3, H, W].
        """
        items = [self.items[index] for index in indices]
        length = max(len(item.ids) for item in items)
        ids = torch.full((len(items), length), self.pad)
        labels = torch.full((len(items), length), IGNORED)
        image_mask = torch.zeros(len(items), length, dtype=torch.bool)
        attention = torch.zeros(len(items), length, dtype=torch.long)
        for row, item in enumerate(items):
            start = 0 if side == "right" else length - len(item.ids)
            place = slice(start, start + len(item.ids))
            tokens = torch.tensor(item.ids)
            image_mask[row, place] = tokens < 0
            ids[row, place] = tokens.masked_fill(tokens < 0, self.pad)
            labels[row, place] = torch.where(torch.tensor(item.supervised), tokens, IGNORED)
            attention[row, place] = 1
        images: list[ImageSource] = [item.sample.images[0] for item in items]
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "image_mask": image_mask,
            "labels": labels,
            "pixel_values": torch.stack([self.transform(image.open()) for image in images]),
        }
