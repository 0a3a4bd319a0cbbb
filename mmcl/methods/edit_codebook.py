"""Editing by a codebook: an edit lives in an adapter of its own, which only questions near to it go through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmcl.data.types import Samples, Task
from mmcl.errors import Problem, UserError
from mmcl.methods.expert_units import expert_name
from mmcl.protocols import BASE, Method, Model, Route


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys of one stage's edits: unit vectors of image [K, W] and text [K, D], zero where there is none; radii [K]."""

    image: Tensor
    text: Tensor
    radius: Tensor


class EditCodebook(Method):
    """A codebook of edits, each with a radius: inside a LoRA adapter answers, outside the model is bit for bit the old.

    GRACE (Hartvigsen et al. 2023, 2211.11031) keeps keys with radii and changes the model near them only; MELO (Yu et
    al. 2024, 2312.11795) puts adapters in place of single vectors, as here. A key is the frozen encoder's mean feature
    of the image and the mean input embedding of the question, so that no edit can move the keys.

    Args:
        radius: largest distance of a question from an edit's key at which the edit answers: the weighted mean of the
            cosine distances of text and image.
        text_weight: weight of the text's distance, in [0, 1]; questions without an image compare texts only.
    """

    owns = frozenset({"route"})

    def __init__(self, *, radius: float = 0.1, text_weight: float = 0.5) -> None:
        wrong = {"radius": not 0 < radius <= 2, "text_weight": not 0 <= text_weight <= 1}
        problems = [Problem(f"edit_codebook.{name}", "is out of range") for name, bad in wrong.items() if bad]
        if problems:
            raise UserError(problems=problems)
        self.radius = radius
        self.text_weight = text_weight
        self._names: dict[str, str] = {}  # task -> adapter
        self._keys: dict[str, _Keys] = {}  # adapter -> keys

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Add an adapter, which alone trains."""
        name = self._names.get(task.name)
        if name is None:
            name = self._names[task.name] = expert_name(task.name, self._names.values())
            model.add_adapter(name)
        model.set_trainable([f"language.lora.{name}"])

    def assign(self, model: Model, samples: Samples) -> Sequence[Route]:
        """Edits to the adapter of their stage, all others to base."""
        return [self._route(self._names.get(sample.task)) for sample in samples]

    def end_task(self, model: Model, task: Task) -> None:
        """Make the keys. Where an edit lies inside an earlier one's radius, both radii end halfway."""
        name = self._names[task.name]
        image, text = self._vectors(model, task.train)
        radius = torch.full((len(text),), self.radius)
        for other, keys in self._keys.items():
            if other != name:
                half = self._distances(image, text, keys) / 2
                radius = torch.minimum(radius, half.amin(1))
                self._keys[other] = _Keys(keys.image, keys.text, torch.minimum(keys.radius, half.amin(0)))
        self._keys[name] = _Keys(image, text, radius)

    def select(self, model: Model, samples: Samples) -> Sequence[Route]:
        """The adapter of the nearest edit that reaches the sample; base where none does."""
        if not self._keys or not samples:
            return [BASE] * len(samples)
        image, text = self._vectors(model, samples)
        best = torch.full((len(samples),), torch.inf)
        names: list[str | None] = [None] * len(samples)
        for name, keys in self._keys.items():
            distance = self._distances(image, text, keys)
            reached = distance.masked_fill(distance > keys.radius, torch.inf).amin(1)
            for place in (reached < best).nonzero().flatten().tolist():
                names[place] = name
            best = torch.minimum(best, reached)
        return [self._route(name) for name in names]

    def state_dict(self) -> dict[str, Any]:
        """Names and keys; the core keeps the adapters' weights."""
        keys = {name: {"image": k.image, "text": k.text, "radius": k.radius} for name, k in self._keys.items()}
        return {"names": dict(self._names), "keys": keys}

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self._names = dict(state["names"])
        for name in self._names.values():
            model.add_adapter(name)
        self._keys = {name: _Keys(**keys) for name, keys in state["keys"].items()}

    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes of the keys."""
        return {"keys": sum(k.image.nbytes + k.text.nbytes + k.radius.nbytes for k in self._keys.values())}

    @staticmethod
    def _route(name: str | None) -> Route:
        return Route(adapters=(name,)) if name else BASE

    @staticmethod
    def _vectors(model: Model, samples: Samples) -> tuple[Tensor, Tensor]:
        """Unit vectors [n, W] of the images' mean and [n, D] of the question; zero without an image."""
        digests = {image.digest: image for sample in samples for image in sample.images}
        features = model.image_features(list(digests.values())) if digests else []
        means = {digest: feature.mean(0).cpu() for digest, feature in zip(digests, features, strict=True)}
        empty = torch.zeros(model.encoder_info.width)
        images = [
            torch.stack([means[image.digest] for image in sample.images]).mean(0) if sample.images else empty
            for sample in samples
        ]
        texts = model.text_features([sample.question for sample in samples]).float().cpu()
        return normalize(torch.stack(images), dim=-1), normalize(texts, dim=-1)

    def _distances(self, image: Tensor, text: Tensor, keys: _Keys) -> Tensor:
        """Distance [n, K] of samples from keys; infinite between one with an image and one without."""
        seen, kept = image.any(1), keys.image.any(1)
        of_text, of_image = 1 - text @ keys.text.T, 1 - image @ keys.image.T
        both = self.text_weight * of_text + (1 - self.text_weight) * of_image
        distance = torch.where(seen[:, None] & kept, both, of_text)
        return distance.masked_fill(seen[:, None] != kept, torch.inf).clamp_min(0.0)
