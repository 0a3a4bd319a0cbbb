"""Captions: COCO's own layout, and Karpathy's splits of COCO and Flickr30k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmcl.data.formats.official import BadRow, Official, Reading, Split

PROMPT = "Describe the image."


class COCOCaptions(Official):
    """Captions in COCO's layout (`images`, `annotations`): COCO, VizWiz-Captions, Flickr30k, TextCaps and others.

    Training has one sample per caption, test one per image with all captions as references.

    Args:
        split: what the file is used for.
        suffix: put after the prompt.
        prompt: what is asked.
        captions_per_image: train on the first so many of each image; None for all.
    """

    def __init__(
        self, *, split: Split = "train", suffix: str = "", prompt: str = PROMPT, captions_per_image: int | None = None
    ) -> None:
        self.split, self.suffix, self.prompt, self.captions_per_image = split, suffix, prompt, captions_per_image

    def signs(self) -> Sequence[str]:
        """Of the file."""
        return ("images", "file_name")

    def collect(self, reading: Reading) -> None:
        """Captions in the order of the images."""
        content = reading.load()
        if content is None:
            return
        table = content if isinstance(content, dict) else {}
        captions: dict[Any, list[str]] = {}
        for row in reading.rows(table.get("annotations"), "`annotations`"):
            try:
                captions.setdefault(reading.get(row, "image_id", int, str), []).append(reading.text(row, "caption"))
            except BadRow:
                continue
        for row in reading.rows(table.get("images"), "`images`"):
            try:
                key, name = reading.get(row, "id", int, str), reading.text(row, "file_name")
                if key not in captions:
                    raise reading.wrong("id", f"image {key} has no caption", "leave images without captions out")
                add_captions(reading, str(key), self.prompt, captions[key], name, self.captions_per_image)
            except BadRow:
                continue


class Karpathy(Official):
    """Karpathy's splits (1412.2306): `dataset_coco.json`, `dataset_flickr30k.json`.

    Args:
        split: what is read: `train` takes `train` and `restval`, `test` takes `test`.
        suffix: put after the prompt.
        prompt: what is asked.
        captions_per_image: train on the first so many of each image; None for all.
        part: read this split of the file instead.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        suffix: str = "",
        prompt: str = PROMPT,
        captions_per_image: int | None = None,
        part: Literal["train", "restval", "val", "test"] | None = None,
    ) -> None:
        self.split, self.suffix, self.prompt, self.captions_per_image = split, suffix, prompt, captions_per_image
        self.parts = (part,) if part else ("train", "restval") if split == "train" else ("test",)

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("images", "sentids")

    def collect(self, reading: Reading) -> None:
        """Captions in the order of the file."""
        content = reading.load()
        images = content.get("images") if isinstance(content, dict) else content
        for row in reading.rows(images, "`images`") if content is not None else ():
            try:
                if reading.text(row, "split") not in self.parts:
                    continue
                name, folder = reading.text(row, "filename"), str(row.get("filepath") or "")
                captions = reading.texts(row, "sentences", "raw")
                path = f"{folder}/{name}" if folder else name
                add_captions(reading, name, self.prompt, captions, path, self.captions_per_image)
            except BadRow:
                continue


def add_captions(
    reading: Reading, key: str, prompt: str, captions: Sequence[str], image: str, most: int | None
) -> None:
    """One training sample per caption, or one test sample with all of them."""
    if reading.split == "test":
        reading.add(key, prompt, captions, image=image, group="caption")
        return
    for place, caption in enumerate(captions[:most]):
        reading.add(f"{key}-{place}", prompt, [caption], image=image, group="caption")
