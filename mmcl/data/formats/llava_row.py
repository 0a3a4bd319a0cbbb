"""One row of a LLaVA JSON file -> a sample, with every mistake in it."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmcl.data.formats.json_rows import kind
from mmcl.data.images import FileImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Turn
from mmcl.errors import Problem, UserError

NAMED = 5
"""So many missing images are named."""

Split = Literal["auto", "train", "test"]
Ids = Literal["file", "row"]
Role = Literal["system", "user", "assistant"]

Mistake = tuple[int, str, str, str]
"""Place of the row, key, message, hint."""

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Names of LLaVA and ShareGPT (`from`) and of chat templates (`role`)."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_REFERENCES = frozenset({"answer", "answers", "answer_bbox", "text"})
_OTHER_MEDIA = ("video", "videos", "audio", "audios")


def missing_folder(path: Path) -> Problem:
    """The same problem whichever file names the folder, so that it can be told once."""
    return Problem(str(path), "the image folder does not exist", "correct `images`, or unpack the images there")


class ImageFolder:
    """The image folder: one `FileImage` per path, so that no file is hashed twice; and what is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.exists = path.is_dir()
        self.images: dict[str, FileImage] = {}
        self.missing: dict[str, int] = {}  # path -> first row

    def image(self, name: str, place: int) -> FileImage:
        """The image of that path.

        Raises:
            UserError: the path leaves the folder, or is none.
        """
        if name not in self.images:
            image = FileImage(self.path, name)
            if not os.path.isfile(image.where):  # Path.is_file raises where a name is too long
                self.missing[name] = place
            else:
                _ = image.path  # raises where a link leads out of the folder
            self.images[name] = image
        return self.images[name]

    def problems(self, file: Path) -> list[Problem]:
        """What is missing, for the data file that names it."""
        if not self.missing:
            return []
        if not self.exists:
            return [missing_folder(self.path)]
        named = ", ".join(
            f"{textwrap.shorten(name, 100)} (row {place})" for name, place in list(self.missing.items())[:NAMED]
        )
        more = f" and {len(self.missing) - NAMED} more" if len(self.missing) > NAMED else ""
        what = f"{len(self.missing)} of {len(self.images)} image files are missing: {named}{more}"
        hint = f"paths start at the image folder {self.path}: copy the images there, or correct the folder"
        return [Problem(str(file), what, hint)]


class Row:
    """Reads one row and collects its mistakes."""

    def __init__(self, data: Mapping[str, Any], place: int, split: Split, folder: ImageFolder) -> None:
        self.data = data
        self.place = place
        self.folder = folder
        self.used: set[str] = set()
        self.mistakes: list[Mistake] = []
        self.split = split
        self.id_key = "id"
        self.garbled = False  # turns are missing, so that their number and order mean nothing

    def wrong(self, key: str, message: str, hint: str) -> None:
        """Note a mistake; those of one kind share a hint."""
        self.mistakes.append((self.place, key, message, hint))

    def garble(self, key: str, message: str, hint: str) -> None:
        """Note a mistake that would make others appear."""
        self.garbled = True
        self.wrong(key, message, hint)

    def take(self, *keys: str) -> tuple[str, Any]:
        """The first of the keys that the row has, with its value; the last key and None where it has none."""
        present = [key for key in keys if self.data.get(key) is not None]
        self.used |= set(keys)
        if len(present) > 1:
            self.wrong(present[1], f"the row has `{present[0]}` too", f"keep one of `{'`, `'.join(keys)}`")
        return (present[0], self.data[present[0]]) if present else (keys[-1], None)

    def sample(self, task: str, ids: Ids, group: str) -> Sample:
        """The sample; of no use where there are mistakes."""
        inline: list[Any] = []
        turns = self.turns(inline)
        asks = bool(turns) and turns[-1].role == "user"
        test = self.split == "test" or (self.split == "auto" and asks and not _REFERENCES.isdisjoint(self.data))
        answers: tuple[str, ...] = ()
        if test:
            turns, answers = self.question(turns)
        elif asks and not self.garbled:
            key = next(key for key in ("conversations", "messages", "text") if self.data.get(key) is not None)
            hint = "a training row is a conversation that ends with a `gpt` (or `assistant`) turn"
            self.wrong(key, "no answer: the row ends with a question", hint)
        images = self.images(inline)
        self.placeholders(turns, len(images))
        for key in _OTHER_MEDIA:
            if self.data.get(key):
                self.wrong(key, f"mmcl can't read `{key}`", "leave such rows out, or turn them into images")
        identity = self.identity(test, ids)
        return Sample(
            id=identity,
            task=task,
            turns=tuple(turns),
            images=tuple(image for image in images if image is not None),
            answers=answers,
            group=self.group(group),
            metadata={key: value for key, value in self.data.items() if key not in self.used},
        )

    # --------------------------------------------------------------------------------------------------------- turns

    def turns(self, inline: list[Any]) -> list[Turn]:
        """The conversation; images inside contents are added to `inline`."""
        key, listed = self.take("conversations", "messages")
        result: list[Turn] = []
        if isinstance(self.data.get("system"), str):
            self.used.add("system")
            if self.data["system"].strip():
                result.append(Turn("system", self.text(self.data["system"], "system")))
        if listed is None and isinstance(self.data.get("text"), str):
            self.used.add("text")
            return [*result, Turn("user", self.filled(self.data["text"], "text", "question"))]
        if not isinstance(listed, list) or not listed:
            found = f"`{key}` is {'an empty list' if listed == [] else kind(listed)}"
            self.garble(
                key if listed is not None else "",
                found if listed is not None else f"the row has no conversation; its keys: {', '.join(self.data)}",
                "a row has `conversations` or `messages` (a list of turns), or `text` (a test question)",
            )
            return []
        for index, entry in enumerate(listed):
            turn = self.turn(entry, f"{key}.{index}", inline)
            if turn is None:
                continue
            if not self.garbled:
                self.follows(turn, result, f"{key}.{index}")
            result.append(turn)
        return result

    def turn(self, entry: Any, where: str, inline: list[Any]) -> Turn | None:
        """One turn, or None where it has no role."""
        if not isinstance(entry, dict):
            hint = 'a turn is {"from": "human", "value": "..."} or {"role": "user", "content": "..."}'
            self.garble(where, f"the turn is {kind(entry)}", hint)
            return None
        speaker, content = ("from", "value") if "from" in entry or "value" in entry else ("role", "content")
        role = ROLES.get(entry[speaker]) if isinstance(entry.get(speaker), str) else None
        text = entry.get(content)
        if isinstance(text, list):
            text = self.joined(text, f"{where}.{content}", inline)
        text = self.filled(text, f"{where}.{content}", f"{role or 'unknown'} turn")
        if role is None:
            named = f"unknown `{speaker}`: {json.dumps(entry.get(speaker))}" if speaker in entry else f"no `{speaker}`"
            self.garble(f"{where}.{speaker}", named, f"`{speaker}` is one of {', '.join(ROLES)}")
            return None
        if role != "user" and IMAGE_PLACEHOLDER in text:
            self.wrong(f"{where}.{content}", f"`{IMAGE_PLACEHOLDER}` in a turn of the {role}", "move it to a user turn")
        return Turn(role, text)

    def joined(self, parts: Sequence[Any], where: str, inline: list[Any]) -> str:
        """The text of a list of parts, with a placeholder for each image."""
        texts = []
        for index, part in enumerate(parts):
            form = part.get("type") if isinstance(part, dict) else None
            if form == "image":
                texts.append(IMAGE_PLACEHOLDER)
                inline += [part[key] for key in ("image", "path", "url") if part.get(key) is not None][:1]
            elif form == "text":
                texts.append(self.text(part.get("text"), f"{where}.{index}.text"))
            else:
                what = f"unknown type of part: {json.dumps(form)}"
                self.garble(f"{where}.{index}", what, 'parts are {"type": "image"} and {"type": "text", "text": "..."}')
        return "\n".join(texts)

    def follows(self, turn: Turn, before: Sequence[Turn], where: str) -> None:
        """Whether a turn may stand after these."""
        last = before[-1].role if before else None
        allowed = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}[last]
        if turn.role not in allowed:
            place = "at the start" if last is None else f"after one of the {last}"
            self.wrong(
                where,
                f"a turn of the {turn.role} {place}",
                "turns alternate between user and assistant, after at most one system turn",
            )

    def text(self, value: Any, where: str) -> str:
        """A text that every tokenizer takes."""
        if not isinstance(value, str):
            self.wrong(where, f"expected text, got {kind(value)}", "put the value in quotes")
            return "?"  # not empty: one mistake is enough
        if not value.isascii() and _SURROGATE.search(value):
            self.wrong(where, "the text holds half of a character (a lone surrogate)", "mend the \\ud... escape")
        return value

    def filled(self, value: Any, where: str, noun: str) -> str:
        """A text that is not empty."""
        text = self.text(value, where)
        if not text.strip():
            self.wrong(where, f"the {noun} is empty", "write its text, or leave the row out")
        return text

    # ----------------------------------------------------------------------------------------- references, images, id

    def question(self, turns: list[Turn]) -> tuple[list[Turn], tuple[str, ...]]:
        """The turns up to the question, and the references."""
        reply: list[str] = []
        if turns and turns[-1].role == "assistant":
            reply = [turns[-1].text]
            turns = turns[:-1]
        key, value = self.take("answer", "answers")
        if value is None and not reply and isinstance(self.data.get("answer_bbox"), str):
            key, value = "answer_bbox", self.data["answer_bbox"]
        if value is None:
            answers = reply
        else:
            listed = value if isinstance(value, list) else [value]
            answers = [self.answer(item, key) for item in listed]
        if not any(answer.strip() for answer in answers):
            self.wrong(key, "no answer", "a test question has an `answer`: text, or a list of the accepted texts")
        return turns, tuple(answers)

    def answer(self, item: Any, key: str) -> str:
        """One reference as text."""
        if isinstance(item, dict):
            item = item.get("answer")
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            return json.dumps(item)
        return self.text(item, key)

    def images(self, inline: list[Any]) -> list[FileImage | None]:
        """The images; None for those that can't be named."""
        key, value = self.take("image", "images")
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if inline and listed:
            self.wrong(key, "the contents name images too", "name images in one place")
        return [self.image(item, key if not inline else "content") for item in inline or listed]

    def image(self, item: Any, key: str) -> FileImage | None:
        """One image, from a path or an object that has a `path`."""
        if isinstance(item, dict):
            item = item.get("path")
        hint = f"image paths are relative to the image folder {self.folder.path}, without `..` and links out of it"
        if not isinstance(item, str) or not item.strip():
            found = "an empty path" if isinstance(item, str) else kind(item)
            self.wrong(key, f"the image is {found}", f"{hint}; leave `{key}` out of text-only rows")
        elif item.startswith("data:"):
            self.wrong(key, "the image is inside the row, as a data: address", "write it to a file and name that")
        else:
            try:
                return self.folder.image(item, self.place)
            except UserError as error:
                self.wrong(key, error.problems[0].message, hint)
        return None

    def placeholders(self, turns: list[Turn], images: int) -> None:
        """Count the placeholders; a question in `text` without any gets them in front."""
        count = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
        plain = isinstance(self.data.get("text"), str) and "text" in self.used
        if plain and images and not count:
            turns[-1] = Turn("user", f"{IMAGE_PLACEHOLDER}\n" * images + turns[-1].text)
        elif turns and not self.garbled and count != images:
            self.wrong(
                "image" if "image" in self.data else "images",
                f"{count} `{IMAGE_PLACEHOLDER}` in the text, {images} in the list of images",
                f"write `{IMAGE_PLACEHOLDER}` once for each image, where it stands in the user's text",
            )

    def identity(self, test: bool, ids: Ids) -> str:
        """The sample's id."""
        keys = ("question_id", "id") if test else ("id", "question_id")
        self.id_key = next((key for key in keys if self.data.get(key) is not None), keys[0])
        value = self.data.get(self.id_key)
        if ids == "row" or value is None:
            return str(self.place)
        self.used.add(self.id_key)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            self.wrong(self.id_key, f"the id is {kind(value)}", "an id is text or a whole number")
        return str(value)

    def group(self, key: str) -> str:
        """The sample's group, from that key."""
        if not key:
            return ""
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            what = f"`{key}` is {kind(value)}" if key in self.data else f"the row has no `{key}`"
            self.wrong(key, what, f"every row has the key `{key}`, which `group` names; its value is text")
        return str(value)
