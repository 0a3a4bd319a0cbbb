"""Corrections for model editing, in the layout of MMEdit and VLKEB."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.data.formats.official import BadRow, Official, Reading, Split


class MMEdit(Official):
    """Edits with rephrasings and unrelated questions (MMEdit, Cheng et al. 2023, 2310.08475; VLKEB, 2403.07350).

    Training has the edits (`src` -> `alt`); test asks each (group `edit`), its rephrasing (`rephrase`), with another
    image where there is one, and the unrelated questions (`loc`, and `m_loc_q` with its own image; group `locality`).

    Args:
        split: what the file is used for.
        suffix: put after every question.
        repeat: so many training rows of each edit.
    """

    def __init__(self, *, split: Split = "train", suffix: str = "", repeat: int = 1) -> None:
        self.split, self.suffix, self.repeat = split, suffix, repeat

    def signs(self) -> Sequence[str]:
        """Of an edit."""
        return ("src", "alt", "rephrase")

    def collect(self, reading: Reading) -> None:
        """Edits in the order of the file."""
        content = reading.load()
        for row in reading.rows(content, "the file") if content is not None else ():
            try:
                key, image = reading.number, reading.text(row, "image") if row.get("image") else ()
                question, answer = reading.text(row, "src"), reading.text(row, "alt")
                if self.split == "train":
                    for place in range(self.repeat):
                        reading.add(f"{key}-{place}", question, [answer], image=image, group="edit")
                    continue
                reading.add(f"{key}-edit", question, [answer], image=image, group="edit")
                if row.get("rephrase"):
                    other = reading.text(row, "image_rephrase") if row.get("image_rephrase") else image
                    reading.add(
                        f"{key}-rephrase", reading.text(row, "rephrase"), [answer], image=other, group="rephrase"
                    )
                if row.get("loc"):
                    known = [reading.text(row, "loc_ans")]
                    reading.add(f"{key}-locality", reading.text(row, "loc"), known, group="locality")
                if row.get("m_loc_q"):
                    known, shown = [reading.text(row, "m_loc_a")], reading.text(row, "m_loc")
                    asked = reading.text(row, "m_loc_q")
                    reading.add(f"{key}-locality-image", asked, known, image=shown, group="locality")
            except BadRow:
                continue
