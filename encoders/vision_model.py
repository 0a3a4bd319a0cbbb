"""From a configuration of transformers to the vision model alone: the class, and its weights or random ones."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import utils as _hub
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING
from transformers.utils import logging as _logging

from mmcl.errors import UserError

from .checkpoint import WHERE, first_line

hub: Any = _hub  # neither module annotates its functions
logging: Any = _logging

_CONFIG_WHERE = "model.encoder.config"
_IMAGE = "pixel_values"
_GIVEN = frozenset({"self", _IMAGE, "pixel_attention_mask", "spatial_shapes"})  # what the encoder can pass
_HEADS = ("vision_use_head", "use_head")  # options of the pooling head, which no patch token goes through
_SHUFFLING = frozenset({"vit_mae"})
_UNUSED = "mask_token"  # for masked pre-training; some checkpoints lack it, and no feature depends on it
# Where the vision tower is in the checkpoint of a larger model; not every class of a tower says so itself.
_TOWER = {r"^(?:.+\.)?vision_(?:model|tower)\.": ""}
_SHOWN = 3
_TAKE = "take a model with patch tokens or feature maps, such as openai/clip-vit-base-patch32"

Kind = tuple[Any, dict[str, Any]]


def config_of(folder: Path, name: str) -> PreTrainedConfig:
    """The configuration of a checkpoint's vision model.

    Raises:
        UserError: it cannot be read, transformers does not know the architecture, or it needs code of its own.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        hint = "this version of transformers must know the architecture"
        if "custom code" in str(error):
            raise UserError(
                f"`{name}` comes with code of its own, and such code is never run",
                where=WHERE,
                hint="take an architecture that transformers has, or write an encoder: `./mine.py:Mine`",
            ) from error
        raise UserError(
            f"cannot read the configuration of `{name}`: {first_line(error)}", where=WHERE, hint=hint
        ) from error
    return _vision(config)


def config_from(options: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration from its options.

    Args:
        options: with `model_type`.

    Raises:
        UserError: there is no such model type or option, or a value does not fit.
    """
    kind = str(options.get("model_type") or "")
    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(kind, list(CONFIG_MAPPING.keys()), n=1)
        raise UserError(
            f"transformers has no model type `{kind}`" if kind else "it has no `model_type`",
            where=f"{_CONFIG_WHERE}.model_type",
            hint=f"did you mean `{close[0]}`?" if close else "clip_vision_model, siglip_vision_model, dinov2, vit ...",
        )
    build = CONFIG_MAPPING[kind]
    rest = {key: value for key, value in options.items() if key != "model_type"}
    _check_keys(build, rest, _CONFIG_WHERE)
    try:
        config = build(**rest)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"`{kind}` refuses it: {' '.join(str(error).split())}", where=_CONFIG_WHERE, hint=f"see {build.__name__}"
        ) from error
    return _vision(config)


def kind_of(config: PreTrainedConfig, name: str) -> Kind:
    """The model's class, and the options of its constructor.

    Raises:
        UserError: no class for it, or one that does not make features of pixels alone.
    """
    found: Any = MODEL_MAPPING.get(type(config), None) or MODEL_FOR_BACKBONE_MAPPING.get(type(config), None)
    if found is None:
        raise UserError(
            f"transformers has no vision model for the `{config.model_type}` of `{name}`", where=WHERE, hint=_TAKE
        )
    cls = found[0] if isinstance(found, (list, tuple)) else found
    parameters = inspect.signature(cls.forward).parameters
    if cls.main_input_name != _IMAGE or _IMAGE not in parameters:
        raise UserError(f"`{name}` is a {cls.__name__}, which reads no images", where=WHERE, hint=_TAKE)
    further = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and key not in _GIVEN
    ]
    if further:
        raise UserError(
            f"{cls.__name__} of `{name}` needs more than pixels: {', '.join(further)}", where=WHERE, hint=_TAKE
        )
    if config.model_type in _SHUFFLING:
        raise UserError(f"{cls.__name__} of `{name}` shuffles its patches at random", where=WHERE, hint=_TAKE)
    pooling = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    return cls, {"add_pooling_layer": False} if pooling else {}


def load(kind: Kind, folder: Path, config: PreTrainedConfig, name: str) -> Any:
    """The vision model with the checkpoint's weights, in float32.

    Raises:
        UserError: the files cannot be read, or tensors are missing or of another shape.
    """
    cls, options = kind
    network, missing, other_shape = _load_once(cls, folder, config, name, options)
    if missing:  # perhaps a larger model, whose tower the class does not find by itself
        again = _load_once(cls, folder, config, name, {**options, "key_mapping": _TOWER})
        if len(again[1]) < len(missing):
            network, missing, other_shape = again
    if missing or other_shape:
        problems = []
        if missing:
            problems.append(f"lacks {len(missing)} of its {len(network.state_dict())} tensors ({_some(missing)})")
        if other_shape:
            problems.append(f"has {len(other_shape)} of another shape ({_some(other_shape)})")
        raise UserError(
            f"`{name}` does not fit {cls.__name__}: it {' and '.join(problems)}",
            where=WHERE,
            hint="weights and config.json must be of one model",
        )
    return network


def random_weights(kind: Kind, config: PreTrainedConfig, seed: int) -> Any:
    """The vision model with random weights, in float32.

    Raises:
        UserError: the config's options do not go together.
    """
    cls, options = kind
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        try:
            return cls(config, **options).float()
        except (ValueError, RuntimeError, TypeError, ZeroDivisionError, ImportError) as error:
            raise UserError(
                f"{cls.__name__} cannot be built: {first_line(error)}", where="model.encoder", hint="see its config"
            ) from error


def _vision(config: PreTrainedConfig) -> PreTrainedConfig:
    """The vision tower's configuration where there is a larger model, without what only the pooled vector needs."""
    vision = getattr(config, "vision_config", None)
    config = vision if isinstance(vision, PreTrainedConfig) else config
    for head in _HEADS:
        if hasattr(config, head):
            setattr(config, head, False)
    if type(config) not in MODEL_MAPPING and type(config) in MODEL_FOR_BACKBONE_MAPPING:
        backbone: Any = config
        backbone.out_indices = list(range(len(backbone.stage_names)))
    return config


def _load_once(
    cls: Any, folder: Path, config: PreTrainedConfig, name: str, options: dict[str, Any]
) -> tuple[Any, list[str], list[str]]:
    """The model, the names of missing tensors, and those of another shape with both shapes."""
    with torch.random.fork_rng(devices=[]), _quiet():  # missing tensors are drawn at random
        try:
            network, report = cls.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are reported, all at once
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            raise UserError(
                f"cannot load `{name}`: {first_line(error)}", where=WHERE, hint="are its files complete?"
            ) from error
    network.config.name_or_path = network.name_or_path = ""  # features do not depend on where the folder is
    missing = sorted(key for key in report["missing_keys"] if key.rpartition(".")[2] != _UNUSED)
    shapes = [f"{key}: {tuple(is_)}, not {tuple(wanted)}" for key, is_, wanted in report["mismatched_keys"]]
    return network, missing, sorted(shapes)


def _check_keys(build: Any, options: Mapping[str, Any], where: str) -> None:
    """A configuration takes any keyword; a mistyped one must not be lost."""
    known = {*inspect.signature(build.__init__).parameters, *getattr(build, "__dataclass_fields__", ())}
    known |= {*build.attribute_map, "num_labels", "out_indices", "out_features"}
    for key, value in options.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise UserError(
                f"{build.__name__} has no such option",
                where=f"{where}.{key}",
                hint=f"did you mean `{close[0]}`?" if close else "leave it out",
            )
        part = build.sub_configs.get(key)
        if isinstance(value, Mapping) and hasattr(part, "sub_configs"):
            _check_keys(part, {name: inner for name, inner in value.items() if name != "model_type"}, f"{where}.{key}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and its report of the tensors, which is checked here."""
    level, bars, hub_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        not hub.are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:  # they go with the others
            hub.enable_progress_bars()
        else:
            hub.disable_progress_bars()
