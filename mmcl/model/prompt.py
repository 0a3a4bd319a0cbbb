"""From a sample's turns to token ids: the one place where text becomes tokens, in training and at test time alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Turn
from mmcl.errors import UserError

CACHE_TOKENS = 4_000_000
"""The tokens of so many prompts are kept, about 70 MB: a long stream must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Picture:
    """How an image stands in a prompt.

    Attributes:
        text: that it becomes, with a ready VLM's image token once per run of visual tokens; empty for one run alone.
        runs: visual tokens of each run.
    """

    text: str
    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised sample.

    Attributes:
        ids: token ids; `-1 - k` stands for a run of visual tokens of image k of the sample, to be expanded.
        supervised: for each id, whether it is a target of the loss.
    """

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]


_Key = tuple[tuple[Turn, ...], tuple[bool, ...], tuple[str, ...]]


class Prompt:
    """Renders and tokenises conversations.

    Prompt and answer are tokenised apart, so that a prompt has the same tokens whether its answer follows (training)
    or not (generation).

    Args:
        tokenizer: of the language model.
        style: `chat` uses the tokenizer's chat template; `plain` writes each user turn on a line of its own and the
            answer with an end-of-sequence token on the next; `auto` is `chat` where the tokenizer has a template.
        system: a system message put before every conversation that has none (chat style only; empty for none).
        template: chat template that is not the tokenizer's but its processor's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        style: Literal["auto", "chat", "plain"] = "auto",
        system: str = "",
        template: str | None = None,
    ) -> None:
        self.tokenizer: Any = tokenizer
        has_template = bool(template or getattr(tokenizer, "chat_template", None))
        if style == "chat" and not has_template:
            raise UserError(
                "the tokenizer has no chat template", where="model.prompt.style", hint="use `plain`, or another model"
            )
        self.style = ("chat" if has_template else "plain") if style == "auto" else style
        self.system = system
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token", where="model.language.weights")
        self.eos = int(tokenizer.eos_token_id)
        self._cache: dict[_Key, Encoded] = {}
        self._cached = 0
        probe = self.tokenizer("a")["input_ids"]
        bos = tokenizer.bos_token_id
        self.bos = (bos,) if bos is not None and len(probe) > 1 and probe[0] == bos else ()

    def encode(self, sample: Sample, supervise: Sequence[bool], pictures: Sequence[Picture] = ()) -> Encoded:
        """Tokenise a sample.

        Args:
            sample: ends with an assistant turn (training), or with a user turn (a question to be answered).
            supervise: for each turn, whether its tokens are targets.
            pictures: how each of the sample's images stands in the text.

        Raises:
            UserError: the placeholders do not match the images.
        """
        placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns)
        if placeholders != len(sample.images):
            raise UserError(
                f"{placeholders} `{IMAGE_PLACEHOLDER}` placeholders, but {len(sample.images)} images",
                where=f"task {sample.task}, sample {sample.id}",
                hint=f"write `{IMAGE_PLACEHOLDER}` once for each image in the user's turns",
            )
        key = (sample.turns, tuple(supervise), tuple(picture.text for picture in pictures))
        if key not in self._cache:
            self._keep(key, self._encode(*key))
        return self._cache[key]

    def _keep(self, key: _Key, encoded: Encoded) -> None:
        """Keep the newest prompts."""
        self._cached += len(encoded.ids)
        while self._cache and self._cached > CACHE_TOKENS:
            self._cached -= len(self._cache.pop(next(iter(self._cache))).ids)
        self._cache[key] = encoded

    def _encode(self, turns: tuple[Turn, ...], supervise: tuple[bool, ...], pictures: tuple[str, ...]) -> Encoded:
        ids: list[int] = []
        targets: list[bool] = []
        images = 0
        for text, target in self._spans(turns, supervise):
            for part, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
                if part:
                    ids.append(-1 - images)
                    targets.append(False)
                    images += 1
                tokens = self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
                ids.extend(tokens)
                targets.extend([target] * len(tokens))
        if self.style == "plain" or is_document(turns):
            ids = [*self.bos, *ids]
            targets = [*[False] * len(self.bos), *targets]
        return Encoded(tuple(ids), tuple(targets))

    def _spans(self, turns: tuple[Turn, ...], supervise: tuple[bool, ...]) -> list[tuple[str, bool]]:
        """The rendered conversation, cut where supervision changes and before every assistant turn.

        A document is no conversation: it stands there as it is, whatever the style.
        """
        if self.style == "plain" or is_document(turns):
            end = self.tokenizer.decode([self.eos])
            return [
                (turn.text + (end if turn.role == "assistant" else "\n"), target)
                for turn, target in zip(turns, supervise, strict=True)
            ]
        spans = []
        done = ""
        for index, (turn, target) in enumerate(zip(turns, supervise, strict=True)):
            if turn.role == "assistant":
                full = self._render(turns[: index + 1], opened=False)
                full = full.removeprefix(done)
                # The template may put white space after its end-of-turn token; the model never has to say it.
                stripped = full.rstrip()
                spans.append((stripped, target))
                done += full
                if full != stripped and index + 1 < len(turns):
                    spans.append((full[len(stripped) :], False))
            else:
                opened = index + 1 == len(turns) or turns[index + 1].role == "assistant"
                full = self._render(turns[: index + 1], opened=opened)
                spans.append((full.removeprefix(done), target))
                done = full
        return spans

    def _render(self, turns: tuple[Turn, ...], *, opened: bool) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        if turns[0].role != "system" and self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        return text


def is_document(turns: Sequence[Turn]) -> bool:
    """Whether the turns are text to read and no conversation; see `Sample.document`."""
    return len(turns) == 1 and turns[0].role == "assistant"
