"""Greedy decoding. Packed: the questions of a row share their image's prefix and its key-value cache, and each step
decodes the next token of every unfinished question at once, each seeing only its own branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from mmcl.data.types import Samples
from mmcl.model.attention import documents_apart
from mmcl.model.kernels import casts_kept
from mmcl.model.language import CACHE
from mmcl.protocols import Batch, Route

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly


@torch.no_grad()
def generate(
    model: Assembly,
    samples: Samples,
    routes: Sequence[Route] | None = None,
    *,
    max_new_tokens: int,
    row_tokens: int | None = None,
    track: Callable[[list[Batch]], Iterable[Batch]] = iter,
) -> list[str]:
    """Answers to the last user turn of each sample, in order; the text up to the first end-of-sequence token.

    Args:
        model: the assembly; it is in evaluation mode at all times.
        samples: trailing assistant turns are ignored.
        routes: one per sample; default: base.
        max_new_tokens: at most so many tokens per answer.
        row_tokens: length of a packed row; None: the model's own.
        track: wraps the list of rows, to show progress.
    """
    questions = [s.replace(turns=s.turns[:-1]) if s.reply else s for s in samples]
    items = model.items(questions, routes, [[False] * len(question.turns) for question in questions])
    # Equal ids do not tell samples apart (test samples may come without one): the object does.
    index = {id(item.sample): place for place, item in enumerate(items)}
    if len(index) != len(items):  # the same object twice
        items = [replace(item, sample=item.sample.replace()) for item in items]
        index = {id(item.sample): place for place, item in enumerate(items)}
    answers = [""] * len(items)
    stop = stop_tokens(model)
    for batch in track(model.batches(items, row_tokens, packed=model.explicit)):
        with model.adapters.active(batch.routes[0].adapters), casts_kept():
            if model.explicit:
                tokens = _decode_packed(model, batch, max_new_tokens, stop)
            else:
                tokens = _decode_padded(model, batch, max_new_tokens, stop)
        for sample, ids in zip(batch.samples, tokens, strict=True):
            answers[index[id(sample)]] = str(model.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return answers


def stop_tokens(model: Assembly) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's and the generation config's."""
    config = getattr(model.language, "generation_config", None)
    more = getattr(config, "eos_token_id", None) or []
    return frozenset([model.prompt.eos, *([more] if isinstance(more, int) else more)])


@dataclass(frozen=True, slots=True)
class Prefill:
    """The questions of a one-row batch, read.

    Attributes:
        cache: keys and values of the row.
        logits: [questions, V], of the token after each question.
        visible: bool [questions, L]; what the last token of each question sees.
        position: [questions]; of that token.
        row: [L]; positions of the row's tokens, for models with attention windows.
    """

    cache: DynamicCache
    logits: Tensor
    visible: Tensor
    position: Tensor
    row: Tensor


def prefill(model: Assembly, batch: Batch) -> Prefill:
    """Run the questions of a one-row batch, each image and shared prefix once."""
    device = model.device
    # A cache that knows of windows drops what it takes to be out of sight, which is wrong for a row of many questions.
    cache = DynamicCache() if model.masks.window is not None else DynamicCache(config=model.language.config)
    where = batch.where.to(device)
    keep: dict[str, Any] = {"logits_to_keep": where} if model.adapters.takes_logits_to_keep else {}
    mask = model.attention(batch)
    positions = batch.position_ids.to(device)
    with documents_apart(model.layout(batch, mask)):
        out = model.language(
            **model.inputs(batch),
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{CACHE: cache},
            **keep,
        )
    logits = out.logits[0] if keep else out.logits[0, where]
    # A question's last token is text, whose positions in time, height and width are the same.
    flat = positions[0, 0] if positions.ndim == 3 else positions[0]
    return Prefill(cache, logits, batch.visible[0].to(device)[where], flat[where], flat)


def further(model: Assembly, read: Prefill, visible: Tensor, position: Tensor, added: Tensor) -> dict[str, Any]:
    """Mask and positions for tokens [N] that follow a row that was read.

    Args:
        model: the assembly.
        read: the row.
        visible: bool [N, L + M]; what each sees of the row and of the M tokens added since, itself among them.
        position: [N]; of each.
        added: [M]; positions of the tokens added since.
    """
    key = torch.cat([read.row, added])[None]
    # Generated tokens are text: their positions in time, height and width are the same.
    return {
        "attention_mask": model.masks(visible[None], query=position[None], key=key),
        "position_ids": position[None].expand(3, 1, -1) if model.image_layout.deep_positions else position[None],
    }


def _decode_packed(model: Assembly, batch: Batch, max_new_tokens: int, stop: frozenset[int]) -> list[list[int]]:
    """Token ids of each sample of a one-row batch."""
    device = model.device
    embed = model.language.get_input_embeddings()
    read = prefill(model, batch)
    logits = read.logits
    owner = torch.empty(0, dtype=torch.long, device=device)  # of each generated token, in cache order
    places = torch.empty(0, dtype=torch.long, device=device)  # their positions
    active = torch.arange(len(batch.samples), device=device)
    tokens: list[list[int]] = [[] for _ in batch.samples]
    for step in range(max_new_tokens):
        chosen = logits.argmax(-1)
        ids = chosen.tolist()
        going = [k for k, token in enumerate(ids) if token not in stop]
        for k in going:
            tokens[int(active[k])].append(ids[k])
        if not going or step + 1 == max_new_tokens:
            break
        kept = torch.tensor(going, device=device)
        active, chosen = active[kept], chosen[kept]
        owner = torch.cat([owner, active])
        position = read.position[active] + step + 1
        places = torch.cat([places, position])
        visible = torch.cat([read.visible[active], owner[None] == active[:, None]], dim=1)
        out = model.language(
            inputs_embeds=embed(chosen)[None],
            use_cache=True,
            **{CACHE: read.cache},
            **further(model, read, visible, position, places),
        )
        logits = out.logits[0]
    return tokens


def _decode_padded(model: Assembly, batch: Batch, max_new_tokens: int, stop: frozenset[int]) -> list[list[int]]:
    """One question at a time, for models that cannot take packed rows (recurrent states, windows, ALiBi)."""
    embeds = model.inputs(batch)["inputs_embeds"]
    language = cast(Any, model.language)
    tokens = []
    for row in range(len(batch.samples)):
        length = int((~batch.is_padding[row]).sum())
        prompt: Tensor = embeds[row : row + 1, :length]
        out = language.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(1, length, dtype=torch.long, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(stop),
            pad_token_id=model.tokenizer.pad_token_id,
        )
        ids = out[0].tolist()
        end = next((k for k, token in enumerate(ids) if token in stop), len(ids))
        tokens.append(ids[:end])
    return tokens
