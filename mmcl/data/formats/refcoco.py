"""Grounding: RefCOCO, RefCOCO+ and RefCOCOg from COCO's instances and the referring expressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmcl.data.formats.official import BadRow, Official, Reading, Split

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}."


class RefCOCO(Official):
    """Referring expressions as JSON (`refs`), with COCO's `instances.json` for boxes and images.

    Boxes become `[x1,y1,x2,y2]`, in shares of the image padded to a square around it, as in LLaVA and CoIN.
    The official `refs(unc).p` is a pickle, which could run any code: it is never loaded. Where you trust its source,
    write its list as JSON once: `json.dump(pickle.load(open("refs(unc).p", "rb")), open("refs.json", "w"))`.

    Args:
        split: what is read.
        suffix: put after every prompt.
        prompt: what is asked; `{}` is the expression.
        instances: COCO's file of boxes, relative to the expressions' folder.
        part: name of the split in the file (`val`, `testA`, `testB`); by default `train`, and `val` for `split: test`.
        pad: `square` as above, `none` for shares of the image's own width and height.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        suffix: str = "",
        prompt: str = PROMPT,
        instances: str = "instances.json",
        part: str = "",
        pad: Literal["square", "none"] = "square",
    ) -> None:
        self.split, self.suffix, self.prompt, self.instances = split, suffix, prompt, instances
        self.part, self.pad = part or {"train": "train", "test": "val"}[split], pad

    def signs(self) -> Sequence[str]:
        """Of an expression."""
        return ("ref_id", "ann_id", "sentences")

    def collect(self, reading: Reading) -> None:
        """One sample per sentence of the split."""
        if reading.path.suffix in (".p", ".pkl", ".pickle"):
            hint = "write its list as JSON once, in a place where its code may run; `mmcl describe refcoco` says how"
            reading.fail("this is a pickle, which could run any code, so it is not loaded", hint)
            return
        boxes = reading.path.parent / self.instances
        if not boxes.is_file():
            reading.fail(
                f"there is no {self.instances} beside it", "put COCO's file there, or name it by `instances`", boxes
            )
            return
        content, table = reading.load(), reading.load(boxes)
        if content is None or table is None:
            return
        known = table if isinstance(table, dict) else {}
        found = {str(row.get("id")): row for row in reading.rows(known.get("annotations"), "`annotations`")}
        images = {str(row.get("id")): row for row in reading.rows(known.get("images"), "`images`")}
        for row in reading.rows(content, "the file"):
            try:
                if reading.text(row, "split") != self.part:
                    continue
                box = found.get(reading.text(row, "ann_id"))
                image = images.get(reading.text(row, "image_id"))
                if box is None or image is None:
                    raise reading.wrong(
                        "ann_id", f"{self.instances} lacks its box or image", "give the set's own instances"
                    )
                size = reading.get(image, "width", int), reading.get(image, "height", int)
                answer = self.box(reading, box, size)
                for place, sentence in enumerate(reading.texts(row, "sentences", "sent")):
                    key = f"{reading.text(row, 'ref_id')}-{place}"
                    question = self.prompt.replace("{}", sentence)
                    reading.add(key, question, [answer], image=reading.text(image, "file_name"), size=list(size))
            except BadRow:
                continue

    def box(self, reading: Reading, row: Any, size: tuple[int, int]) -> str:
        """A COCO box (left, top, width, height in pixels) as text."""
        values = reading.get(row, "bbox", list)
        if len(values) != 4 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            raise reading.wrong("bbox", "the box is not four numbers", "`bbox` is [left, top, width, height]")
        width, height = size
        if width < 1 or height < 1:
            raise reading.wrong("width", f"the image is {width} x {height}", "give its size in pixels")
        left, top, wide, high = values
        side = max(width, height)
        across, down = (side, side) if self.pad == "square" else (width, height)
        right, below = ((side - width) / 2, (side - height) / 2) if self.pad == "square" else (0.0, 0.0)
        corners = (
            (left + right) / across,
            (top + below) / down,
            (left + wide + right) / across,
            (top + high + below) / down,
        )
        return "[" + ",".join(f"{corner:.2f}" for corner in corners) + "]"
