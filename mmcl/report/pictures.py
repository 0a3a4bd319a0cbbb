"""Thumbnails of a run's images, inside the page."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

THUMBNAIL = 128
"""Largest side of an embedded image, in pixels."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a question: `uri` is a data: URI, or None where there is no readable thumbnail."""

    name: str
    uri: str | None


def thumbnail(folder: Path, digest: str) -> str | None:
    """The image's thumbnail as a data: URI; None if the run kept none, or the file is no readable PNG."""
    path = folder / f"{digest}.png"
    if not re.fullmatch(r"[0-9a-f]{8,128}", digest) or not path.is_file():
        return None
    out = io.BytesIO()
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            image.save(out, "PNG", optimize=True)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for a broken PNG
        return None
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
