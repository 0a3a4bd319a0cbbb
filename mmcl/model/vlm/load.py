"""Loads a ready VLM and takes it apart."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmcl.errors import UserError
from mmcl.model.language import DTYPES, TINY, check_vocabulary, ensure_padding_token, first_line, locate
from mmcl.model.quiet import quiet
from mmcl.model.vlm.families import FAMILIES, Family, family_of
from mmcl.model.vlm.parts import VLMEncoder, VLMGridEncoder, VLMLanguage, VLMLayout, VLMProjector
from mmcl.model.vlm.reading import Reader
from mmcl.model.vlm.tiny import TINY_VLMS, tiny_config, tiny_vlm

WHERE = "model.vlm"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Ready:
    """A VLM as transformers gives it.

    Attributes:
        model: of a `...ForConditionalGeneration` class.
        processor: of the same checkpoint.
        source: what the recipe calls it.
    """

    model: Any
    processor: Any
    source: str


@dataclass(frozen=True, slots=True)
class Parts:
    """A VLM taken apart.

    Attributes:
        encoder: the vision tower.
        projector: between tower and language model.
        language: the language model with its head.
        layout: how images stand in prompts and rows.
        reader: the processor.
        image_id: of the token that stands for a visual token.
        config: of the whole model.
    """

    encoder: VLMEncoder
    projector: VLMProjector
    language: VLMLanguage
    layout: VLMLayout
    reader: Reader
    image_id: int
    config: Any

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's and the generation config's."""
        more = getattr(self.language.generation_config, "eos_token_id", None) or []
        return [self.reader.processor.tokenizer.eos_token_id, *([more] if isinstance(more, int) else more)]


@dataclass(frozen=True, slots=True)
class Found:
    """A VLM without its weights.

    Attributes:
        config: of the model.
        family: it is of.
        processor: of the same checkpoint.
    """

    config: Any
    family: Family
    processor: Any


def load_vlm(weights: str, *, folder: Path, dtype: str, seed: int) -> Ready:
    """Load a VLM and its processor. Code that comes with a checkpoint is never run.

    Args:
        weights: `tiny:FAMILY` (random), a folder, or an id on the Hugging Face hub.
        folder: paths are relative to it.
        dtype: `fp32` or `bf16`, of the language model.
        seed: of random weights.

    Raises:
        UserError: nothing there, no network, a class that can't be taken apart, incomplete or broken files.
    """
    with quiet():
        if weights.startswith(TINY):
            model, processor = tiny_vlm(weights.removeprefix(TINY), seed=seed, dtype=DTYPES[dtype])
        else:
            source = locate(weights, folder, WHERE)
            found = _config(source, weights)
            model, processor = _weights(source, weights, found.config, DTYPES[dtype]), found.processor
    check_vocabulary(model, processor.tokenizer, weights, WHERE)
    ensure_padding_token(model, processor.tokenizer, weights)
    return Ready(model.eval(), processor, weights)


def load_config(weights: str, folder: Path) -> Found:
    """The same without weights.

    Raises:
        UserError: see `load_vlm`.
    """
    with quiet():
        if weights.startswith(TINY):
            config, processor = tiny_config(weights.removeprefix(TINY))
            return Found(config, cast(Family, family_of(config)), processor)
        return _config(locate(weights, folder, WHERE), weights)


def take_apart(ready: Ready) -> Parts:
    """Find encoder, projector and language model. The model itself is of no use afterwards.

    The vision tower and the projector are put into float32, whatever the checkpoint is in.
    """
    model, processor = ready.model, ready.processor
    family = cast(Family, family_of(model.config))
    inner = model.model
    projector = family.take_projector(inner)
    tower: nn.Module = getattr(inner, family.tower)
    image_id = int(model.config.image_token_id)
    reader = Reader(processor, family, processor.tokenizer.convert_ids_to_tokens(image_id))
    kind = VLMGridEncoder if family.grid else VLMEncoder
    encoder = kind(tower.float(), reader, f"vlm:{ready.source}")
    newline = getattr(inner, "image_newline", None)
    own = nn.Parameter(newline.detach().float()) if newline is not None else None
    wrapped = VLMProjector(projector.float(), family, in_width=encoder.info.width, newline=own)
    language = VLMLanguage(getattr(inner, family.language), model.lm_head, model.generation_config)
    return Parts(encoder, wrapped, language, VLMLayout(reader, wrapped), reader, image_id, model.config)


def _config(source: str, weights: str) -> Found:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot(weights, error, source) from error
    family = family_of(config)
    if family is None:
        kind = config.model_type
        raise UserError(f"`{weights}` is a `{kind}`, which can't be taken apart", where=WHERE, hint=_supported(kind))
    processors = cast(Any, AutoProcessor)
    try:
        processor = processors.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise _cannot(weights, error, source) from error
    if not hasattr(processor, "image_processor"):
        raise UserError(
            f"`{weights}` has no image processor",
            where=WHERE,
            hint="the folder must have preprocessor_config.json or processor_config.json beside the tokenizer's files",
        )
    return Found(config, family, processor)


def _weights(source: str, weights: str, config: Any, dtype: torch.dtype) -> Any:
    auto = cast(Any, AutoModelForImageTextToText)
    try:
        model, info = auto.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are reported, all at once
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise _cannot(weights, error, source) from error
    missing, shapes = sorted(info["missing_keys"]), sorted(key for key, *_ in info["mismatched_keys"])
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} of the model's {len(model.state_dict())} tensors ({_some(missing)})")
    if shapes:
        problems.append(f"has {len(shapes)} of another shape ({_some(shapes)})")
    if problems:
        raise UserError(
            f"`{weights}` does not fit {type(model).__name__}: it {' and '.join(problems)}",
            where=WHERE,
            hint="weights and config.json must be of one model, with all of its tensors",
        )
    return model


def _cannot(weights: str, error: Exception, source: str) -> UserError:
    text = first_line(error)
    if "gated" in str(error).lower() or "401" in str(error):
        hint = "accept the model's terms on its page and log in with `hf auth login`"
    elif "custom code" in str(error) or "trust_remote_code" in str(error):
        text, hint = "it comes with code of its own, and such code is never run", _supported("")
    elif Path(source).is_dir():
        hint = "the folder must hold a model of image and text with its processor, as `save_pretrained` writes them"
    else:
        hint = f"no such folder; an id on the hub needs the network or the hub's cache. Always there: {_tiny_names()}"
    return UserError(f"cannot load `{weights}`: {text}", where=WHERE, hint=hint)


def _supported(kind: str) -> str:
    close = difflib.get_close_matches(kind, list(FAMILIES), n=1)
    near = f"it is near to `{close[0]}`; " if close else ""
    return (
        f"{near}families are {', '.join(FAMILIES)}; a further one is a line of mmcl/model/vlm/families.py. "
        "Or take its parts: `encoder: {name: transformers}` and `language:`"
    )


def _tiny_names() -> str:
    return ", ".join(TINY + name for name in TINY_VLMS)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
