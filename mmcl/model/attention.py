"""Attention of packed rows, document by document.

A row holds several documents that never see each other. A dense mask over the row spends most of its work on pairs
that it then hides; here each document attends on its own, through the attention interface of transformers. The linear
layers still see the whole row, so rows can be long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "mmcl_documents"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the documents of a row lie, one after another.

    Attributes:
        lengths: of each document; they sum to the row's length.
        masks: additive, [1, 1, length, length] each.
    """

    lengths: tuple[int, ...]
    masks: tuple[Tensor, ...]


_LAYOUT: ContextVar[Layout | None] = ContextVar("mmcl_layout", default=None)


@contextlib.contextmanager
def documents_apart(layout: Layout | None) -> Iterator[None]:
    """Inside, rows of the layout's length attend document by document (None: by their mask)."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def layout_of(mask: Tensor, lengths: Sequence[int]) -> Layout:
    """The layout of a row with an additive mask [1, 1, L, L]."""
    masks = []
    start = 0
    for length in lengths:
        masks.append(mask[:, :, start : start + length, start : start + length].contiguous())
        start += length
    return Layout(tuple(lengths), tuple(masks))


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Stock SDPA attention, once per document where a layout is set and keys and queries are a whole row.

    Args:
        module: the attention layer.
        query: [1, H, L, head].
        key: [1, H', L', head].
        value: as `key`.
        attention_mask: of the row; read only without a layout.
        kwargs: go to the stock function.

    Returns:
        [1, L, H, head], and no weights.
    """
    layout = _LAYOUT.get()
    if layout is None or len(layout.lengths) < 2:
        return cast(tuple[Tensor, None], sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs))
    parts = zip(*(tensor.split(layout.lengths, dim=2) for tensor in (query, key, value)), layout.masks, strict=True)
    return torch.cat(
        [sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0] for q, k, v, mask in parts], dim=1
    ), None


def attend_by_document(language: PreTrainedModel) -> bool:
    """Switch a language model to `attend` if that is what its attention layers can take.

    Returns:
        Whether it was switched: only if it ran on stock SDPA and a trial row gives the same hidden states.
    """
    if language.config._attn_implementation != "sdpa" or not language._can_set_attn_implementation():
        return False
    with torch.no_grad():
        row, layout = _trial(language)
        expected = language(**row).logits
        AttentionInterface.register(NAME, attend)
        language.set_attn_implementation(NAME)
        # Nonsense as the row's mask: only a model whose every layer asks `attend` can come out right.
        with documents_apart(layout):
            got = language(**{**row, "attention_mask": torch.zeros_like(row["attention_mask"])}).logits
    if got.shape == expected.shape and torch.allclose(got.float(), expected.float(), rtol=1e-2, atol=1e-3):
        return True
    language.set_attn_implementation("sdpa")
    return False


def _trial(language: PreTrainedModel) -> tuple[dict[str, Any], Layout]:
    """A row of two documents, 5 and 3 long."""
    weight = cast(nn.Embedding, language.get_input_embeddings()).weight
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 8, weight.shape[1], generator=generator).mul_(float(weight.float().std()))
    lengths = (5, 3)
    visible = torch.block_diag(*(torch.ones(length, length).tril() for length in lengths)).bool()
    mask = torch.zeros(1, 1, 8, 8, dtype=weight.dtype).masked_fill_(~visible, torch.finfo(weight.dtype).min)
    mask = mask.to(weight.device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(weight.device)
    row = {
        "inputs_embeds": embeds.to(weight),
        "attention_mask": mask,
        "position_ids": positions,
        "use_cache": False,
    }
    return row, layout_of(mask, lengths)
