"""ScienceQA from its own two files."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.data.formats.json_rows import kind
from mmcl.data.formats.official import BadRow, Official, Reading, Split

LETTERS = "ABCDEFGH"


class ScienceQA(Official):
    """ScienceQA (Lu et al. 2022, 2209.09513): `problems.json` with `pid_splits.json` beside it.

    The question is followed by its context (if it has one) and the lettered choices; the answer is the letter. Images
    lie at `SPLIT/ID/image.png`; many questions have none.

    Args:
        split: what is read.
        suffix: put after every question.
        part: name of the split in `pid_splits.json`; by default that of `split`.
        images_only: leave out questions without an image.
        splits: the file of splits, relative to the problems' folder.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        suffix: str = "",
        part: str = "",
        images_only: bool = False,
        splits: str = "pid_splits.json",
    ) -> None:
        self.split, self.suffix = split, suffix
        self.part, self.images_only, self.splits = part or split, images_only, splits

    def signs(self) -> Sequence[str]:
        """Of an entry."""
        return ("question", "choices", "hint")

    def collect(self, reading: Reading) -> None:
        """One sample per problem of the split."""
        path = reading.path.parent / self.splits
        if not path.is_file():
            reading.fail(f"there is no {self.splits} beside it", "put it there, or name it by `splits`", path)
            return
        content, splits = reading.load(), reading.load(path)
        if content is None or splits is None:
            return
        listed = splits.get(self.part) if isinstance(splits, dict) else None
        if not isinstance(listed, list) or not isinstance(content, dict):
            there = ", ".join(splits) if isinstance(splits, dict) else kind(splits)
            reading.fail(f"no split `{self.part}` in it", f"name one by `part`; there are: {there}", path)
            return
        for reading.number, key in enumerate(map(str, listed), start=1):
            try:
                row = reading.get(content, key, dict)
                choices = reading.texts(row, "choices")
                place = reading.get(row, "answer", int)
                if not 0 <= place < len(choices) or len(choices) > len(LETTERS):
                    message = f"the answer is choice {place} of {len(choices)}"
                    raise reading.wrong(
                        "answer", message, f"`answer` counts from 0, and there are at most {len(LETTERS)}"
                    )
                image = row.get("image")
                if self.images_only and not image:
                    continue
                context = str(row.get("hint") or "").strip()
                lines = [reading.text(row, "question"), *([f"Context: {context}"] if context else [])]
                lettered = zip(LETTERS, choices, strict=False)
                lines += [f"{letter}. {choice}" for letter, choice in lettered]
                names = [f"{self.part}/{key}/{image}"] if isinstance(image, str) and image else []
                about = {"subject": row.get("subject"), "topic": row.get("topic")}
                question, group = "\n".join(lines), str(row.get("topic") or "")
                reading.add(key, question, [LETTERS[place]], image=names, group=group, **about)
            except BadRow:
                continue
