"""Any image model of timm."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm as _timm
import torch
from PIL.Image import Image
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.protocols import EncoderInfo

from .pooling import pool_levels
from .preprocess import Fit, Preprocess
from .weights_file import first_line, read_checkpoint

timm: Any = _timm  # hardly annotated


class Timm(nn.Module):
    """Any image model of timm (CLIP, SigLIP, DINOv2, ConvNeXt ...), by its name there.

    Args:
        model: name in timm, such as `vit_base_patch16_siglip_224` or `vit_small_patch14_dinov2.lvd142m`.
        pretrained: load timm's weights (from the hub or its cache); False for random weights.
        checkpoint: a file with the model's weights (safetensors, or a torch file of tensors only), instead of timm's.
        levels: whose output to take: numbers of the blocks (transformers) or stages (convolutional networks), negative
            ones from the end; LLaVA-1.5 (arXiv 2310.03744) takes -2. Several are joined by channel.
        grid: tokens per side after averaging; default: the positions of the smallest of the `levels`.
        image_size: in pixels; default: what the weights were trained with.
        prefix_tokens: put class and register tokens before the grid (transformers only).
        fit: how an image that is no square becomes one: `squash`, `pad` or `crop`.
        seed: of random weights.
        root: a relative `checkpoint` starts here.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: bool = True,
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
        network = _create(model, pretrained=pretrained, checkpoint=path, image_size=image_size, seed=seed)
        self.network = network
        self.prefix = _count_prefix(network, model) if prefix_tokens else 0
        settings = timm.data.resolve_model_data_config(network)
        size = image_size or settings["input_size"][-1]
        self._transform = Preprocess(
            size=size,
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            interpolation=settings["interpolation"],
            fit=fit,
            crop=settings["crop_pct"],
        )
        self.eval()
        with torch.no_grad():
            maps, _ = self._maps(torch.zeros(1, 3, size, size))
        self.grid = grid or min(level.shape[-1] for level in maps)
        if path is not None:
            source = f"timm:{model}@{path.name}"
        elif pretrained:
            source = f"timm:{model.partition('.')[0]}.{network.pretrained_cfg.get('tag', '')}".rstrip(".")
        else:
            source = f"random:{seed}"
        self.info = EncoderInfo(
            tokens=self.prefix + self.grid**2,
            width=sum(level.shape[1] for level in maps),
            image_size=size,
            source=source,
        )

    def transform(self) -> Callable[[Image], Tensor]:
        """Size, mean, standard deviation and interpolation that the weights were trained with."""
        return self._transform

    def train(self, mode: bool = True) -> Timm:
        """Always evaluation mode: batch statistics would make an image's tokens depend on the others in its batch."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [I, 3, S, S] -> features [I, T, W]."""
        maps, prefixes = self._maps(pixels)
        tokens = pool_levels(maps, self.grid)
        return torch.cat([torch.cat(prefixes, -1), tokens], 1) if prefixes else tokens

    def _maps(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of each level the feature map [I, C, H, W], and the prefix tokens [I, P, C] if they are wanted."""
        options = {"return_prefix_tokens": True} if self.prefix else {}
        try:
            found = self.network.forward_intermediates(
                pixels, indices=self.levels, norm=True, output_fmt="NCHW", intermediates_only=True, **options
            )
        except AssertionError as error:  # timm's way of saying that there is no such level or that the size is wrong
            raise UserError(str(error), where="model.encoder", hint="see `levels` and `image_size`") from error
        if self.prefix:
            return [level for level, _ in found], [prefix for _, prefix in found]
        return found, []


def _create(name: str, *, pretrained: bool, checkpoint: Path | None, image_size: int | None, seed: int) -> Any:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"timm {timm.__version__} has no model `{name}`",
            where="model.encoder.model",
            hint=f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()",
        )
    options: dict[str, Any] = {}
    stored: Mapping[str, Tensor] = {}
    if checkpoint is not None:
        stored = read_checkpoint(checkpoint)
        options["pretrained_cfg_overlay"] = {"state_dict": dict(stored)}
    known = timm.models.get_pretrained_cfg(name)
    if image_size is not None and known is not None and known.fixed_input_size:
        options["img_size"] = image_size  # position embeddings are resized on loading
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: Any = timm.create_model(
                name, pretrained=pretrained or checkpoint is not None, num_classes=0, **options
            )
    except (OSError, RuntimeError, ValueError) as error:
        hint = "weights come from the hub: this needs its cache or the network; or give a `checkpoint`"
        if checkpoint is not None:
            hint = f"does {checkpoint} hold the weights of this very model?"
        raise UserError(f"cannot load `{name}`: {first_line(error)}", where="model.encoder", hint=hint) from error
    missing = sorted(set(network.state_dict()) - set(stored)) if checkpoint is not None else []
    if missing:  # timm only logs a warning
        raise UserError(
            f"{checkpoint} lacks {len(missing)} of the tensors of `{name}`, such as {missing[0]}",
            where="model.encoder.checkpoint",
            hint="it must hold the weights of this very model under timm's names",
        )
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"timm's `{name}` does not give feature maps", where="model.encoder.model")
    return network


def _count_prefix(network: Any, name: str) -> int:
    count = int(getattr(network, "num_prefix_tokens", 0))
    if not count or "return_prefix_tokens" not in inspect.signature(network.forward_intermediates).parameters:
        raise UserError(f"`{name}` has no prefix tokens", where="model.encoder.prefix_tokens", hint="leave it out")
    return count
