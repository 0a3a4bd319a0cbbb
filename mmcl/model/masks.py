"""Attention masks in the form that a language model takes, from what each position may see.

Shapes: B rows, Q query positions, K key positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Mask = Tensor | dict[str, Tensor]

FULL, SLIDING = "full_attention", "sliding_attention"


class Masks:
    """Makes masks for one language model.

    Args:
        language: its configuration says which layers have a sliding window.
    """

    def __init__(self, language: PreTrainedModel) -> None:
        config: Any = language.config.get_text_config()
        self._language = (language,)  # in a tuple: not a submodule of whatever holds this
        self.window: int | None = window_of(config)
        kinds = getattr(config, "layer_types", None)
        self.mixed = self.window is not None and kinds is not None

    def __call__(
        self, visible: Tensor, *, query: Tensor | None = None, key: Tensor | None = None, block: Tensor | None = None
    ) -> Mask:
        """Additive masks [B, 1, Q, K]; one per kind of layer where the model has several.

        Args:
            visible: bool [B, Q, K]; True where a query position may see a key position.
            query: [B, Q], positions as the model counts them; only windows need them.
            key: [B, K], likewise.
            block: bool [B, Q, K]; where both are of one block, which a window does not part.
        """
        if self.window is None:
            return self._additive(visible)
        if query is None or key is None:
            raise ValueError("a window needs positions")
        near = query[:, :, None] - key[:, None, :] < self.window
        if block is not None:
            near = near | block
        sliding = self._additive(visible & near)
        return {FULL: self._additive(visible), SLIDING: sliding} if self.mixed else sliding

    def _additive(self, visible: Tensor) -> Tensor:
        language = self._language[0]
        mask = torch.zeros(visible.shape, dtype=language.dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)[:, None]


def window_of(config: Any) -> int | None:
    """How many positions back the layers with a window see, a position itself counted; None if no layer has one."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return None
    return int(window) if kinds is None or SLIDING in kinds else None
