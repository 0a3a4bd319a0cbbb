"""What a language model can take: whether packed rows are allowed, and how long a row may be."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedModel

from mmcl.errors import UserError
from mmcl.model.masks import FULL, SLIDING


def why_not_packed(language: PreTrainedModel) -> str:
    """Why the model cannot take a 4-D mask and explicit positions; empty if it can."""
    config: Any = language.config.get_text_config()
    name = type(language).__name__
    if getattr(language, "_is_stateful", False) or getattr(config, "is_recurrent", False):
        return f"{name} carries a recurrent state over the row"
    if not (getattr(language, "_supports_sdpa", False) or getattr(language, "_supports_attention_backend", False)):
        return f"{name} does not say that its attention takes a custom mask"
    kinds = set(getattr(config, "layer_types", None) or [FULL])
    if kinds - {FULL, SLIDING}:
        return f"{name} has layers of the kinds {', '.join(sorted(kinds - {FULL, SLIDING}))}"
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "") == "alibi":
        return f"{name} puts positions into the attention mask (ALiBi)"
    parameters = inspect.signature(language.forward).parameters
    if "position_ids" not in parameters:
        return f"{name} takes no explicit positions"
    return ""


def packs(language: PreTrainedModel, wanted: str) -> bool:
    """Whether to pack, given the recipe's `model.packing`.

    Raises:
        UserError: `packed` was insisted on, but the model cannot.
    """
    reason = why_not_packed(language)
    if wanted == "packed" and reason:
        raise UserError(reason, where="model.packing", hint="write `packing: padded` or `auto`")
    return wanted != "padded" and not reason


def context_length(language: PreTrainedModel) -> int:
    """The longest row in tokens that the model's positions allow."""
    config: Any = language.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    return 1 << 20
