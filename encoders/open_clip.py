"""The vision tower of any OpenCLIP model."""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip as _open_clip
import torch
from PIL.Image import Image
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.protocols import EncoderInfo

from .pooling import pool_levels
from .preprocess import Fit, Preprocess
from .weights_file import first_line, read_checkpoint

open_clip: Any = _open_clip  # hardly annotated

_HUB = "hf-hub:"
_FOLDER = "local-dir:"
_CONFIG = "open_clip_config.json"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_USUAL = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
_RESNET_STRIDE = 32
_SHOWN = 5


class OpenCLIP(nn.Module):
    """The patch tokens of any OpenCLIP model (CLIP, SigLIP, EVA, CoCa, MobileCLIP, ConvNeXt ...), by its name there.

    The text tower and what makes one vector of the tokens are left out. The model's last norm is applied to the tokens
    of whatever block, as the encoder `timm` does it; if it is meant for the pooled vector (CoCa, CLIPA), to none.

    Args:
        model: name in OpenCLIP, such as `ViT-L-14`; `hf-hub:ORG/NAME`; or `local-dir:PATH`, a folder that has an
            `open_clip_config.json` beside the weights.
        pretrained: tag of the weights of a model that OpenCLIP knows by name, such as `laion2b_s32b_b82k` (from the
            hub or its cache); false for random weights.
        checkpoint: a file with weights (safetensors, or a torch file of tensors only) of the whole model or of its
            vision tower, instead of those that `pretrained` or `model` stand for; these then tell the preprocessing.
        levels: whose output to take: numbers of the blocks (transformers) or stages (convolutional networks; 0 is the
            stem of a CLIP ResNet), negative ones from the end; LLaVA-1.5 (arXiv 2310.03744) takes -2. Several are
            joined by channel, in the order of their depth.
        grid: tokens per side after averaging; default: the positions of the smallest of the `levels`.
        image_size: in pixels; default: what the weights were trained with. Position embeddings are resampled.
        prefix_tokens: put class and register tokens before the grid (transformers only).
        fit: how an image that is no square becomes one: `squash`, `pad` or `crop`. CLIP's own transform crops and
            SigLIP's squashes; here none crops by default, as questions may ask about every part of an image.
        seed: of random weights.
        root: a relative `checkpoint` or `local-dir:` starts here.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: str | bool | None = None,
        checkpoint: str | None = None,
        levels: tuple[int, ...] = (-1,),
        grid: int | None = None,
        image_size: int | None = None,
        prefix_tokens: bool = False,
        fit: Fit = "squash",
        seed: int = 0,
        root: Path = Path(),
    ) -> None:
        super().__init__()
        if not levels or (grid is not None and grid < 1):
            raise UserError("no levels, or a grid without tokens", where="model.encoder", hint="levels: [-1], grid: 4")
        self.levels = list(levels)
        path = root / Path(checkpoint).expanduser() if checkpoint else None
        if pretrained and model.startswith((_HUB, _FOLDER)):
            raise UserError(
                f"`{model}` brings its weights along: there are no tags to choose from",
                where="model.encoder.pretrained",
                hint="leave it out",
            )
        if model.startswith(_HUB):
            found = _on_hub(model, path)
        elif model.startswith(_FOLDER):
            found = _in_folder(root / Path(model.removeprefix(_FOLDER)).expanduser(), path)
        else:
            found = _by_name(model.replace("/", "-"), pretrained, path)
        self.tower = _build(found, image_size, seed)
        self.prefix = _count_prefix(self.tower, found.name) if prefix_tokens else 0
        size = image_size or _side(self.tower.image_size)
        self._transform = _preprocess(found.settings, size, fit)
        self.eval()
        with torch.no_grad():
            maps, _ = self._maps(torch.zeros(1, 3, size, size))
        if len(maps) != len(levels):
            raise UserError(f"levels {self.levels} name one block twice", where="model.encoder.levels")
        self.grid = grid or min(level.shape[-1] for level in maps)
        self.info = EncoderInfo(
            tokens=self.prefix + self.grid**2,
            width=sum(level.shape[1] for level in maps),
            image_size=size,
            source=f"open_clip:{found.source}" if found.weights else f"random:{seed}",
        )

    def transform(self) -> Callable[[Image], Tensor]:
        """Size, mean, standard deviation and interpolation that the weights were trained with."""
        return self._transform

    def train(self, mode: bool = True) -> OpenCLIP:
        """Always evaluation mode: batch statistics would make an image's tokens depend on the others in its batch."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [I, 3, S, S] -> features [I, T, W]."""
        maps, prefixes = self._maps(pixels)
        tokens = pool_levels(maps, self.grid)
        return torch.cat([torch.cat(prefixes, -1), tokens], 1) if prefixes else tokens

    def _maps(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of each level the feature map [I, C, H, W], and the prefix tokens [I, P, C] if they are wanted."""
        try:
            found = self.tower.forward_intermediates(
                pixels,
                indices=self.levels,
                stop_early=True,
                normalize_intermediates=True,
                intermediates_only=True,
                output_fmt="NCHW",
                output_extra_tokens=self.prefix > 0,
            )
        except AssertionError as error:  # its way of saying that there is no such level or that the size is wrong
            raise UserError(str(error), where="model.encoder", hint="see `levels` and `image_size`") from error
        return found["image_intermediates"], found["image_intermediates_prefix"] if self.prefix else []


@dataclass(frozen=True, slots=True)
class _Found:
    """A model before it is built.

    Attributes:
        name: for messages.
        config: of the model, as OpenCLIP writes it.
        settings: of its preprocessing, as far as they are known.
        weights: their file; None for random ones.
        source: name and weights in short.
    """

    name: str
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    weights: Path | None
    source: str


def _by_name(name: str, tag: str | bool | None, checkpoint: Path | None) -> _Found:
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        names = {known.lower(): known for known in open_clip.list_models()}
        close = [names[match] for match in difflib.get_close_matches(name.lower(), names, n=3)]
        raise UserError(
            f"open_clip {open_clip.__version__} has no model `{name}`",
            where="model.encoder.model",
            hint=f"did you mean {' or '.join(close)}?" if close else "see open_clip.list_models()",
        )
    if tag is True or (tag is None and checkpoint is None):
        hint = "".join(f"{tag}, " for tag in _tags(name)) + "a `checkpoint`, or false for random weights"
        raise UserError(f"which weights of `{name}`?", where="model.encoder.pretrained", hint=hint)
    if not tag:
        source = f"{name}@{checkpoint.name}" if checkpoint else name
        return _Found(name, config, _common_settings(name), checkpoint, source)
    settings = open_clip.get_pretrained_cfg(name, tag)
    if not settings:
        known = _tags(name)
        raise UserError(
            f"open_clip {open_clip.__version__} has no weights `{tag}` of `{name}`",
            where="model.encoder.pretrained",
            hint=f"there are: {', '.join(known)}" if known else "there are none: give a `checkpoint`",
        )
    if settings.get("quick_gelu") and not config.get("quick_gelu"):  # OpenCLIP warns, and its features are off
        raise UserError(
            f"the weights `{tag}` of `{name}` were trained with QuickGELU, and this model has GELU",
            where="model.encoder.model",
            hint=f"model: {name}-quickgelu",
        )
    if checkpoint is None:
        try:
            weights = Path(open_clip.download_pretrained(settings))
        except (OSError, RuntimeError) as error:
            raise _not_fetched(f"{name}@{tag}", error) from error
        return _Found(name, config, settings, weights, f"{name}@{tag.lower().replace('-', '_')}")
    return _Found(name, config, settings, checkpoint, f"{name}@{checkpoint.name}")


def _tags(name: str) -> list[str]:
    return list(open_clip.list_pretrained_tags_by_model(name))


def _on_hub(name: str, checkpoint: Path | None) -> _Found:
    repository = name.removeprefix(_HUB)
    fetch = open_clip.pretrained.download_pretrained_from_hf
    try:
        config = Path(fetch(repository, filename=_CONFIG))
        weights = checkpoint or Path(fetch(repository))
    except OSError as error:
        raise _not_fetched(name, error) from error
    source = f"{name}@{checkpoint.name}" if checkpoint else name
    return _Found(name, *_read_config(config), weights, source)


def _in_folder(folder: Path, checkpoint: Path | None) -> _Found:
    config, settings = _read_config(folder / _CONFIG)
    if checkpoint is None:
        files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
        files.sort(key=lambda file: _SUFFIXES.index(file.suffix))  # the same weights may lie there in two formats
        usual = [file for stem in _USUAL for file in files if file.stem == stem]
        if not usual and len(files) != 1:
            names = ", ".join(file.name for file in files)
            raise UserError(
                f"{folder} has more than one file of weights: {names}" if files else f"{folder} has no weights",
                where="model.encoder.model",
                hint="name the file as `checkpoint`",
            )
        checkpoint = (usual or files)[0]
    name = folder.resolve().name
    return _Found(name, config, settings, checkpoint, f"{name}@{checkpoint.name}")


def _read_config(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The model's configuration and the settings of its preprocessing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path}: {first_line(error)}",
            where="model.encoder.model",
            hint=f"a folder of OpenCLIP's has {_CONFIG} and the weights",
        ) from error
    content = content if isinstance(content, dict) else {}
    config, settings = content.get("model_cfg"), content.get("preprocess_cfg") or {}
    if not isinstance(config, dict) or not isinstance(settings, dict):
        raise UserError(f"{path} describes no OpenCLIP model: no `model_cfg` in it", where="model.encoder.model")
    return config, settings


def _common_settings(name: str) -> Mapping[str, Any]:
    """What all weights of a model that have a tag agree on: other weights of it will too."""
    first, *others = [open_clip.get_pretrained_cfg(name, tag) for tag in _tags(name)] or [{}]
    return {
        key: first[key]
        for key in ("mean", "std", "interpolation")
        if key in first and all(other.get(key) == first[key] for other in others)
    }


def _preprocess(settings: Mapping[str, Any], size: int, fit: Fit) -> Preprocess:
    wanted = open_clip.transform.merge_preprocess_dict(open_clip.transform.PreprocessCfg(), settings)
    mean, std = (
        tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3 for value in (wanted["mean"], wanted["std"])
    )
    if wanted["interpolation"] not in ("bicubic", "bilinear", "random") or not len(mean) == len(std) == 3:
        raise UserError(f"the model's `preprocess_cfg` is not understood: {wanted}", where="model.encoder.model")
    interpolation = "bilinear" if wanted["interpolation"] == "bilinear" else "bicubic"  # random: in training only
    return Preprocess(size=size, mean=mean, std=std, interpolation=interpolation, fit=fit)


def _build(found: _Found, image_size: int | None, seed: int) -> Any:
    """The vision tower without its heads, with its weights, for images of that size."""
    try:
        vision = {**found.config["vision_cfg"], "timm_model_pretrained": False}
        if image_size is not None:
            vision["image_size"] = image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # The smallest text tower that there can be: the model's own may be larger than the vision tower, or need
            # the hub. The vision tower is made first, so the seed gives it the weights that OpenCLIP gives it.
            tower: Any = open_clip.CLIP(
                found.config["embed_dim"], vision, dict(_NO_TEXT), quick_gelu=found.config.get("quick_gelu", False)
            ).visual
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        hint = "see its `model_cfg` and `image_size`"
        message = f"cannot build `{found.name}`: {first_line(error)}"
        raise UserError(message, where="model.encoder.model", hint=hint) from error
    trunk = getattr(tower, "trunk", tower)
    if not hasattr(trunk, "forward_intermediates"):
        raise UserError(
            f"the vision tower of `{found.name}` ({type(trunk).__name__}) gives one vector per image, no patch tokens",
            where="model.encoder.model",
            hint="another model",
        )
    if image_size is not None:
        _check_size(tower, image_size)
    known = set(tower.state_dict())
    _drop_heads(tower)
    if found.weights is not None:
        _fill(tower, found.weights, known, found.name)
    if image_size is not None and trunk is not tower:
        try:
            tower.set_input_size(image_size)  # after the weights: it resamples the positions that they hold
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(first_line(error), where="model.encoder.image_size") from error
    return tower


def _check_size(tower: Any, size: int) -> None:
    if hasattr(tower, "trunk"):
        stride = max((level["reduction"] for level in getattr(tower.trunk, "feature_info", ())), default=1)
    else:
        stride = tower.patch_size[0] if hasattr(tower, "patch_size") else _RESNET_STRIDE
    if size < stride or size % stride:
        near = max(1, round(size / stride)) * stride
        raise UserError(
            f"{size} pixels do not divide into patches of {stride}",
            where="model.encoder.image_size",
            hint=f"a multiple of {stride}, such as {near}",
        )


def _drop_heads(tower: Any) -> None:
    """Leave out what makes one vector of the tokens: it takes memory, and positions of its own tie it to a size."""
    if isinstance(tower, open_clip.transformer.VisionTransformer):
        if tower.attn_pool is not None or tower.final_ln_after_pool:
            tower.ln_post = nn.Identity()  # meant for what comes out of the pooling
        tower.attn_pool = tower.attn_pool_contrastive = tower.proj = None
    elif hasattr(tower, "trunk"):
        tower.trunk.reset_classifier(0, "")
        tower.head = nn.Identity()
    else:
        tower.attnpool = None


def _fill(tower: Any, path: Path, known: set[str], name: str) -> None:
    """Load the weights of the vision tower; `known` are the names in a tower that has its heads."""
    stored = read_checkpoint(path)
    prefix = "visual."
    tensors = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    tensors = tensors or dict(stored)
    positions = tensors.get("positional_embedding")
    if positions is not None and positions.ndim == 2 and math.sqrt(max(0, len(positions) - 1)).is_integer():
        resized = {"visual.positional_embedding": positions.float()}
        open_clip.model.resize_pos_embed(resized, SimpleNamespace(visual=tower))
        tensors["positional_embedding"] = resized["visual.positional_embedding"]
    wanted = tower.state_dict()
    both = wanted.keys() & tensors.keys()
    wrong = {
        "missing": wanted.keys() - tensors.keys(),
        "of another shape": {key for key in both if wanted[key].shape != tensors[key].shape},
        "not of this model": tensors.keys() - known,
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(keys)} tensors are {what} ({_some(keys)})" for what, keys in wrong.items() if keys)
        raise UserError(
            f"{path} does not fit `{name}`, whose vision tower has {len(wanted)} tensors: {told}",
            where="model.encoder.checkpoint",
            hint="it must hold the weights of this very model, or of its vision tower, under OpenCLIP's names",
        )
    tower.load_state_dict({key: tensors[key] for key in wanted})


def _some(names: set[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown) + (" ..." if len(names) > len(shown) else "")


def _count_prefix(tower: Any, name: str) -> int:
    count = 0
    if hasattr(tower, "class_embedding"):
        count = 1
    elif hasattr(tower, "trunk"):
        options = inspect.signature(tower.trunk.forward_intermediates).parameters
        count = int(getattr(tower.trunk, "num_prefix_tokens", 0)) if "return_prefix_tokens" in options else 0
    if not count:
        raise UserError(f"`{name}` has no prefix tokens", where="model.encoder.prefix_tokens", hint="leave it out")
    return count


def _side(size: Any) -> int:
    """OpenCLIP keeps sizes as one number or as height and width."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    if height != width:
        raise UserError(
            f"the model takes images of {height} x {width} pixels, no squares",
            where="model.encoder.model",
            hint="give an `image_size`",
        )
    return int(height)


def _not_fetched(name: str, error: Exception) -> UserError:
    return UserError(
        f"cannot fetch `{name}`: {first_line(error)}",
        where="model.encoder",
        hint="this needs the network or the hub's cache; or give a `checkpoint`, or a `local-dir:`",
    )
