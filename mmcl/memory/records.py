"""What the replay memory holds: records with separately present fields, each with its own byte count."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from mmcl.data.types import IMAGE_PLACEHOLDER, ImageSource, Modality, Sample, Turn
from mmcl.errors import UserError
from mmcl.memory.selection import Candidate

if TYPE_CHECKING:
    from PIL.Image import Image

StoreName = Literal["full", "features", "question", "text"]
STORES: tuple[str, ...] = get_args(StoreName)
FeatureType = Literal["fp32", "fp16"]

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"fp32": torch.float32, "fp16": torch.float16})

FIELDS = ("image", "features", "question", "answer", "logits", "provenance")
"""What bytes are counted under."""

REPLAY_KEY = "replay"
"""Metadata key of replayed samples: the record's `key`."""

DIGEST_BYTES = 32
NUMBER_BYTES = 8


class StoredFeatures(ImageSource):
    """The output of a frozen encoder in place of an image whose pixels were not kept.

    Args:
        features: [T, W], float32 or float16.
        fingerprint: of the encoder that made them.
        digest: of the image that they were made from.
        name: of that image.
        dimensions: of that image: width and height in pixels.
    """

    def __init__(
        self, features: Tensor, *, fingerprint: str, digest: str, name: str, dimensions: tuple[int, int]
    ) -> None:
        self.features = features
        self._dimensions = dimensions
        self.fingerprint = fingerprint
        self.image_digest = digest
        self._name = name
        self._digest = features_digest(digest, features.dtype)

    @property
    def digest(self) -> str:
        """See `features_digest`."""
        return self._digest

    @property
    def name(self) -> str:
        """The image's."""
        return self._name

    @property
    def dimensions(self) -> tuple[int, int]:
        """The image's."""
        return self._dimensions

    def read(self) -> bytes:
        """Raises UserError: there are no pixels."""
        raise self._no_pixels()

    def open(self) -> Image:
        """Raises UserError: there are no pixels."""
        raise self._no_pixels()

    def stored_features(self, fingerprint: str) -> Tensor:
        """[T, W] in float32.

        Raises:
            UserError: they are another encoder's.
        """
        if fingerprint != self.fingerprint:
            raise UserError(
                f"its features come from the encoder {self.fingerprint[:12]}, but the model has {fingerprint[:12]}",
                where=f"replay memory, image {self.name}",
                hint="keep the encoder as it was, or use `store: full`",
            )
        return self.features.float()

    def _no_pixels(self) -> UserError:
        return UserError(
            "its pixels were not kept, only features of the frozen encoder",
            where=f"replay memory, image {self.name}",
            hint="freeze the encoder (leave `encoder` out of `train`), or use `store: full`",
        )


def features_digest(digest: str, dtype: torch.dtype) -> str:
    """The image's digest; another one for rounded features, so that they never stand in for exact ones in a cache."""
    return digest if dtype == torch.float32 else hashlib.sha256(f"{digest} {dtype}".encode()).hexdigest()


def store_features(image: ImageSource, features: Tensor, *, fingerprint: str, dtype: FeatureType) -> StoredFeatures:
    """Keep an image as its encoder output [T, W], on the CPU.

    `fp16` takes half of the bytes; rounding is at most 2^-11 of a value (2^-25 absolute below 2^-14).

    Raises:
        UserError: a value is beyond the range of fp16 (65,504).
    """
    kept = features.detach().to("cpu", DTYPES[dtype]).clone()
    if not kept.isfinite().all():
        raise UserError(
            f"the encoder's features do not fit {dtype}: largest value {features.abs().max().item():.3g}",
            where=f"replay memory, image {image.name}",
            hint="use `feature_dtype: fp32`",
        )
    return StoredFeatures(
        kept, fingerprint=fingerprint, digest=image.digest, name=image.name, dimensions=image.dimensions
    )


def image_bytes(image: ImageSource) -> tuple[str, int]:
    """The field that a stored image is counted under, and its bytes: content, name, and where features come from."""
    if isinstance(image, StoredFeatures):
        return "features", image.features.nbytes + features_overhead(image.name, image.fingerprint)
    return "image", len(image.read()) + len(image.name.encode())


def features_overhead(name: str, fingerprint: str) -> int:
    """Bytes that stored features take beside the tensor: where they come from, and the image's size."""
    return len(name.encode()) + len(fingerprint.encode()) + DIGEST_BYTES + 2 * NUMBER_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class TopLogits:
    """A teacher's softened distribution at some positions: its largest entries, and the rest in one bucket.

    Attributes:
        index: int32 [N, k], vocabulary entries.
        top: float32 [N, k], their log-probabilities.
        rest: float32 [N], log-probability of all other entries together.
    """

    index: Tensor
    top: Tensor
    rest: Tensor

    @classmethod
    def of(cls, logits: Tensor, *, k: int, temperature: float) -> TopLogits:
        """The k largest (at most V - 1) of softmax(logits / temperature), logits [N, V]."""
        k = min(k, logits.shape[-1] - 1)
        logs = (logits.detach().float() / temperature).log_softmax(-1)
        top, index = logs.topk(k, dim=-1)
        rest = logs.scatter(-1, index, float("-inf")).logsumexp(-1)
        return cls(index.to("cpu", torch.int32), top.cpu(), rest.cpu())

    @staticmethod
    def size(positions: int, k: int) -> int:
        """Bytes for that many positions, before they are made."""
        return positions * (8 * k + 4)

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors."""
        return self.index.nbytes + self.top.nbytes + self.rest.nbytes

    def divergence(self, logits: Tensor, *, temperature: float) -> Tensor:
        """KL(teacher || student) over k + 1 buckets, summed over positions, times temperature^2; logits [N, V]."""
        logs = (logits.float() / temperature).log_softmax(-1)
        index = self.index.long().to(logits.device)
        top, rest = self.top.to(logits.device), self.rest.to(logits.device)
        student_rest = logs.scatter(-1, index, float("-inf")).logsumexp(-1)
        kl = (top.exp() * (top - logs.gather(-1, index))).sum() + (rest.exp() * (rest - student_rest)).sum()
        return kl * temperature**2


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the memory, with its provenance.

    Attributes:
        task: the task that the sample came from.
        id: of the sample.
        modality: of the sample when it was seen, whatever was kept of it.
        question: the turns before the answer.
        answer: the last assistant turn; None if it was not kept.
        rejected: of a preference pair, the answer that was not preferred; empty for others.
        images: encoded images (`BytesImage`) or `StoredFeatures`; empty if they were not kept.
        logits: the teacher's distribution at the answer's positions, if kept.
        group: the sample's question group.
        time: its period tag.
        language: its language tag.
        key: its random number in the choice inside a cell.
        step: its place among all samples that the memory was offered.
        score: its loss when it was stored, if that was measured.
        drift: by how much its loss has risen since.
    """

    task: str
    id: str
    modality: Modality
    question: tuple[Turn, ...]
    answer: str | None
    images: tuple[ImageSource, ...] = ()
    logits: TopLogits | None = None
    group: str = ""
    time: str = ""
    language: str = ""
    rejected: str = ""
    key: int = 0
    step: int = 0
    score: float | None = None
    drift: float = 0.0

    def own_sizes(self, *, images: int | None = None, logits: int | None = None) -> dict[str, int]:
        """Bytes by field, without images: utf-8 text, tensors, 32 per reference to an image, 8 per number.

        Args:
            images: how many images will be referred to, if they are not here yet.
            logits: bytes of the logits, if they are not here yet.
        """
        text = (self.task, self.id, self.modality, self.group, self.time, self.language)
        references = len(self.images) if images is None else images
        kept_logits = self.logits.nbytes if self.logits is not None else 0
        return {
            "question": sum(len(turn.role) + len(turn.text.encode()) for turn in self.question),
            "answer": len((self.answer or "").encode()) + len(self.rejected.encode()),
            "logits": kept_logits if logits is None else logits,
            "provenance": sum(len(part.encode()) for part in text) + DIGEST_BYTES * references + 4 * NUMBER_BYTES,
        }

    def sizes(self) -> dict[str, int]:
        """Bytes by field (`FIELDS`), as if the record were alone; each different image once."""
        sizes = dict.fromkeys(FIELDS, 0) | self.own_sizes()
        for image in {image.digest: image for image in self.images}.values():
            field, size = image_bytes(image)
            sizes[field] += size
        return sizes

    @property
    def bytes(self) -> int:
        """Sum of `sizes`."""
        return sum(self.sizes().values())

    @property
    def candidate(self) -> Candidate:
        """What a selection may look at."""
        return Candidate(self.key, self.step, self.drift)

    def sample(self) -> Sample:
        """The sample to replay; without an answer it is a question, whose images are the caller's to give."""
        answer = () if self.answer is None else (Turn("assistant", self.answer),)
        return Sample(
            id=self.id,
            task=self.task,
            turns=(*self.question, *answer),
            images=self.images,
            group=self.group,
            time=self.time,
            language=self.language,
            rejected=self.rejected,
            metadata={REPLAY_KEY: self.key},
        )


def kept_images(sample: Sample, store: str) -> tuple[ImageSource, ...]:
    """The images of a sample of which something is kept."""
    return sample.images if store in ("full", "features") else ()


def make_record(sample: Sample, store: str, *, key: int, step: int) -> Record:
    """The record of a sample, still without images and logits.

    `question` keeps no answer, and of several turns only those up to the first question, as later ones lean on answers.
    `text` drops the placeholders with the images. Metadata are never kept.
    """
    answered = bool(sample.turns) and sample.turns[-1].role == "assistant"
    question = sample.turns[:-1] if answered else sample.turns
    answer = sample.turns[-1].text if answered else None
    if store == "question" and sample.document:
        raise UserError(
            f"sample {sample.id} is a document, and `store: question` keeps questions",
            where="replay.store",
            hint="use another store where corpora are replayed",
        )
    if store == "question":
        first = next((place for place, turn in enumerate(question) if turn.role == "user"), len(question) - 1)
        question, answer = question[: first + 1], None
    if store == "text":
        question = without_images(question)
        answer = without_images([Turn("assistant", answer)])[0].text if answer is not None else None
    return Record(
        task=sample.task,
        id=sample.id,
        modality=sample.modality,
        question=question,
        answer=answer,
        group=sample.group,
        time=sample.time,
        language=sample.language,
        rejected=sample.rejected if answer is not None else "",
        key=key,
        step=step,
    )


def without_images(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns without placeholders; a turn without one stays as it is."""
    return tuple(
        Turn(turn.role, turn.text.replace(IMAGE_PLACEHOLDER, "").strip()) if IMAGE_PLACEHOLDER in turn.text else turn
        for turn in turns
    )


def add_sizes(total: dict[str, int], sizes: Mapping[str, int], sign: int = 1) -> None:
    """Add (or take away) bytes by field, in place."""
    for field, size in sizes.items():
        total[field] = total.get(field, 0) + sign * size
