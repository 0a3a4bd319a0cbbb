"""Corrections for model editing, in the layout of MMEdit and VLKEB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcl.data.formats.official import Listed, Reading, Split


class MMEdit(Listed):
    """Edits with rephrasings and unrelated questions (MMEdit, Cheng et al. 2023, 2310.08475; VLKEB, 2403.07350).

    Training has the edits (`src` -> `alt`); test asks each (group `edit`), its rephrasing (`rephrase`), with another
    image where there is one, and the unrelated questions (`loc`, and `m_loc_q` with its own image; group `locality`).

    Args:
        split: what the file is used for.
        suffix: put after every question.
        repeat: so many training rows of each edit.
    """

    def __init__(self, *, split: Split = "train", suffix: str = "", repeat: int = 1) -> None:
        super().__init__(split=split, suffix=suffix)
        self.repeat = repeat

    def signs(self) -> Sequence[str]:
        """Of an edit."""
        return ("src", "alt", "rephrase")

    def row(self, reading: Reading, row: Mapping[str, Any]) -> None:
        """An edit's rows."""
        key, image = reading.number, reading.text(row, "image") if row.get("image") else ()
        question, answer = reading.text(row, "src"), reading.text(row, "alt")
        if self.split == "train":
            for place in range(self.repeat):
                reading.add(f"{key}-{place}", question, [answer], image=image, group="edit")
            return
        reading.add(f"{key}-edit", question, [answer], image=image, group="edit")
        if row.get("rephrase"):
            other = reading.text(row, "image_rephrase") if row.get("image_rephrase") else image
            reading.add(f"{key}-rephrase", reading.text(row, "rephrase"), [answer], image=other, group="rephrase")
        if row.get("loc"):
            known = [reading.text(row, "loc_ans")]
            reading.add(f"{key}-locality", reading.text(row, "loc"), known, group="locality")
        if row.get("m_loc_q"):
            known, shown = [reading.text(row, "m_loc_a")], reading.text(row, "m_loc")
            reading.add(f"{key}-locality-image", reading.text(row, "m_loc_q"), known, image=shown, group="locality")
