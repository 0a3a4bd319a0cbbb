"""Language models in a GGUF file, dequantised to plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and the tokenizer of a GGUF file as ordinary, trainable transformers objects.

    Raises:
        ValueError, KeyError, OSError: from gguf or transformers, if they do not know the file's contents.
    """
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        # Without this, transformers >= 5.2x keeps the weights packed where it finds kernels: they could not train.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    quantised: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype, **options)
    # The loader marks the model as quantised and untrainable; the same weights in a fresh model are neither.
    config = quantised.config
    for leftover in ("quantization_config", "_model_name_or_path"):
        vars(config).pop(leftover, None)
    model: Any = type(quantised).from_pretrained(None, config=config, state_dict=quantised.state_dict(), dtype=dtype)
    model.generation_config = quantised.generation_config
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    _restore_pre_tokenizer(path, tokenizer)
    return model, tokenizer


def _restore_pre_tokenizer(path: Path, tokenizer: Any) -> None:
    """Put back SmolLM's cutting of digits, which transformers leaves out: without it, spaces before a number differ."""
    field = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
