"""Documents to pre-train on: plain text, or text with images between its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl.data.formats.json_rows import kind, read_rows
from mmcl.data.formats.official import BadRow, Official, Reading, Split
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Turn


class Documents(Official):
    """Plain text (`.txt`, documents apart by an empty line), or rows of JSON or JSON lines.

    A row has `text`, with `<image>` where each of its `images` stands (none: they come first), or lists `texts` and
    `images` of the same length, each null where the other has something (as OBELICS and MMC4 interleave them). The loss
    of the kinds `pretrain` and `domain` is on all of the text; no chat template is put around it.

    Args:
        split: documents are for training; held-out ones are read the same way.
        suffix: put after every document.
        longest: so many characters of a text at most; longer ones are cut in several documents. None never cuts.
    """

    def __init__(self, *, split: Split = "train", suffix: str = "", longest: int | None = None) -> None:
        self.split, self.suffix, self.longest = split, suffix, longest

    def sniff(self, path: Path) -> bool:
        """Whether it is a text file; rows of JSON have to be asked for."""
        return path.suffix == ".txt"

    def collect(self, reading: Reading) -> None:
        """Documents in the order of the file."""
        if reading.path.suffix == ".txt":
            self._plain(reading)
            return
        rows, problems = read_rows(reading.path)
        reading.problems += problems
        for reading.number, row in rows:
            try:
                text, images = self._interleaved(reading, row) if "texts" in row else self._written(reading, row)
                self._add(reading, str(row.get("id", reading.number)), text, images)
            except BadRow:
                continue

    def _plain(self, reading: Reading) -> None:
        try:
            content = reading.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reading.fail(f"the file can't be read: {error}", "save it as UTF-8")
            return
        pieces = [piece.strip() for piece in content.replace("\r\n", "\n").split("\n\n") if piece.strip()]
        for reading.number, piece in enumerate(pieces, start=1):
            try:
                self._add(reading, str(reading.number), piece.replace(IMAGE_PLACEHOLDER, "<image >"), [])
            except BadRow:
                continue
        if not pieces:
            reading.fail("there is no text in it", "write documents, with an empty line between them")

    def _written(self, reading: Reading, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        text, images = reading.text(row, "text"), row.get("images", row.get("image")) or []
        images = images if isinstance(images, list) else [images]
        if not all(isinstance(image, str) for image in images):
            raise reading.wrong("images", "an image is no path", "`images` is a list of paths below the image folder")
        if images and IMAGE_PLACEHOLDER not in text:
            text = f"{IMAGE_PLACEHOLDER}\n" * len(images) + text
        return text, images

    def _interleaved(self, reading: Reading, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        texts, images = reading.get(row, "texts", list), reading.get(row, "images", list)
        if len(texts) != len(images):
            raise reading.wrong(
                "images", f"{len(texts)} texts, {len(images)} images", "one is null where the other is not"
            )
        parts, paths = [], []
        for text, image in zip(texts, images, strict=True):
            if isinstance(image, str) and text is None:
                parts.append(IMAGE_PLACEHOLDER)
                paths.append(image)
            elif isinstance(text, str) and image is None:
                parts.append(text)
            else:
                message = f"an entry has {kind(text)} and {kind(image)}"
                raise reading.wrong("texts", message, "each entry has a text or an image, and null for the other")
        return "\n".join(parts), paths

    def _add(self, reading: Reading, key: str, text: str, images: Sequence[str]) -> None:
        if text.count(IMAGE_PLACEHOLDER) != len(images):
            message = f"{text.count(IMAGE_PLACEHOLDER)} `{IMAGE_PLACEHOLDER}` in the text, {len(images)} images"
            raise reading.wrong("text", message, "write it once for each image")
        step = self.longest or max(1, len(text))
        cut = [text[start : start + step] for start in range(0, len(text), step)] if not images else [text]
        pictures = reading.pictures(images)
        for place, piece in enumerate(cut):
            reading.keep(
                Sample(
                    id=key if len(cut) == 1 else f"{key}-{place}",
                    task=reading.task,
                    turns=(Turn("assistant", piece + self.suffix),),
                    images=pictures,
                )
            )
