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
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "mmcl_documents"
SHORT = 512
"""Up to this length a document's scores fit the caches of a core."""
SHORT_ROW = 256
"""Up to this length a row attends as a whole: a fifth of the products, for pairs that a dense mask then hides."""
PLAIN = ("position_bias", "softcap", "cache", "is_causal", "s_aux")
"""What would change the attention itself, among the keywords that layers pass."""


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
    if layout is None:
        return _one(module, query, key, value, attention_mask, **kwargs), None
    parts = zip(
        *(torch.split_with_sizes(tensor, layout.lengths, dim=2) for tensor in (query, key, value)),
        layout.masks,
        strict=True,
    )
    return torch.cat([_one(module, *part, **kwargs) for part in parts], dim=1), None


def _one(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """By products where these are faster and say the same, else stock."""
    if (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[0] == 1
        and query.shape[2] <= SHORT
        and mask is not None
        and mask.is_floating_point()
        and not kwargs.get("dropout")
        and all(kwargs.get(name) is None for name in PLAIN)
    ):
        return by_products(query, key, value, mask, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention by plain matrix products, for short documents in bfloat16 on CPUs.

    There the fused kernel of torch takes three times as long, most of it in its backward pass. Heads that share keys
    and values form one matrix.

    Args:
        query: [1, H, L, head].
        key: [1, H', L', head]; H' divides H.
        value: [1, H', L', head].
        mask: additive, [1, 1, L, L'].
        scale: of the products.

    Returns:
        [1, L, H, head].
    """
    _, heads, length, _ = query.shape
    groups = key.shape[1]
    stacked = query.reshape(groups, -1, query.shape[-1])
    # A large score rounded to 8 bits would be off by per cents after the exponential.
    scores = torch.bmm(stacked.float(), key[0].float().transpose(1, 2)).view(groups, -1, length, key.shape[2])
    weights = (scores * scale + mask[0]).softmax(-1).to(query.dtype)
    mixed = torch.bmm(weights.view(groups, -1, key.shape[2]), value[0])
    return mixed.view(1, heads, length, -1).transpose(1, 2)


def attend_by_document(language: PreTrainedModel) -> bool:
    """Switch a language model to `attend` if that is what its attention layers can take.

    Returns:
        Whether it was switched: only if it ran on stock SDPA and a trial row gives the same results.
    """
    if language.config._attn_implementation != "sdpa" or not language._can_set_attn_implementation():
        return False
    with torch.no_grad():
        row, layout = _trial(language)
        unmasked = {**row, "attention_mask": torch.zeros_like(row["attention_mask"])}
        expected = language(**row).logits.float()
        wrong = language(**unmasked).logits.float()
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)  # for masks that say which tokens are padding
        language.set_attn_implementation(NAME)
        # Without the row's mask, only a model whose every layer asks `attend` can come out right.
        with documents_apart(layout):
            got = language(**unmasked).logits.float()
    # By how much the mask matters is the yardstick: rounding, in whatever number format, is far below it.
    if float((got - expected).norm()) < 0.2 * float((wrong - expected).norm()):
        return True
    language.set_attn_implementation("sdpa")
    return False


def _trial(language: PreTrainedModel) -> tuple[dict[str, Any], Layout]:
    """A row of two documents, 5 and 3 long."""
    weight = cast(nn.Embedding, language.get_input_embeddings()).weight
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 8, weight.shape[1], generator=generator).mul_(float(weight.float().std()))
    lengths = (5, 3)
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    visible = (document[:, None] == document[None]).tril()
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
