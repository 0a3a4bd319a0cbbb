"""The nouns of the data: an image, a turn, a sample, a task. Standard library only."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

IMAGE_PLACEHOLDER = "<image>"
"""Marks in a turn's text where an image stands; a sample has exactly as many as it has images."""

StageKind = Literal["align", "pretrain", "domain", "instruct", "refine", "prefer"]
"""What a stage is, on the vertical axis of continual learning: general -> domain -> task."""

Modality = Literal["image+text", "image", "text"]


class ImageSource(ABC):
    """An image that is opened when it is needed, known by its content."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) of the encoded bytes: the image's identity over tasks, caches and the replay memory."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for messages and reports, such as the path relative to the image folder."""

    @abstractmethod
    def read(self) -> bytes:
        """The encoded bytes (PNG, JPEG ...). Raises UserError if they can't be read."""

    @abstractmethod
    def open(self) -> Image:
        """The decoded RGB image. Raises UserError, naming the file, if it is broken or beyond the pixel limit."""

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height in pixels. Raises UserError as `open` does."""
        return self.open().size

    def stored_features(self, fingerprint: str) -> Tensor | None:
        """Encoder output [tokens, width] that stands in for the pixels, if this source holds that.

        Args:
            fingerprint: of the encoder that would be run; features of another encoder must not be returned.
        """
        return None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; `text` may contain `<image>` placeholders (in user turns)."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One training conversation or one test question, with its provenance from birth.

    A training sample ends with an assistant turn. A test sample ends with a user turn and has `answers`, the accepted
    references (one, several, or ten annotators; a single reference is a tuple of one). A document to pre-train on is
    one assistant turn alone, with its images where they stand in the text.

    Attributes:
        id: unique within its task and split.
        task: the task that it came from. Methods may not read it at test time unless they say so; see `hidden`.
        turns: the conversation.
        images: in the order of the placeholders; empty for a text-only sample.
        answers: references for scoring; empty in training samples.
        group: the question group inside the task (question type, object ...), for quotas of the replay memory.
        time: period tag for temporal streams.
        language: language tag.
        rejected: of a preference pair, the answer that was not preferred to the last assistant turn; empty for others.
        metadata: further keys of the source file, kept as they are.
    """

    id: str
    task: str
    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...] = ()
    answers: tuple[str, ...] = ()
    group: str = ""
    time: str = ""
    language: str = ""
    rejected: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """`image` where no user text is left beside the placeholders, `text` where there is no image."""
        if not self.images:
            return "text"
        return "image+text" if self.question.strip() else "image"

    @property
    def document(self) -> bool:
        """Whether it is text to read, with or without images, and no conversation."""
        return len(self.turns) == 1 and self.turns[0].role == "assistant"

    @property
    def question(self) -> str:
        """The text of all user turns (of a document, all text), without placeholders, for display and text routing."""
        texts = [turn.text for turn in self.turns if turn.role == "user" or self.document]
        return "\n".join(text.replace(IMAGE_PLACEHOLDER, "").strip() for text in texts)

    @property
    def reply(self) -> str:
        """The text of the last assistant turn; empty in a test sample."""
        return self.turns[-1].text if self.turns and self.turns[-1].role == "assistant" else ""

    def hidden(self, *, keep_task: bool = False) -> Sample:
        """What a method may see of a test sample: no id, group, answers, tags or metadata, and no task by default."""
        turns = self.turns if not self.reply or self.document else self.turns[:-1]
        return Sample(id="", task=self.task if keep_task else "", turns=turns, images=self.images)

    def replace(self, **changes: Any) -> Sample:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)


Samples = Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a stream.

    Attributes:
        name: unique in the stream; names the column of the matrix.
        train: training samples.
        test: test questions; may be empty for tasks that only train (captions for an `align` stage).
        metric: name of the metric that scores the task, with `metric_options` for its constructor.
        kind: the stage kind that the task is meant for.
        time: period tag.
        domain: domain tag.
        language: language tag.
        choices: the closed vocabulary of the answers, for scoring by likelihood; empty where there is none.
        heldout: samples like the training ones, kept apart to measure the loss on them (captions, documents).
    """

    name: str
    train: Samples
    test: Samples = ()
    metric: str = "exact"
    metric_options: Mapping[str, Any] = field(default_factory=dict)
    kind: StageKind = "instruct"
    time: str = ""
    domain: str = ""
    language: str = ""
    choices: tuple[str, ...] = ()
    heldout: Samples = ()
