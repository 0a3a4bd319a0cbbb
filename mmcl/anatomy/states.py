"""What a model makes of images and of texts: vectors whose drift between stages is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Samples, Turn
from mmcl.evaluation.drift import cka, cosine
from mmcl.protocols import Route

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly

Vectors = dict[str, Tensor]
"""By the image's digest, or the text."""


@torch.no_grad()
def image_states(model: Assembly, samples: Samples, routes: Sequence[Route]) -> Vectors:
    """Of each different image, the mean over its projected tokens, [D]; none where the projector reads the question."""
    if model.reads_text:
        return {}
    found: Vectors = {}
    for sample, route in zip(samples, routes, strict=True):
        for image in sample.images:
            if image.digest not in found:
                (features,) = model.image_features([image])
                tokens = model.project(features.view(-1, model.encoder_info.tokens, features.shape[-1]), route)
                found[image.digest] = tokens.float().mean((0, 1)).cpu()
    return found


@torch.no_grad()
def text_states(model: Assembly, samples: Samples, routes: Sequence[Route]) -> Vectors:
    """Of each different question without its image, the last hidden state of its last token, [D]."""
    texts = {sample.question: (_without_images(sample), route) for sample, route in zip(samples, routes, strict=True)}
    alone = [sample for sample, _ in texts.values()]
    found: Vectors = {}
    for batch in model.pack(
        alone, [route for _, route in texts.values()], supervise=[[False] * len(sample.turns) for sample in alone]
    ):
        last = model.forward(batch, hidden=True).hidden[-1].flatten(0, 1)[batch.where.to(model.device)]
        for place, state in zip(batch.target_sample.tolist(), last.float().cpu(), strict=True):
            found[batch.samples[place].question] = state
    return found


def drift(before: Vectors, after: Vectors) -> dict[str, float | int | None]:
    """{"n", "cka", "cosine"} of the inputs that both have."""
    both = [key for key in before if key in after]
    if not both:
        return {"n": 0, "cka": None, "cosine": None}
    one, other = (torch.stack([vectors[key] for key in both]) for vectors in (before, after))
    return {"n": len(both), "cka": cka(one, other), "cosine": cosine(one, other)}


def _without_images(sample: Sample) -> Sample:
    turns = tuple(Turn(turn.role, turn.text.replace(IMAGE_PLACEHOLDER, "").strip()) for turn in sample.turns)
    return sample.replace(turns=turns, images=())
