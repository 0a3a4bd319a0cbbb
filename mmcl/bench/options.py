"""What is measured: the options of `mmcl bench`, and one cell of the grid that they span. Standard library only."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmcl.errors import Problem, UserError

MODELS = ("tiny", "smollm2-135m")
STREAMS = ("easy_vqa", "shapes")
DTYPES = ("fp32", "bf16")
PEERS = ("hf", "trl", "generate")


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of options, measured by itself; plain values, so that it travels to another process.

    Attributes:
        model: one of `MODELS`.
        stream: one of `STREAMS`.
        dtype: of the language model's weights, one of `DTYPES`; what trains is float32 on both sides.
        image_tokens: per image, a square number.
        questions: per image; None for all that the stream has (9.6 on average for easy_vqa).
        image_size: what the encoder sees, in pixels.
        steps: optimiser steps in a repetition.
        repeats: repetitions of each side, interleaved.
        batch_size: questions per optimiser step.
        micro_batch: rows per forward pass of the padded trainers.
        row_tokens: tokens per packed row in training; None for the default of recipes.
        test_questions: how many are answered in a repetition.
        generate_batch: rows of a padded batch of `generate`.
        max_new_tokens: longest answer.
        device: `cpu` or `cuda`.
        seed: of the parts that start at random, and of the order of the samples.
    """

    model: str = "tiny"
    stream: str = "easy_vqa"
    dtype: str = "fp32"
    image_tokens: int = 16
    questions: int | None = None
    image_size: int = 64
    steps: int = 3
    repeats: int = 3
    batch_size: int = 96
    micro_batch: int = 16
    row_tokens: int | None = None
    test_questions: int = 64
    generate_batch: int = 16
    max_new_tokens: int = 8
    device: str = "cpu"
    seed: int = 0

    @property
    def label(self) -> str:
        """Such as `fp32, 16 image tokens, all questions of an image`."""
        asked = "all questions of an image" if self.questions is None else f"{self.questions} questions an image"
        return f"{self.dtype}, {self.image_tokens} image tokens, {asked}"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def cells(
    base: Cell, *, dtypes: Sequence[str], image_tokens: Sequence[int], questions: Sequence[int | None]
) -> list[Cell]:
    """The grid.

    Raises:
        UserError: all mistakes at once.
    """
    problems = [
        *_choice("--model", [base.model], MODELS),
        *_choice("--stream", [base.stream], STREAMS),
        *_choice("--dtype", dtypes, DTYPES),
        *_choice("--device", [base.device], ("cpu", "cuda")),
    ]
    problems += [
        Problem("--image-tokens", f"{number} is no square number", "such as 4, 16, 64")
        for number in image_tokens
        if number < 1 or math.isqrt(number) ** 2 != number
    ]
    problems += [
        Problem("--questions", f"{number} is not possible", "1 or more, or `all`")
        for number in questions
        if number is not None and number < 1
    ]
    if base.batch_size % base.micro_batch:
        hint = "the padded trainers take a step in micro-batches of equal size"
        problems.append(
            Problem("--batch-size", f"{base.batch_size} is no multiple of --micro-batch {base.micro_batch}", hint)
        )
    if problems:
        raise UserError(problems=problems)
    return [
        dataclasses.replace(base, dtype=dtype, image_tokens=tokens, questions=number)
        for number, tokens, dtype in itertools.product(questions, image_tokens, dtypes)
    ]


def check_peers(peers: Sequence[str]) -> None:
    """Raise a UserError for peers that there are not."""
    problems = _choice("--peers", peers, PEERS)
    if problems:
        raise UserError(problems=problems)


def _choice(where: str, given: Sequence[str], known: Sequence[str]) -> list[Problem]:
    return [
        Problem(where, f"there is no `{value}`", f"choose from {', '.join(known)}")
        for value in given
        if value not in known
    ]
