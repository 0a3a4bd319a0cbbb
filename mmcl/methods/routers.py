"""Which expert a sample goes to: features of a sample, prototypes and keys of a task, and how near they are.

A sample is known by two unit vectors: `image`, the encoder's output averaged over tokens and over the sample's images,
and `text`, the mean of the language model's input embeddings of the question. A part that the sample lacks is absent.

Nearness of a sample to a task is 1 - d / s for each part, where d is the cosine distance to the task's anchor and s is
the mean distance of training samples to their own anchor, averaged over the tasks: 1 at the anchor, 0 as far away as a
usual training sample. Mean-pooled features share a large common direction, so plain cosines all lie near 1, and by
different amounts for images and texts; dividing by s makes the parts comparable. Subtracting the mean of the anchors
instead was tried and is worse: where a part does not tell the tasks apart (the same images under other questions), it
blows noise up to full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.data.types import ImageSource, Samples
from mmcl.protocols import Model

Part = Literal["image", "text"]
PARTS: tuple[Part, ...] = ("image", "text")
Parts = tuple[Part, ...]
Vectors = Mapping[Part, Tensor]

CHUNK = 64
"""Samples whose features are held at once."""
LEAST_SPREAD = 0.01
"""Smallest s: a task with one instruction has a spread of 0, and an unseen wording must not be infinitely far."""
SLACK = 1e-4
"""Below a threshold by less than this is rounding: an encoder's output may depend on the batch in its last bits."""
LEAST_DEVIATION = 0.01
"""Image channels that vary less than this share of the mean deviation are not blown up further."""
KEY_WEIGHT = 0.1
"""Factor of the loss that pulls keys (EProj)."""


@dataclass(frozen=True, slots=True)
class Prototype:
    """What is kept of a task for routing.

    Attributes:
        anchors: for each part that the task's training samples have, a unit vector (float32): the direction of the mean
            over the samples, or a learned key.
        spread: mean cosine distance of the training samples to the anchor, for each part.
        threshold: for each set of parts that training samples have, written `image+text`, `image` or `text`: the
            nearness, by the task's own spread, below which a sample is taken for a foreign one.
    """

    anchors: Mapping[Part, Tensor]
    spread: Mapping[Part, float]
    threshold: Mapping[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors and of 8 for each number."""
        vectors = sum(anchor.numel() * anchor.element_size() for anchor in self.anchors.values())
        return vectors + 8 * (len(self.spread) + len(self.threshold))

    def state(self) -> dict[str, Any]:
        """Plain dicts for a checkpoint."""
        return {"anchors": dict(self.anchors), "spread": dict(self.spread), "threshold": dict(self.threshold)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Prototype:
        """The reverse of `state`."""
        return cls(dict(state["anchors"]), dict(state["spread"]), dict(state["threshold"]))


def unit(vector: Tensor) -> Tensor:
    """The vector over its length; zero stays zero."""
    length: Tensor = vector.norm()
    return vector / length.clamp_min(torch.finfo(vector.dtype).tiny)


def sample_vectors(
    model: Model, samples: Samples, scale: Tensor | None = None, *, normalise: bool = True
) -> Iterator[dict[Part, Tensor]]:
    """Vectors (float64, on the CPU) of each sample, in order. Reads images and questions only.

    Args:
        model: gives the features.
        samples: with or without images, with or without text.
        scale: what image channels are divided by, [W].
        normalise: to unit vectors.
    """
    for start in range(0, len(samples), CHUNK):
        chunk = [samples[k] for k in range(start, min(start + CHUNK, len(samples)))]
        sources: dict[str, ImageSource] = {image.digest: image for sample in chunk for image in sample.images}
        texts = {sample.question: 0 for sample in chunk if sample.question}
        pooled: dict[str, Tensor] = {}  # of each image, [W]
        embedded: dict[str, Tensor] = {}  # of each text, [D]
        with torch.no_grad():
            if sources:
                features = model.image_features(list(sources.values()))
                pooled = {d: f.mean(0).cpu().double() for d, f in zip(sources, features, strict=True)}
            if texts:
                embedded = dict(zip(texts, model.text_features(list(texts)).cpu().double(), strict=True))
        for sample in chunk:
            vectors: dict[Part, Tensor] = {}
            if sample.images:
                vectors["image"] = torch.stack([pooled[image.digest] for image in sample.images]).mean(0)
                if scale is not None:
                    vectors["image"] = vectors["image"] / scale.double()
            if sample.question:
                vectors["text"] = embedded[sample.question]
            yield {part: unit(vector) for part, vector in vectors.items()} if normalise else vectors


def image_scale(model: Model, samples: Samples) -> Tensor | None:
    """Standard deviation of each channel [W] (float32) over the samples' pooled images; None if none has an image."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for vectors in sample_vectors(model, samples, normalise=False):
        if "image" in vectors:
            count += 1
            total = total + vectors["image"]
            squares = squares + vectors["image"].square()
    if not count:
        return None
    deviation = (squares / count - (total / count).square()).clamp_min(0).sqrt()
    if not deviation.any():
        return torch.ones_like(deviation).float()
    return deviation.clamp_min(float(deviation.mean()) * LEAST_DEVIATION).float()


def mean_vectors(model: Model, samples: Samples, scale: Tensor | None = None) -> dict[Part, Tensor]:
    """Mean of the samples' unit vectors for each part that any sample has; float64, one pass."""
    total: dict[Part, Tensor] = {}
    count: dict[Part, int] = {}
    for vectors in sample_vectors(model, samples, scale):
        for part, vector in vectors.items():
            total[part] = total[part] + vector if part in total else vector.clone()
            count[part] = count.get(part, 0) + 1
    return {part: total[part] / count[part] for part in PARTS if part in total}


def prototype(mean: Mapping[Part, Tensor], *, keys: Mapping[Part, Tensor] | None = None) -> Prototype:
    """The prototype of a task from its mean vectors; with `keys`, those are the anchors."""
    anchors = {part: (keys[part] if keys else unit(vector)).float() for part, vector in mean.items()}
    # The mean of 1 - cos(x, anchor) over unit vectors x is 1 - mean . anchor: no second pass.
    spread = {part: 1 - float(vector @ unit(anchors[part].double())) for part, vector in mean.items()}
    return Prototype(anchors, spread)


def fit_keys(mean: Mapping[Part, Tensor], *, steps: int, learning_rate: float) -> dict[Part, Tensor]:
    """Keys pulled towards a task's samples: L_key = 0.1 * sum over parts of (1 - cos(q, k)), mean over the samples q.

    EProj (He et al., 2311.16206), where keys are pulled before the expert trains; they touch nothing else, so when they
    are pulled does not matter. Deviation: full batches instead of mini-batches. With unit vectors q the mean of
    1 - cos(q, k) is 1 - mean(q) . k / |k|, so the mean vector is all that is needed, and the loss is least at the
    prototype: with enough steps this router and `prototype` agree.

    Args:
        mean: mean of the unit vectors, for each part.
        steps: of Adam.
        learning_rate: of Adam.
    """
    if not mean:
        return {}
    generator = torch.Generator().manual_seed(0)
    keys = {
        part: nn.Parameter(torch.randn(len(vector), generator=generator, dtype=torch.float64))
        for part, vector in mean.items()
    }
    optimiser = torch.optim.Adam(list(keys.values()), lr=learning_rate)
    for _ in range(steps):
        loss = KEY_WEIGHT * torch.stack([1 - mean[part] @ unit(key) for part, key in keys.items()]).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return {part: unit(key.detach()) for part, key in keys.items()}


class Matcher:
    """Nearness of samples to the prototypes of several tasks. Each sample is scored on its own.

    Args:
        prototypes: of the candidate tasks, in the order in which they were learned; the first wins a tie.
        text_weight: a in nearness = a * text + (1 - a) * image, where a sample has both.
        calibrated: divide distances by the mean spread; False leaves plain cosines.
    """

    def __init__(self, prototypes: Mapping[str, Prototype], *, text_weight: float, calibrated: bool) -> None:
        self.prototypes = prototypes
        self.weight: Mapping[Part, float] = {"image": 1 - text_weight, "text": text_weight}
        self.calibrated = calibrated
        self.tasks = tuple(prototypes)
        self.spread: dict[Part, float] = {}
        self._anchors: dict[Part, Tensor] = {}
        self._lacks: dict[Part, Tensor] = {}
        for part in PARTS:
            have = [task for task in self.tasks if part in prototypes[task].anchors]
            if not have:
                continue
            self.spread[part] = self._scale([prototypes[task].spread[part] for task in have])
            empty = torch.zeros_like(prototypes[have[0]].anchors[part])
            rows = [prototypes[task].anchors.get(part, empty).double() for task in self.tasks]
            self._anchors[part] = torch.stack([unit(row) for row in rows])  # [tasks, W or D]
            self._lacks[part] = torch.tensor([task not in have for task in self.tasks])

    def _scale(self, spreads: Sequence[float]) -> float:
        return max(LEAST_SPREAD, sum(spreads) / len(spreads)) if self.calibrated else 1.0

    def parts(self, vectors: Vectors, only: Part | None = None) -> Parts:
        """The parts that decide about a sample: those that it has and that have a weight, or `only` one."""
        if only is not None:
            return (only,) if only in vectors else ()
        return tuple(part for part in PARTS if part in vectors and self.weight[part] > 0)

    def nearness(self, vectors: Vectors, parts: Parts) -> Tensor:
        """Nearness to each task [tasks]; minus infinity for a task whose training samples lack one of the parts."""
        result = torch.zeros(len(self.tasks), dtype=torch.float64)
        for part, weight in self._weights(parts).items():
            if part not in self._anchors:
                return torch.full_like(result, -torch.inf)
            # Row by row, unlike a matrix product, whose rounding depends on how many rows there are.
            cosines = (self._anchors[part] * vectors[part]).sum(1)
            near = 1 - (1 - cosines) / self.spread[part]
            result += weight * near.masked_fill(self._lacks[part], -torch.inf)
        return result

    def own_nearness(self, vectors: Vectors, parts: Parts, task: str) -> float:
        """Nearness to one task by that task's own spread, which later tasks can't change; compared with a threshold."""
        known = self.prototypes[task]
        near = 0.0
        for part, weight in self._weights(parts).items():
            distance = 1 - float((unit(known.anchors[part].double()) * vectors[part]).sum())
            near += weight * (1 - distance / self._scale([known.spread[part]]))
        return near

    def accepts(self, vectors: Vectors, parts: Parts, task: str) -> bool:
        """Whether the sample is as near to the task as its threshold asks; True where the task has no threshold."""
        threshold = self.prototypes[task].threshold.get("+".join(parts))
        return threshold is None or self.own_nearness(vectors, parts, task) >= threshold - SLACK

    def between(self, task: Prototype) -> Tensor:
        """Nearness of another task to each task [tasks]: the least over the parts that have a weight.

        As in EProj's product over modalities, one dissimilar part is enough to tell tasks apart: the same images under
        other instructions are not the same task. A part that only one of two tasks has makes them dissimilar.
        """
        result = torch.full((len(self.tasks),), torch.inf, dtype=torch.float64)
        for part in PARTS:
            if self.weight[part] == 0:
                continue
            if part in task.anchors and part in self._anchors:
                near = self.nearness({part: unit(task.anchors[part].double())}, (part,))
            else:
                differs = [(part in self.prototypes[name].anchors) != (part in task.anchors) for name in self.tasks]
                near = torch.full_like(result, torch.inf).masked_fill(torch.tensor(differs), -torch.inf)
            result = torch.minimum(result, near)
        return result.masked_fill(result == torch.inf, -torch.inf)

    def _weights(self, parts: Parts) -> dict[Part, float]:
        total = sum(self.weight[part] for part in parts)
        return {part: self.weight[part] / total for part in parts} if total else dict.fromkeys(parts, 1 / len(parts))


def thresholds(
    model: Model, samples: Samples, scale: Tensor | None, matcher: Matcher, task: str, quantile: float
) -> dict[str, float]:
    """For each set of parts, the quantile of the nearness of a task's own training samples to it.

    Args:
        model: gives the features.
        samples: the task's training samples.
        scale: what image channels are divided by.
        matcher: holds the task's prototype.
        task: its name.
        quantile: share of the training samples that may be taken for foreign ones.
    """
    seen: dict[str, list[float]] = {}
    for vectors in sample_vectors(model, samples, scale):
        choices = {matcher.parts(vectors), *(matcher.parts(vectors, part) for part in PARTS)} - {()}
        for parts in choices:
            seen.setdefault("+".join(parts), []).append(matcher.own_nearness(vectors, parts, task))
    return {
        parts: float(torch.quantile(torch.tensor(values, dtype=torch.float64), quantile))
        for parts, values in sorted(seen.items())
    }
