"""Tiny language models: real architectures with random weights and a byte-level tokenizer, built in memory.

They serve tests and dry runs of a recipe (`language: {weights: "tiny:llama"}`): no file, no network, milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("system", "user", "assistant")
WIDTH = 64
LAYERS = 2
HEADS = 4
POSITIONS = 2048

_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS // 2,
    "max_position_embeddings": POSITIONS,
}
_FULL_HEADS = _LLAMA | {"num_key_value_heads": HEADS}
_HEAD_SIZE = {"head_dim": WIDTH // HEADS}

FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gemma2": _LLAMA | _HEAD_SIZE,
        "gemma3_text": _LLAMA | _HEAD_SIZE,
        "gpt2": {
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": POSITIONS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        "gpt_neox": _FULL_HEADS,
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "olmo2": _LLAMA,
        "opt": {
            "hidden_size": WIDTH,
            "word_embed_proj_dim": WIDTH,
            "ffn_dim": 2 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": POSITIONS,
            "dropout": 0.0,
        },
        "phi": _FULL_HEADS,
        "phi3": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA | _HEAD_SIZE,
    }
)
"""Model families of `tiny_model`, by `model_type` of transformers, with what makes each of them tiny."""


def tiny_tokenizer(**extra: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: each byte of UTF-8 text is a token, so that any text survives encoding and decoding.

    Args:
        **extra: further special tokens, by the attribute that holds them, such as `image_token`.

    Returns:
        A tokenizer with 262 tokens: padding, beginning, end, a marker for each role, 256 bytes; and the further ones.
        It adds no special token by itself, and its chat template writes `<|user|>question<|assistant|>answer<|eos|>`.
    """
    special = [PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    build: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = build(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
        extra_special_tokens=extra,
    )
    return wrapped


def tiny_model(family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model of two layers, width 64, whose vocabulary is that of `tiny_tokenizer`.

    Args:
        family: a key of `FAMILIES`.
        seed: of the random weights; the global random state is left as it was.
        dtype: of the weights.

    Raises:
        KeyError: unknown family.
    """
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        family,
        **FAMILIES[family],
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModelForCausalLM
        model: PreTrainedModel = auto.from_config(config, dtype=dtype).eval()
    return model
