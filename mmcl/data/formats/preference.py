"""Preference pairs in the layouts that people have: as a conversation that ends with the preferred answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcl.data.formats.json_rows import kind

KEYS = ("rejected", "rejected_response", "rejected_conversations")
_TALKS = ("conversations", "messages")


def unpaired(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], str, tuple[str, str] | None]:
    """A row of a preference set as a plain conversation, and the answer that was not preferred.

    Read are `conversations` or `messages` with `chosen` and `rejected` (LLaMA-Factory), `prompt` with both, as texts or
    as messages (TRL), `question` with both (RLHF-V), a conversation that ends with the preferred answer beside
    `rejected` or `rejected_response` (ms-swift). An answer is text, a turn, or a conversation whose last turn counts.

    Returns:
        The row, the rejected answer (empty where the row is no pair), and a key with what is wrong about it.
    """
    key = next((key for key in KEYS if data.get(key) is not None), "")
    if not key:
        return data, "", None
    rejected = _reply(data[key])
    if not rejected:
        return data, "", (key, f"`{key}` is {kind(data[key])} without an answer")
    rest = {name: value for name, value in data.items() if name not in (key, "chosen")}
    if data.get("chosen") is None:
        return rest, rejected, None
    chosen = _reply(data["chosen"])
    if not chosen:
        return data, "", ("chosen", f"`chosen` is {kind(data['chosen'])} without an answer")
    talk = next((name for name in _TALKS if isinstance(rest.get(name), list)), "")
    asked = rest[talk] if talk else None
    for name in ("prompt", "question"):
        if asked is None and rest.get(name) is not None:
            value = rest.pop(name)
            asked = value if isinstance(value, list) else [{"role": "user", "content": _with_image(value, rest)}]
    if asked is None and isinstance(data["chosen"], list):
        return {**rest, "messages": data["chosen"]}, rejected, None
    if asked is None:
        return data, "", ("chosen", "the pair has no question; `prompt`, `question` or `conversations` holds it")
    return {**rest, talk or "messages": [*asked, _turn(asked, chosen)]}, rejected, None


def _reply(value: Any) -> str:
    """The last answer in a text, a turn or a conversation; empty where there is none."""
    if isinstance(value, list):
        value = value[-1] if value else None
    if isinstance(value, dict):
        value = value.get("value", value.get("content"))
    if isinstance(value, list):
        value = "\n".join(str(part.get("text", "")) for part in value if isinstance(part, dict))
    return value.strip() if isinstance(value, str) else ""


def _turn(asked: Any, text: str) -> dict[str, str]:
    """An answer in the manner of the conversation."""
    first = asked[0] if asked and isinstance(asked[0], dict) else {}
    return {"from": "gpt", "value": text} if "from" in first else {"role": "assistant", "content": text}


def _with_image(value: Any, row: Mapping[str, Any]) -> Any:
    """A plain question; placeholders are put before it where the row has images and it has none."""
    images = row.get("image", row.get("images"))
    count = len(images) if isinstance(images, list) else int(bool(images))
    return value if not isinstance(value, str) or "<image>" in value else "<image>\n" * count + value
