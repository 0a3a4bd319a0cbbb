"""From a batch to the language model's inputs: visual tokens spliced into the embeddings of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmcl.data.types import IMAGE_PLACEHOLDER, Sample
from mmcl.model.transfer import upload
from mmcl.protocols import Batch, Text

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
        views = [len(features[index]) // tokens for index in group]
        text = None
        if model.reads_text:
            text = question(model, [batch.image_texts[i] for i, n in zip(group, views, strict=True) for _ in range(n)])
        projected = model.project(flat.view(-1, tokens, flat.shape[-1]), batch.image_routes[group[0]], text)
        for index, part in zip(group, torch.split(projected, views), strict=True):
            result[index] = model.image_layout.arrange(part, batch.images[index])
    return [result[index] for index in range(len(features))]


def question(model: Assembly, texts: Sequence[str]) -> Text:
    """What a projector reads beside each of these many views."""
    embedding = cast(nn.Embedding, model.language.get_input_embeddings())
    tokens = {text: model.tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in texts}
    longest = max(1, *map(len, tokens.values()))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    present = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(tokens[text])] = torch.tensor(tokens[text], dtype=torch.long)
        present[row, : len(tokens[text])] = True
    present = upload(present, model.device)
    with torch.no_grad():
        embeddings = embedding(upload(ids, model.device)).float() * present[..., None]
    return Text(embeddings, present)


def questions(sample: Sample, supervise: Sequence[bool]) -> tuple[str, ...]:
    """Of each image, the text of the turn that shows it, without placeholders; empty where that text is a target.

    So no visual token knows what is still to be said: neither what follows the turn, nor the turn if it is learned.
    """
    return tuple(
        "" if target else turn.text.replace(IMAGE_PLACEHOLDER, "").strip()
        for turn, target in zip(sample.turns, supervise, strict=True)
        for _ in range(turn.text.count(IMAGE_PLACEHOLDER))
    )
