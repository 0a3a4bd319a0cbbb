"""Any vision model of Hugging Face transformers that gives patch tokens or feature maps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.protocols import EncoderInfo

from .checkpoint import checkpoint_folder, config_side, first_line, preprocessing, square
from .pooling import pool_levels
from .preprocess import Fit
from .vision_model import config_from, config_of, kind_of, load, random_weights

_PREFIX = frozenset(
    {
        "cls_token",
        "class_token",
        "class_embedding",
        "cls_embedding",
        "distillation_token",
        "register_tokens",
        "cls_register_token",
    }
)  # what families call the parameters of the tokens that they put before the patches
_LAST = -1
_ROUNDING = 1e-3  # relative; a patch that is the same in both images may differ by so much after other arithmetic


class Level(NamedTuple):
    """A hidden state that is taken: `_LAST` or its number from 0, positions per side, tokens before these."""

    state: int
    side: int
    prefix: int


class Transformers(nn.Module):
    """Any vision model of Hugging Face transformers: CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, ViT, I-JEPA, AIMv2 ...

    Of a checkpoint with a text part (CLIP, SigLIP, LLaVA) only the vision tower is loaded. Weights are read from
    safetensors files only, and code that comes with a checkpoint is never run. NaFlex models see a square grid here.

    Args:
        model: a folder that `save_pretrained` wrote, or an id on the hub.
        pretrained: load the weights; False for random ones.
        config: instead of `model`, for random weights: options of a configuration of transformers with its
            `model_type`, such as `{model_type: dinov2, hidden_size: 64, num_hidden_layers: 2}`.
        levels: which hidden states to take. 0 is what enters the first block, k what leaves the k-th, and the last, -1,
            is what the model gives as its last hidden state (for most families after a final norm; CLIP has none for
            patches). LLaVA-1.5 (arXiv 2310.03744) takes -2. Several are joined by channel.
        grid: tokens per side after averaging; default: the positions of the smallest of the `levels`.
        image_size: in pixels; default: what the checkpoint's preprocessing makes. The model resizes its position
            embeddings in its own way.
        prefix_tokens: put class and register tokens before the grid.
        fit: how an image that is no square becomes one: `squash`, `pad` or `crop`.
        seed: of random weights.
        root: a relative folder starts here.

    Raises:
        UserError: the checkpoint is not there, gated, incomplete, or not of a vision model that gives a grid of
            features; `levels`, `image_size` or `config` do not fit the model.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
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
        if (model is None) == (config is None) or (config is not None and pretrained):
            raise UserError(
                "it takes either `model`, or `config` with `pretrained: false`",
                where="model.encoder",
                hint="model: openai/clip-vit-large-patch14-336",
            )
        folder = None
        if model is not None:
            folder, name = checkpoint_folder(model, root, weights=pretrained)
            settings = config_of(folder, name)
        else:
            settings = config_from(config or {})
            name = settings.model_type
        kind = kind_of(settings, name)
        self._transform = preprocessing(folder, settings, image_size=image_size, fit=fit, name=name, warn=pretrained)
        size, own = self._transform.size, config_side(settings)
        self.patch = square(getattr(settings, "patch_size", None)) or 0
        _check_size(image_size, self.patch, own)
        network = (
            load(kind, folder, settings, name)
            if folder is not None and pretrained
            else random_weights(kind, settings, seed)
        )
        self.network = network
        inputs = inspect.signature(network.forward).parameters
        self.naflex = "spatial_shapes" in inputs
        # Those without this option resize their positions without being told, or cannot.
        self.resize = size != own and "interpolate_pos_encoding" in inputs
        self.eval()
        self.levels = self._examine(levels, size, name)
        if prefix_tokens and not all(level.prefix for level in self.levels):
            raise UserError(f"`{name}` has no prefix tokens", where="model.encoder.prefix_tokens", hint="leave it out")
        self.prefix_tokens = prefix_tokens
        self.grid = grid or min(level.side for level in self.levels)
        with torch.no_grad():
            features = self(torch.zeros(1, 3, size, size))
        self.info = EncoderInfo(
            tokens=features.shape[1],
            width=features.shape[2],
            image_size=size,
            source=f"transformers:{name}" if pretrained else f"random:{seed}",
        )

    def transform(self) -> Callable[[Image], Tensor]:
        """Size, mean, standard deviation, range and interpolation of the checkpoint's own image processor."""
        return self._transform

    def train(self, mode: bool = True) -> Transformers:
        """Always evaluation mode: dropout or shifted positions would give an image other features each time."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [I, 3, S, S] -> features [I, T, W]."""
        states = _states(self._run(pixels, hidden=any(level.state != _LAST for level in self.levels)))
        maps, prefixes = [], []
        for level in self.levels:
            state = states[level.state]
            if state.ndim == 3:  # [I, P + side * side, C]
                prefixes.append(state[:, : level.prefix])
                state = state[:, level.prefix :].transpose(1, 2).unflatten(2, (level.side, level.side))
            maps.append(state)  # [I, C, side, side]
        tokens = pool_levels(maps, self.grid)
        return torch.cat([torch.cat(prefixes, -1), tokens], 1) if self.prefix_tokens else tokens

    def _run(self, pixels: Tensor, *, hidden: bool) -> Any:
        """The model's output for pixels [I, 3, S, S]."""
        options: dict[str, Any] = {"interpolate_pos_encoding": True} if self.resize else {}
        pixels = pixels.to(self.network.dtype)
        if self.naflex:
            pixels, side = _patches(pixels, self.patch)
            options["pixel_attention_mask"] = torch.ones(pixels.shape[:2], dtype=torch.int32, device=pixels.device)
            options["spatial_shapes"] = torch.full((len(pixels), 2), side, device=pixels.device)
        return self.network(pixel_values=pixels, output_hidden_states=hidden, return_dict=True, **options)

    def _examine(self, levels: tuple[int, ...], size: int, name: str) -> list[Level]:
        """Runs the model on two images that differ in the first and the last patch: where in its output are they?"""
        probe = torch.zeros(2, 3, size, size)
        side = size // self.patch if self.patch else 0
        if side:
            end = side * self.patch
            probe[1, :, : self.patch, : self.patch] = 1
            probe[1, :, end - self.patch : end, end - self.patch : end] = 1
        try:
            with torch.no_grad():
                out = self._run(probe, hidden=True)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"`{name}` cannot take images of {size} pixels: {first_line(error)}",
                where="model.encoder.image_size",
                hint="take the size that it was made for",
            ) from error
        states = _states(out)
        wrong = [level for level in levels if not -len(states) <= level < len(states)]
        if wrong:
            raise UserError(
                f"`{name}` has no level {wrong[0]}",
                where="model.encoder.levels",
                hint=f"there are {len(states)} hidden states: 0..{len(states) - 1}, or {-len(states)}..-1",
            )
        return [_level(self.network, out, states, level % len(states), side, name) for level in levels]


def _level(network: nn.Module, out: Any, states: list[Any], number: int, side: int, name: str) -> Level:
    """Where in a hidden state the grid is; `side`: patches per side. Raises a UserError unless it is known for sure."""
    state = states[number]
    index = _LAST if number == len(states) - 1 else number
    if not isinstance(state, Tensor) or state.ndim not in (3, 4):
        raise _no_grid(name, state)
    if state.ndim == 4:
        if not _is_square(state):
            raise _no_grid(name, state)
        return Level(index, state.shape[3], 0)
    final = _final_map(out)
    if final is not None:  # the last map, made into tokens; DINOv3's ConvNeXt puts their mean before them
        side = final.shape[3]
        prefix = state.shape[1] - side**2
        if prefix and not (prefix == 1 and torch.equal(state[:, 0], out.pooler_output)):
            raise _no_grid(name, state)
    else:
        prefix = _count_prefix(network, state.shape[2])
        if not side or state.shape[1] != prefix + side**2:
            raise _no_grid(name, state, prefix, side)
        if len(states) > 1 and not _in_order(states[0], prefix):
            raise _no_grid(name, state, prefix, side)
    return Level(index, side, prefix)


def _states(out: Any) -> list[Any]:
    """Hidden states [I, L, C] or maps [I, C, H, W], the last as the model gives it."""
    maps = out.get("feature_maps")
    if maps is not None:
        return list(maps)
    hidden = out.get("reshaped_hidden_states") or out.get("hidden_states") or ()
    return [*hidden[:-1], out.get("last_hidden_state")]


def _final_map(out: Any) -> Tensor | None:
    """Of a model of maps, [I, C, H, W] as it leaves the last stage."""
    hidden = out.get("reshaped_hidden_states") or out.get("hidden_states") or ()
    return hidden[-1] if hidden and hidden[-1].ndim == 4 and _is_square(hidden[-1]) else None


def _is_square(state: Tensor) -> bool:
    return state.shape[2] == state.shape[3]


def _in_order(first: Tensor, prefix: int) -> bool:
    """Whether the first and the last patch are where they must be in what enters the first block [2, L, C]."""
    if first.ndim != 3:
        return False
    change = (first[1] - first[0]).abs().amax(-1)
    places = (change > _ROUNDING * change.max()).nonzero().flatten().tolist()
    return bool(places) and places[0] == prefix and places[-1] == first.shape[1] - 1


def _count_prefix(network: nn.Module, width: int) -> int:
    """Class, distillation and register tokens, by the parameters that they come from."""
    return sum(
        parameter.numel() // width for key, parameter in network.named_parameters() if key.rpartition(".")[2] in _PREFIX
    )


def _patches(pixels: Tensor, patch: int) -> tuple[Tensor, int]:
    """Pixels [I, 3, S, S] -> patches [I, side * side, patch * patch * 3], channels last, and side."""
    count, channels, side = pixels.shape[0], pixels.shape[1], pixels.shape[-1] // patch
    whole = pixels[..., : side * patch, : side * patch]
    cells = whole.reshape(count, channels, side, patch, side, patch).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(count, side * side, -1), side


def _check_size(image_size: int | None, patch: int, own: int | None) -> None:
    """Another size must be a multiple of the patch; a checkpoint's own need not (SigLIP so400m: 384, patches of 14)."""
    if image_size is None or image_size == own:
        return
    if image_size < max(1, patch) or (patch and image_size % patch):
        below = image_size - image_size % patch if patch else 0
        raise UserError(
            f"{image_size} pixels are no multiple of the patch, {patch} pixels",
            where="model.encoder.image_size",
            hint=f"take {below} or {below + patch}" if below else f"take {max(1, patch)} or more",
        )


def _no_grid(name: str, state: Any, prefix: int = 0, side: int = 0) -> UserError:
    shape = " x ".join(map(str, state.shape[1:])) if isinstance(state, Tensor) else "nothing"
    expected = f" instead of {prefix} prefix tokens and {side} x {side} patches in order" if side else ""
    return UserError(
        f"`{name}` gives no grid of features: {shape} for an image{expected}",
        where="model.encoder.model",
        hint="take a model with patch tokens or feature maps",
    )
