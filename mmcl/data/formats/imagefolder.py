"""Classification from a folder of folders: one per class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mmcl.data.formats.official import BadRow, Official, Reading, Split

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2")


class ImageFolder(Official):
    """A folder with one folder of images per class, as ImageNet, ImageNet-R and torchvision's ImageFolder have it.

    Args:
        split: what the folder is used for.
        suffix: put after the prompt.
        prompt: what is asked.
        names: a file that says what each class folder is called (ImageNet's are WordNet ids): JSON `{folder: name}`, or
            lines of a folder and its name; relative to the folder. Without one the folders' own names are taken.
        limit: so many images of each class, the first by name; None for all.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        suffix: str = "",
        prompt: str = "What is the object in the image?",
        names: str = "",
        limit: int | None = None,
    ) -> None:
        self.split, self.suffix, self.prompt, self.names, self.limit = split, suffix, prompt, names, limit

    def sniff(self, path: Path) -> bool:
        """Whether it is a folder with folders in it."""
        return path.is_dir() and any(entry.is_dir() for entry in path.iterdir())

    def collect(self, reading: Reading) -> None:
        """One sample per image, class by class."""
        reading.folder = type(reading.folder)(reading.path)
        names = self._names(reading)
        if names is None:
            return
        folders = sorted(entry for entry in reading.path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            reading.fail("there is no class folder in it", "it holds one folder of images per class")
        for folder in folders:
            if names and folder.name not in names:
                reading.fail(f"`{self.names}` has no name for the class folder {folder.name}", "add a line for it")
                continue
            label = names.get(folder.name, folder.name.replace("_", " "))
            images = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
            if not images:
                reading.fail(f"the class folder {folder.name} has no images", "put images there, or delete it")
            for image in images[: self.limit]:
                reading.number += 1
                try:
                    path = f"{folder.name}/{image.name}"
                    reading.add(path, self.prompt, [label], image=path, group=label)
                except BadRow:
                    continue

    def _names(self, reading: Reading) -> Mapping[str, str] | None:
        """Names of the class folders; empty where they are their own, None where the file can't be read."""
        if not reading.path.is_dir():
            reading.fail("this is no folder", "give the folder that holds one folder of images per class")
            return None
        if not self.names:
            return {}
        path = reading.path / self.names
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reading.fail(f"the file of class names can't be read: {error}", "correct `names`", path)
            return None
        if path.suffix != ".json":
            pairs = [line.split(None, 1) for line in text.splitlines() if line.strip()]
            return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            reading.fail(f"broken JSON: {error}", "mend it", path)
            return None
        if not isinstance(table, dict):
            reading.fail("this is not an object of folders and names", 'write {"n01440764": "tench", ...}', path)
            return None
        return {folder: name[-1] if isinstance(name, list) and name else str(name) for folder, name in table.items()}
