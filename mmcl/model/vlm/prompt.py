"""Prompts in a ready VLM's own words: its chat template, its image tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from mmcl.data.types import IMAGE_PLACEHOLDER, Turn
from mmcl.errors import UserError
from mmcl.model.prompt import Encoded, Prompt, is_document
from mmcl.model.vlm.reading import Reader


class VLMPrompt(Prompt):
    """Renders and tokenises conversations as the VLM's processor does.

    White space beside an image's placeholder is the data format's (a line break in LLaVA's files); with a chat template
    it is left out, for the template has its own. An answer ends with an end-of-sequence token even where the template
    has none after it: else the model would not learn to stop.

    Args:
        reader: has the processor.
        image_id: of the image token.
        stop: ids of the tokens that end an answer.
        style: see `Prompt`.
        system: see `Prompt`.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        image_id: int,
        stop: Collection[int],
        style: Literal["auto", "chat", "plain"] = "auto",
        system: str = "",
    ) -> None:
        self.reader = reader
        self.image_id = image_id
        self.processor: Any = reader.processor
        self.stop = frozenset(stop)
        super().__init__(
            self.processor.tokenizer,
            style=style,
            system=system,
            template=getattr(self.processor, "chat_template", None),
        )

    def _encode(self, turns: tuple[Turn, ...], supervise: tuple[bool, ...], pictures: tuple[str, ...]) -> Encoded:
        self._check(turns)
        markers = iter(k for k, text in enumerate(pictures) for _ in range(text.count(self.reader.image_token)))
        rest = iter(pictures)
        ids: list[int] = []
        targets: list[bool] = []
        for number, (text, target) in enumerate(self._spans(turns, supervise)):
            first, *others = text.split(self.reader.placeholder)
            whole = first + "".join(next(rest) + piece for piece in others)
            if number == 0 and not self.reader.family.bos_after_images and not whole.startswith(self._bos_text):
                ids, targets = [*self.bos], [False] * len(self.bos)
            tokens = self.tokenizer(whole, add_special_tokens=False)["input_ids"] if whole else []
            ids += [-1 - next(markers) if token == self.image_id else token for token in tokens]
            targets += [target] * len(tokens)
        return Encoded(tuple(ids), tuple(targets))

    @property
    def _bos_text(self) -> str:
        return self.tokenizer.bos_token or "\0"

    def _check(self, turns: tuple[Turn, ...]) -> None:
        """Text that looks like the VLM's image token would be taken for one."""
        for token in {self.reader.placeholder, self.reader.image_token} - {IMAGE_PLACEHOLDER}:
            for turn in turns:
                if token in turn.text:
                    raise UserError(
                        f"the text has `{token}`, which the model takes for an image",
                        where=f"turn {turn.text[:60]!r}",
                        hint=f"write `{IMAGE_PLACEHOLDER}` for an image, and nothing of the kind else",
                    )

    def _spans(self, turns: tuple[Turn, ...], supervise: tuple[bool, ...]) -> list[tuple[str, bool]]:
        if self.style == "chat" and not is_document(turns):
            return [self._ended(text, target, turns) for text, target in super()._spans(turns, supervise)]
        end = self.tokenizer.decode([self.eos])
        spans = []
        for number, (turn, target) in enumerate(zip(turns, supervise, strict=True)):
            if turn.role == "assistant" and not is_document(turns):
                spans.append((turn.text + end, target))
                continue
            text = turn.text.replace(IMAGE_PLACEHOLDER, self.reader.placeholder)
            if self.reader.family.bos_after_images:
                images = self.reader.placeholder * turn.text.count(IMAGE_PLACEHOLDER)
                bos = self._bos_text if number == 0 else ""
                text = images + bos + turn.text.replace(IMAGE_PLACEHOLDER, "").strip()
            spans.append((text + (end if is_document(turns) else "\n"), target))
        return spans

    def _ended(self, text: str, target: bool, turns: tuple[Turn, ...]) -> tuple[str, bool]:
        """An answer's span with a token at its end that ends it."""
        if not target or not text:
            return text, target
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (text if tokens[-1] in self.stop else text + self.tokenizer.decode([self.eos])), target

    def _render(self, turns: tuple[Turn, ...], *, opened: bool) -> str:
        messages = [{"role": turn.role, "content": _content(turn)} for turn in turns]
        if turns[0].role != "system" and self.system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        text: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        return text


def _content(turn: Turn) -> list[dict[str, str]]:
    """A turn as processors take it: texts and images in order."""
    if IMAGE_PLACEHOLDER not in turn.text:
        return [{"type": "text", "text": turn.text}]
    content: list[dict[str, str]] = []
    for number, piece in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
        if number:
            content.append({"type": "image"})
        if piece.strip():
            content.append({"type": "text", "text": piece.strip()})
    return content
