"""Drawn images for the stream `shapes`: what is in a scene, what is true of it, and its picture."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mmcl.data.images import EncodedImage

if TYPE_CHECKING:
    from PIL import ImageDraw

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 205, 30),
    "orange": (245, 130, 20),
    "purple": (130, 50, 160),
    "pink": (245, 130, 185),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "bar")
COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
PLACES: Mapping[str, tuple[int, int]] = {
    "top left": (-1, -1),
    "top": (0, -1),
    "top right": (1, -1),
    "left": (-1, 0),
    "right": (1, 0),
    "bottom left": (-1, 1),
    "bottom": (0, 1),
    "bottom right": (1, 1),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be seen.

    Attributes:
        shape: of all objects; empty in a scene with a letter.
        colour: of all objects, or of the letter.
        count: of objects, 1..8.
        place: where a single object is; empty for several objects and for a letter.
        letter: a single capital letter instead of objects.
        background: grey value, in 160..255.
        jitter: decides sizes and exact positions.
    """

    shape: str
    colour: str
    count: int = 1
    place: str = ""
    letter: str = ""
    background: int = 255
    jitter: int = 0

    def facts(self) -> dict[str, str]:
        """Value by kind of question, of all kinds that can be asked of the scene."""
        facts = {"colour": self.colour}
        if self.letter:
            return {**facts, "text": self.letter}
        facts |= {"shape": self.shape, "count": COUNTS[self.count - 1]}
        return {**facts, "position": self.place} if self.place else facts

    def caption(self) -> str:
        """Such as `three red stars`."""
        if self.letter:
            return f"the letter {self.letter} in {self.colour}"
        if self.count > 1:
            plural = f"{self.shape}es" if self.shape == "cross" else f"{self.shape}s"
            return f"{COUNTS[self.count - 1]} {self.colour} {plural}"
        article = "an" if self.colour == "orange" else "a"
        return f"{article} {self.colour} {self.shape} at the {self.place}"


class SceneImage(EncodedImage):
    """A scene as a PNG file that is drawn when it is needed.

    Args:
        scene: what to draw.
        size: height = width, in pixels.
        name: for messages and reports.
    """

    def __init__(self, scene: Scene, size: int, name: str) -> None:
        self.scene = scene
        self.size = size
        self._name = name

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    def read(self) -> bytes:
        """The PNG file, the same every time."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        from PIL import Image, ImageDraw

        scale = 2  # drawn larger and scaled down, for smooth edges
        side = self.size * scale
        image = Image.new("RGB", (side, side), (self.scene.background,) * 3)
        draw_scene(ImageDraw.Draw(image), self.scene, side)
        buffer = io.BytesIO()
        # The background survives scaling down exactly, which keeps training and test images apart.
        image.reduce(scale).save(buffer, "PNG")
        return buffer.getvalue()

    def __reduce__(self) -> tuple[type[SceneImage], tuple[Scene, int, str]]:
        return SceneImage, (self.scene, self.size, self._name)

    def __repr__(self) -> str:
        return f"SceneImage({self.scene!r}, {self.size}, {self._name!r})"


def draw_scene(draw: ImageDraw.ImageDraw, scene: Scene, side: int) -> None:
    """Draw onto a square of `side` pixels."""
    rng = random.Random(scene.jitter)
    colour = COLOURS[scene.colour]

    def about(centre: float, spread: float) -> float:
        return side * (centre + rng.uniform(-spread, spread))

    if scene.letter:
        from PIL import ImageFont

        font = ImageFont.load_default(side * rng.uniform(0.5, 0.75))
        draw.text((about(0.5, 0.1), about(0.5, 0.1)), scene.letter, fill=colour, font=font, anchor="mm")
    elif scene.count == 1:
        across, down = PLACES[scene.place]
        centre = (about(0.5 + 0.28 * across, 0.03), about(0.5 + 0.28 * down, 0.03))
        draw_shape(draw, scene.shape, centre, side * rng.uniform(0.13, 0.18), colour)
    else:
        cells = rng.sample([(column, row) for column in range(3) for row in range(3)], scene.count)
        for column, row in cells:
            centre = (about((column + 0.5) / 3, 0.02), about((row + 0.5) / 3, 0.02))
            draw_shape(draw, scene.shape, centre, side * rng.uniform(0.09, 0.12), colour)


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    """Draw one object that fits into a circle of about `radius` pixels."""
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    third = radius / 3
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=max(1, round(third)))
    elif shape == "square":
        draw.rectangle((x - radius * 0.85, y - radius * 0.85, x + radius * 0.85, y + radius * 0.85), fill=colour)
    elif shape == "bar":
        draw.rectangle((x - radius, y - third, x + radius, y + third), fill=colour)
    elif shape == "cross":
        draw.rectangle((x - radius, y - third, x + radius, y + third), fill=colour)
        draw.rectangle((x - third, y - radius, x + third, y + radius), fill=colour)
    else:
        corners, inner = {"triangle": (3, 0.0), "diamond": (4, 0.0), "star": (5, 0.42)}[shape]
        points = []
        for corner in range(corners):
            for step, length in ((0.0, radius), (0.5, radius * inner)):
                if length:
                    angle = 2 * math.pi * (corner + step) / corners - math.pi / 2
                    points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
        draw.polygon(points, fill=colour)


def random_scene(rng: random.Random, kind: str, value: str, parity: int) -> Scene:
    """A scene of which `value` is true for that kind of question; the rest is random.

    Args:
        rng: source of randomness.
        kind: a key of `Scene.facts`.
        value: the fact.
        parity: 0 or 1; scenes of different parity never give the same picture.
    """
    facts = {
        "shape": rng.choice(SHAPES),
        "colour": rng.choice(tuple(COLOURS)),
        "position": rng.choice(tuple(PLACES)),
        "count": "one",
        kind: value,
    }
    letter = facts.get("text", "")
    count = COUNTS.index(facts["count"]) + 1
    return Scene(
        shape="" if letter else facts["shape"],
        colour=facts["colour"],
        count=1 if letter else count,
        place="" if letter or count > 1 else facts["position"],
        letter=letter,
        background=160 + 2 * rng.randrange(48) + parity,
        jitter=rng.randrange(2**32),
    )
