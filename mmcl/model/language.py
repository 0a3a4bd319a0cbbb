"""Loads the language model and its tokenizer, from wherever the recipe says they are."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmcl.errors import UserError
from mmcl.fetch import MODELS, fetch
from mmcl.model.gguf import load_gguf
from mmcl.model.quiet import quiet
from mmcl.model.tiny import FAMILIES, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from mmcl.recipe.spec import LanguageSpec

WHERE = "model.language.weights"
TINY = "tiny:"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CACHE = (
    "cache" if "cache" in {field.name for field in dataclasses.fields(CausalLMOutputWithPast)} else "past_key_values"
)
"""What this version of transformers calls the cache of keys and values, of a model's arguments and outputs alike."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_language(spec: LanguageSpec, *, folder: Path, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, in evaluation mode, and its tokenizer; adapters are added elsewhere.

    Args:
        spec: its `weights` are one of: `tiny:FAMILY` (random weights), a name that `mmcl fetch` knows, a GGUF file,
            a folder, an id on the Hugging Face hub; its `dtype` is that of the loaded weights.
        folder: paths in `spec` are relative to it.
        seed: of the random weights of `tiny:FAMILY`.

    Returns:
        The model with transformers' default attention (`sdpa` where the architecture has it), and the tokenizer,
        which has a padding token. Code that comes with a checkpoint is never run.

    Raises:
        UserError: nothing there, no network, not a causal language model, incomplete or broken files.
    """
    weights, dtype = spec.weights, DTYPES[spec.dtype]
    model: Any
    tokenizer: Any
    with quiet():
        if weights.startswith(TINY):
            model, tokenizer = _tiny(weights.removeprefix(TINY), seed, dtype)
        elif weights.endswith(".gguf"):
            model, tokenizer = _from_gguf(folder / Path(weights).expanduser(), dtype)
        else:
            model, tokenizer = _from_pretrained(locate(weights, folder), weights, dtype)
    check_vocabulary(model, tokenizer, weights)
    ensure_padding_token(model, tokenizer, weights)
    return model.eval(), tokenizer


def _tiny(family: str, seed: int, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if family not in FAMILIES:
        known = [TINY + name for name in FAMILIES]
        raise UserError(f"no tiny model `{TINY}{family}`", where=WHERE, hint=did_you_mean(TINY + family, known))
    return tiny_model(family, seed=seed, dtype=dtype), tiny_tokenizer()


def _from_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not path.is_file():
        raise _missing(path)
    try:
        return load_gguf(path, dtype)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"cannot load {path}: {first_line(error)}",
            where=WHERE,
            hint="it must be a GGUF file of an architecture that transformers can dequantise",
        ) from error


def locate(weights: str, folder: Path, where: str = WHERE) -> str:
    """A local folder if there is one, else the name for the hub."""
    if weights in MODELS:
        try:
            return str(fetch(weights))
        except UserError as error:
            cause = error.problems[0]
            hint = f"{cause.hint} (`mmcl fetch {weights}` fetches it ahead of time)"
            raise UserError(cause.message, where=where, hint=hint) from error
    path = folder / Path(weights).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            files = sorted(file.name for file in path.glob("*.gguf"))
            raise UserError(
                f"{path} has no config.json",
                where=where,
                hint=f"did you mean `{weights.rstrip('/')}/{files[0]}`?" if files else "give a model's folder",
            )
        return str(path)
    if weights.startswith(("./", "../", "/", "~")) or not _HUB_ID.fullmatch(weights):
        raise _missing(path, where)
    if Path(weights).exists():
        # transformers would read it, but a recipe must not mean something else in another working directory
        raise UserError(
            f"`{weights}` is a path from the working directory, not from the recipe's folder {folder}",
            where=where,
            hint="paths in a recipe are relative to the recipe",
        )
    close = difflib.get_close_matches(weights.lower(), list(MODELS), n=1, cutoff=0.85)
    if close and "/" not in weights:  # said here, because the hub is asked for half a minute where there is no network
        raise UserError(f"no model `{weights}`", where=where, hint=f"did you mean `{close[0]}`?")
    return weights


def _from_pretrained(source: str, weights: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(
            f"cannot load `{weights}`: {first_line(error)}", where=WHERE, hint=_hint(source, weights)
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"`{weights}` lacks {len(missing)} of the model's tensors, such as {missing[0]}",
            where=WHERE,
            hint="the checkpoint must be a causal language model with all of its weights",
        )
    return model, tokenizer


def check_vocabulary(model: Any, tokenizer: Any, weights: str, where: str = WHERE) -> None:
    """Raises a UserError if the tokenizer has tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer of `{weights}` has {len(tokenizer)} tokens, the model only {rows} embeddings",
            where=where,
            hint="tokenizer and weights must belong together",
        )


def ensure_padding_token(model: Any, tokenizer: Any, weights: str) -> None:
    """Many checkpoints name none. Which token pads is of no consequence: padding is masked and never a target."""
    if tokenizer.pad_token_id is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise UserError(f"the tokenizer of `{weights}` has no padding, end or unknown token", where=WHERE)
        tokenizer.pad_token = stand_in
    for config in (model.config.get_text_config(), model.generation_config):
        if config is not None and config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id


def _missing(path: Path, where: str = WHERE) -> UserError:
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    names = [item.name for item in siblings if item.suffix == ".gguf" or (item / "config.json").is_file()]
    return UserError(f"{path} does not exist", where=where, hint=did_you_mean(path.name, names))


def _hint(source: str, weights: str) -> str:
    if Path(source).is_dir():
        return "the folder must hold a causal language model and its tokenizer, as `save_pretrained` writes them"
    known = ", ".join([*MODELS, *(TINY + family for family in FAMILIES)])
    return f"there is no such folder; an id on the hub needs the network or the hub's cache. Always there: {known}"


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint for a name that is not among the known ones."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"there are: {', '.join(sorted(known)[:12])}" if known else "paths are relative to the recipe"


def first_line(error: BaseException) -> str:
    """Of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
