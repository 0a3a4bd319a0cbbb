"""A stage of a run that answers whoever asks: for harnesses that bring their own questions and scores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL.Image import Image

from mmcl.data.images import BytesImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Turn
from mmcl.errors import UserError
from mmcl.evaluation.evaluate import answer
from mmcl.model.likelihood import log_likelihoods
from mmcl.progress import Progress
from mmcl.revisit import open_run
from mmcl.training.methods import Methods


@dataclass(frozen=True, slots=True)
class Question:
    """What a harness asks.

    Attributes:
        text: with or without `<image>` where the images stand.
        images: in order.
    """

    text: str
    images: tuple[Image, ...] = ()


class Answering:
    """The model of a finished stage with its routes, for any questions.

    Args:
        run: folder of the run.
        stage: name or label of a finished stage, or `last`.
        variant: None for the first.
        progress: shows what goes on.

    Raises:
        UserError: there is no such run, stage or variant.
    """

    def __init__(
        self, run: Path, *, stage: str = "last", variant: str | None = None, progress: Progress | None = None
    ) -> None:
        experiment = open_run(run, progress)
        session, chosen, _, _ = experiment.open(variant, stage)
        self.accelerator = experiment.accelerator
        self.model = session.model
        self.methods = session.active(chosen) if chosen.task else Methods({})
        self.spec = session.recipe.evaluate
        self.label = chosen.label

    def generate(self, questions: Sequence[Question], *, max_new_tokens: int, until: Sequence[str] = ()) -> list[str]:
        """The greedy answer to each question, cut before the first of the texts `until`.

        Questions about the same image are answered together, whatever their order.
        """
        spec = replace(self.spec, max_new_tokens=max_new_tokens)
        texts = [text for text, _ in answer(self.model, self.methods, list(map(sample_of, questions)), spec)]
        return [_cut(text, until) for text in texts]

    def log_likelihoods(self, questions: Sequence[Question], answers: Sequence[str]) -> list[tuple[float, bool]]:
        """For each question: log-probability of an answer as the whole answer, and whether it is the greedy one.

        White space around an answer does not count: the prompt's template says what stands there.
        """
        samples = list(map(sample_of, questions))
        routes = self.methods.select(self.model, samples)
        wanted = [text.strip() for text in answers]
        places: dict[str, list[int]] = {}
        for place, text in enumerate(wanted):
            places.setdefault(text, []).append(place)
        values = [0.0] * len(samples)
        for text, where in places.items():
            chosen, along = [samples[k] for k in where], [routes[k] for k in where]
            found = log_likelihoods(self.model, chosen, along, [text], row_tokens=self.spec.row_tokens)
            for place, value in zip(where, found[:, 0].tolist(), strict=True):
                values[place] = value
        greedy = self.generate(questions, max_new_tokens=self._longest(wanted))
        return [(value, given == text) for value, given, text in zip(values, greedy, wanted, strict=True)]

    def _longest(self, texts: Sequence[str]) -> int:
        """Tokens of the longest answer and of its end."""
        return 1 + max((len(self.model.tokenizer(text)["input_ids"]) for text in texts), default=0)


def sample_of(question: Question) -> Sample:
    """The question as a test sample: its images where its placeholders are, or before the text if those do not fit."""
    text = question.text
    if text.count(IMAGE_PLACEHOLDER) != len(question.images):
        text = text.replace(IMAGE_PLACEHOLDER, "").strip()
        text = "\n".join([*[IMAGE_PLACEHOLDER] * len(question.images), text])
    images = tuple(_image(image, number) for number, image in enumerate(question.images))
    return Sample(id="", task="", turns=(Turn("user", text),), images=images)


def _image(image: object, number: int) -> BytesImage:
    if not isinstance(image, Image):
        what = f"a question with a {type(image).__name__} cannot be asked"
        raise UserError(what, where="lmms-eval", hint="choose tasks of images and text; videos and audio are not built")
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return BytesImage(buffer.getvalue(), f"image-{number}.png")


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [place for stop in until if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)].strip() if ends else text
