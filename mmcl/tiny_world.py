"""The tiny world: a language model, a stream and an assembled model that are made in memory within a second.

Real architectures with random weights, so that a test runs the same code as a real run. `mmcl.testing` hands it out.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmcl.data.images import EncodedImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Task, Turn
from mmcl.model.assembly import Assembly
from mmcl.model.build import build_model
from mmcl.model.tiny import tiny_model, tiny_tokenizer
from mmcl.recipe.spec import LanguageSpec, LoRASpec, ModelSpec, PluginSpec

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
CORNERS = {"top left": (0, 0), "top right": (16, 0), "bottom left": (0, 16), "bottom right": (16, 16)}
SIDE = 32


@dataclass(frozen=True)
class TinyImage(EncodedImage):
    """A square of a colour in a corner of a grey image of 32 pixels, drawn when it is needed.

    Attributes:
        colour: a key of `COLOURS`.
        corner: a key of `CORNERS`.
        shade: grey value of the background, in 0..255; it makes images differ.
    """

    colour: str
    corner: str
    shade: int = 128

    @cached_property
    def _bytes(self) -> bytes:
        image = Image.new("RGB", (SIDE, SIDE), (self.shade,) * 3)
        image.paste(Image.new("RGB", (SIDE // 2, SIDE // 2), COLOURS[self.colour]), CORNERS[self.corner])
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    @property
    def name(self) -> str:
        """Such as `red-top-left-128.png`."""
        return f"{self.colour}-{self.corner.replace(' ', '-')}-{self.shade}.png"

    def read(self) -> bytes:
        """The PNG file."""
        return self._bytes


def tiny_tasks(*, train: int = 8, test: int = 4) -> tuple[Task, Task]:
    """Two tasks on the same kind of image: `colour` of the square, and `place` where it is.

    Args:
        train: training samples per task; every second pair of samples asks about one image.
        test: test samples per task.
    """
    return _task("colour", train, test), _task("place", train, test)


def tiny_language(family: str = "llama", seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random language model of two layers and its byte-level tokenizer; see `mmcl.model.tiny.FAMILIES`."""
    return tiny_model(family, seed=seed), tiny_tokenizer()


def tiny_assembly(
    *,
    family: str = "llama",
    seed: int = 0,
    encoder: str | PluginSpec = "tiny",
    projector: str | PluginSpec = "linear",
    train: tuple[str, ...] = ("projector", "language.lora"),
) -> Assembly:
    """A whole model with a LoRA adapter of rank 2, built by the same function as a recipe's.

    Args:
        family: of the language model.
        seed: of all random weights.
        encoder: name of the encoder, or name and options.
        projector: name of the projector, or name and options.
        train: the parts that train.
    """
    spec = ModelSpec(
        encoder=PluginSpec(encoder) if isinstance(encoder, str) else encoder,
        projector=PluginSpec(projector) if isinstance(projector, str) else projector,
        language=LanguageSpec(f"tiny:{family}", lora=LoRASpec(rank=2)),
        train=train,
    )
    return build_model(spec, folder=Path(), seed=seed)


def _task(name: str, train: int, test: int) -> Task:
    return Task(
        name=name,
        train=[_sample(name, index, shade=100, answered=True) for index in range(train)],
        test=[_sample(name, index, shade=160, answered=False) for index in range(test)],
        metric="exact",
    )


def _sample(task: str, index: int, *, shade: int, answered: bool) -> Sample:
    place = index // 2  # two questions of each image
    colour = list(COLOURS)[place % 4]
    corner = list(CORNERS)[(place + place // 4) % 4]
    image = TinyImage(colour, corner, shade + place // 16)
    answer = colour if task == "colour" else corner
    words = ("what colour?", "which colour?") if task == "colour" else ("where?", "which corner?")
    question = Turn("user", f"{IMAGE_PLACEHOLDER}{words[index % 2]}")
    return Sample(
        id=f"{index:03d}",
        task=task,
        turns=(question, Turn("assistant", answer)) if answered else (question,),
        images=(image,),
        answers=() if answered else (answer,),
        group=words[index % 2],
    )
