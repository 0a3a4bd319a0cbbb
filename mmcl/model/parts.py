"""Names of a model's parts, and which parameters they mean."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from mmcl.errors import UserError

PARTS = ("encoder", "encoder.lora", "projector", "experts", "language.lora", "language")
_TOWERS = ("encoder", "language")


def part_of(name: str) -> str:
    """The part of a parameter, for learning rates and reports: one of `PARTS`."""
    part = name.split(".", 1)[0]
    return f"{part}.lora" if part in _TOWERS and ".lora_" in name else part


def rate_of(name: str, rates: Mapping[str, float], default: float) -> float:
    """The learning rate of a parameter: that of the longest key that means it."""
    keys = [key for key in rates if _matches(name, key)]
    return rates[max(keys, key=len)] if keys else default


def select_parameters(names: Collection[str], patterns: Iterable[str]) -> set[str]:
    """Names that the patterns mean.

    A pattern is `encoder` or `language` (their own weights), `encoder.lora`, `language.lora` (the shared adapter),
    `language.lora.NAME`, `projector`, `experts` or `experts.NAME`, the first words of full parameter names, such as
    `encoder.network.blocks.11`, or a glob over these, such as `language.*self_attn*`.

    Raises:
        UserError: a pattern names nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if _matches(name, pattern)}
        if not found:
            raise UserError(f"`{pattern}` names no parameter of the model", where="model.train", hint=_hint(pattern))
        chosen |= found
    return chosen


def check_state(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, needed: Collection[str]) -> None:
    """Whether a checkpoint fits a model.

    Args:
        tensors: of the checkpoint.
        own: of the model.
        needed: names that the checkpoint must have.

    Raises:
        UserError: it has a tensor that the model lacks or has in another shape, or lacks one.
    """
    wrong = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    missing = [name for name in needed if name not in tensors]
    if wrong or missing:
        raise UserError(
            f"the checkpoint does not fit the model: {', '.join((wrong + missing)[:5])}",
            hint="the recipe was changed, or the file belongs to another run",
        )


def _hint(pattern: str) -> str:
    if pattern == "encoder.lora":
        return "add `encoder_lora: {rank: 8}` to model, or leave it out of `train`"
    if pattern.startswith("language.lora"):
        return "add `lora: {rank: 16}` to model.language, or leave it out of `train`"
    if pattern in PARTS:  # the projector `identity`, for one; the default of `train` names the projector
        return f"the model's part `{pattern}` has no parameters: leave it out, as in `train: [language.lora]`"
    near = difflib.get_close_matches(pattern, PARTS, 1)
    return f"did you mean `{near[0]}`?" if near else f"parts are {', '.join(PARTS)}, or a glob"


def _matches(name: str, pattern: str) -> bool:
    if "*" in pattern or "?" in pattern:
        return fnmatch.fnmatchcase(name, pattern)
    if pattern in (*_TOWERS, "encoder.lora"):
        return part_of(name) == pattern
    if pattern == "language.lora" or pattern.startswith("language.lora."):
        adapter = pattern.removeprefix("language.lora").lstrip(".") or "default"
        return part_of(name) == "language.lora" and f".{adapter}." in name
    return name.startswith(pattern + ".")
