"""From a batch to the language model's inputs: visual tokens spliced into the embeddings of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmcl.model.transfer import upload
from mmcl.protocols import Batch

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly


def spliced(model: Assembly, batch: Batch) -> dict[str, Any]:
    """Embeddings of a batch, `inputs_embeds` [B, L, D], with the projected images in their places.

    Where the projector gives several widths D, the first goes there and the others into lower layers of the language
    model (DeepStack, arXiv 2406.04334), as `visual_pos_masks` and `deepstack_visual_embeds`.
    """
    embedding = cast(nn.Embedding, model.language.get_input_embeddings())
    embeds: Tensor = embedding(batch.input_ids.to(model.device))
    if not batch.images:
        return {"inputs_embeds": embeds}
    visual = visual_tokens(model, batch)
    width, length = embeds.shape[2], embeds.shape[1]
    places = [torch.arange(count) + row * length + start for row, start, _, _, count in batch.image_slots]
    values = torch.cat([visual[entry][first : first + count] for _, _, entry, first, count in batch.image_slots])
    shallow, *deeper = torch.split(values.to(embeds.dtype), width, dim=1)
    flat = embeds.flatten(0, 1).index_put((upload(torch.cat(places), model.device),), shallow)
    inputs: dict[str, Any] = {"inputs_embeds": flat.view(-1, length, width)}
    if deeper:
        inputs |= {"visual_pos_masks": batch.is_image.to(model.device), "deepstack_visual_embeds": deeper}
    return inputs


def visual_tokens(model: Assembly, batch: Batch) -> list[Tensor]:
    """Visual tokens [n, D] of each of the batch's images; those of one route are projected together."""
    features = model.image_features(batch.images)
    tokens = model.encoder_info.tokens
    groups: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for index, route in enumerate(batch.image_routes):
        groups.setdefault(route.experts, []).append(index)
    result: dict[int, Tensor] = {}
    for group in groups.values():
        flat = torch.cat([features[index] for index in group])
        projected = model.project(flat.view(-1, tokens, flat.shape[-1]), batch.image_routes[group[0]])
        for index, part in zip(
            group, torch.split(projected, [len(features[index]) // tokens for index in group]), strict=True
        ):
            result[index] = model.image_layout.arrange(part, batch.images[index])
    return [result[index] for index in range(len(features))]
